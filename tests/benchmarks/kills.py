"""A sweep whose driver is killed again and again, each time followed by the same command: what is
left in the end, and whether anything was done twice.

Every execution of a cell leaves a line in a file (the metric `tally`). The driver gets SIGKILL at
random moments: before the first answer, between answers, and while records are stored.

    python -m tests.benchmarks.kills [--inline] [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from mlflow import MlflowClient

PLUGINS = Path(__file__).parents[1] / "plugins"
ROOT = Path(__file__).parents[2]
CELLS = 60
SWEEP = """
name: killed
question: Is every cell answered once, however often the driver is killed?
architectures: [none, gru]
task: instant
model: {parameters: [2_000], num_layers: 1}
measure:
  seq_len: [4, 8, 16]
  batch_size: [1]
  rounds: 10
  metrics: [tally]
compare: {baseline: none, zone: [4, 16]}
"""
# Seconds from a start to the first answer, at most about: some kills come before it.
START_SECONDS = {True: 3.0, False: 8.0}


@dataclass(kw_only=True)
class Outcome:
    """What a killed sweep came to. `repeated` are cells that ran although their record was in the
    journal; `killed_at` is how many records were there at each kill."""

    exit_code: int
    killed_at: list[int] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    executions: int
    records: Counter[str]
    runs: Counter[str]
    run_statuses: Counter[str]
    rows: Counter[str]

    def faults(self) -> list[str]:
        """What is not as it should be, in words."""
        once = {
            "records in the journal": self.records,
            "runs in MLflow": self.runs,
        }
        found = [
            f"{len(of)} cells have {what}, {sum(of.values())} in all"
            for what, of in once.items()
            if len(of) != CELLS or sum(of.values()) != CELLS
        ]
        if self.repeated:
            found.append(f"run again although answered: {self.repeated}")
        if self.rows != {"finished": CELLS}:
            found.append(f"rows of the cells table by status: {dict(self.rows)}")
        if set(self.run_statuses) != {"FINISHED"}:
            found.append(f"runs by status: {dict(self.run_statuses)}")
        if self.exit_code != 0:
            found.append(f"the last command ended with {self.exit_code}")
        return found


class KilledSweep:
    """One sweep in a folder of its own, and what it has left there so far."""

    def __init__(self, folder: Path, *, inline: bool) -> None:
        self._folder, self._inline = folder, inline
        self._journal = folder / "results/killed/journal"
        self._tally = folder / "tally"
        self._tally.touch()
        (folder / "killed.yaml").write_text(SWEEP)

    def start(self) -> subprocess.Popen[str]:
        options = ["--inline"] if self._inline else []
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "sweep", "killed.yaml", *options],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "WORKLOADS_PLUGINS": str(PLUGINS),
                "WORKLOADS_TALLY": str(self._tally),
                "WORKLOADS_CACHE": str(self._folder / "cache"),
            },
        )

    def kill(self, random_: random.Random) -> None:
        """Start the driver, and kill it before its first answer or some moments after."""
        before, driver = len(self.recorded()), self.start()
        while_starting = random_.random() < 0.4
        patience = random_.uniform(0, START_SECONDS[self._inline]) if while_starting else math.inf
        # Not by the clock alone: a quick machine would be through before twenty kills.
        given_up = time.monotonic() + patience
        while len(self.recorded()) == before and driver.poll() is None:
            if time.monotonic() > given_up:
                break
            time.sleep(0.002)
        if not while_starting:
            time.sleep(random_.uniform(0, 0.04))
        ended = driver.poll()
        driver.kill()
        _, errors = driver.communicate()
        assert ended is None, f"the sweep ended by itself with {ended}: {errors}"

    def recorded(self) -> list[Path]:
        """The journal's records."""
        return list(self._journal.glob("[!.]*.json"))

    def answered(self) -> Counter[str]:
        return Counter(json.loads(path.read_text())["record"]["id"] for path in self.recorded())

    def executed(self) -> list[str]:
        return self._tally.read_text().split()

    def outcome(self, exit_code: int, killed_at: list[int], repeated: list[str]) -> Outcome:
        client = MlflowClient(f"sqlite:///{self._folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("killed")
        assert experiment is not None
        runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        rows = pq.read_table(self._folder / "results/killed/tables/cells.parquet")
        return Outcome(
            exit_code=exit_code,
            killed_at=killed_at,
            repeated=repeated,
            executions=len(self.executed()),
            records=self.answered(),
            runs=Counter(run.data.tags["cell_id"] for run in children),
            run_statuses=Counter(run.info.status for run in runs),
            rows=Counter(rows.column("status").to_pylist()),
        )


def kill_often(folder: Path, *, inline: bool, kills: int, seed: int) -> Outcome:
    """Kill the driver so often, let the same command finish, and say what came of it."""
    random_, sweep = random.Random(seed), KilledSweep(folder, inline=inline)
    killed_at: list[int] = []
    snapshots: list[tuple[set[str], int]] = []
    for _ in range(kills):
        sweep.kill(random_)
        snapshots.append((set(sweep.answered()), len(sweep.executed())))
        killed_at.append(len(sweep.recorded()))
    last = sweep.start()
    _, errors = last.communicate()
    print(errors, file=sys.stderr, end="")
    lines = sweep.executed()
    repeated = [line for answered, count in snapshots for line in lines[count:] if line in answered]
    return sweep.outcome(last.returncode, killed_at, repeated)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inline", action="store_true")
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        clock = time.monotonic()
        outcome = kill_often(Path(folder), inline=asked.inline, kills=asked.kills, seed=asked.seed)
        seconds = time.monotonic() - clock
    print(f"{len(outcome.killed_at)} kills in {seconds:.0f} s, at records {outcome.killed_at}")
    print(f"{outcome.executions} executions for {CELLS} cells, {len(outcome.repeated)} repeated")
    print("faults: " + ("; ".join(outcome.faults()) or "none"))
    return 1 if outcome.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
