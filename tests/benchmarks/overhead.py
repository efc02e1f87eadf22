"""What a cell costs beside its own work, against stock Ray Tune with its own MLflow callback, in
one run, interleaved.

A figure is wall time per cell on two slots, recorded in an SQLite MLflow store: from the first
answer to the moment the store has the last, over the answers between. Start-up before that, the
database's migrations and shutting down are left out.

A cell builds a model, trains one update and evaluates, in all three.

- *ours*: each cell in a child of its own, journalled; its run has the cell's fields as params, 30
  tags, the metrics, and the whole record as an artifact.
- *fresh*: stock Tune, a function in an actor per trial; its run has the same params, the metrics
  and the trial's files as artifacts.
- *reused*: the same in an actor that is reused (`reuse_actors=True`).
- *bare*: the same again, and the run has one param, the metrics, and no artifact.
- *fork*: a child forked from the same warm process, in turn, and one fsync: what isolation and
  durability cost at least, on one slot.

    python -m tests.benchmarks.overhead [--rounds 3] [--ours 300] [--fresh 10] [--reused 300]
    python -m tests.benchmarks.overhead --flat    # what a cell costs late in a long sweep
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests/plugins"
SLOTS = 2
FRESH_BOUND, REUSED_BOUND, FLAT_BOUND = 1 / 25, 1 / 4, 1.3


def ours(count: int, folder: Path) -> list[float]:
    """Times of the answers; the last one is when the store had all."""
    from tests.benchmarks import trivial_sweep

    answered, recorded = trivial_sweep.run(count, _database(folder), SLOTS)
    return [*answered[:-1], recorded]


def stock(count: int, folder: Path, *, reuse: bool, whole: bool = True) -> list[float]:
    """Times at which stock Tune had completed and recorded each trial; `whole` where a run is to
    hold what ours holds."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    from orchestrator import child_run
    from tests.benchmarks.trivial_sweep import trivial_cell

    done: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            done.append(time.monotonic())

    def trial(config: dict[str, Any]) -> None:
        from workloads.measurement import Measurement
        from workloads.run import run

        cell = trivial_cell(int(config["seed"]))
        found = [event for event in run(cell) if isinstance(event, Measurement)]
        tune.report({measurement.metric: measurement.samples[-1] for measurement in found})

    fields = child_run.params(trivial_cell(0)) if whole else {}
    uri = f"sqlite:///{_database(folder)}"
    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    tune.Tuner(
        trial,
        param_space={**fields, "seed": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(reuse_actors=reuse),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            callbacks=[
                MLflowLoggerCallback(uri, experiment_name="stock", save_artifact=whole),
                Clock(),
            ],
            verbose=0,
        ),
    ).fit()
    ray.shutdown()
    assert len(done) == count
    return done


def fork(count: int, folder: Path) -> list[float]:
    """Times at which a child forked from the warm process had ended, and a file was on disk."""
    from orchestrator import forkserver

    forkserver.warm_up()
    done = []
    with (folder / "record").open("wb") as file:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            file.write(bytes(2000))
            file.flush()
            os.fsync(file.fileno())
            done.append(time.monotonic())
    return done


BLOCKS: dict[str, Callable[[int, Path], list[float]]] = {
    "ours": ours,
    "fresh": lambda count, folder: stock(count, folder, reuse=False),
    "reused": lambda count, folder: stock(count, folder, reuse=True),
    "bare": lambda count, folder: stock(count, folder, reuse=True, whole=False),
    "fork": fork,
}


def _database(folder: Path) -> Path:
    """An MLflow database with its tables, MLflow imported: neither is a cell's cost."""
    from mlflow import MlflowClient

    path = folder / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def block(name: str, count: int) -> list[float]:
    """Run one block in a process of its own; the times it tells."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        command = [sys.executable, "-m", "tests.benchmarks.overhead", "--block", name]
        done = subprocess.run(
            [*command, "--count", str(count), "--folder", folder],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "WORKLOADS_PLUGINS": str(PLUGINS), "PYTHONPATH": str(ROOT)},
        )
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def seconds_per_cell(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def compare(rounds: int, counts: dict[str, int]) -> bool:
    """Interleaved blocks, a table, and whether the bounds hold."""
    found: dict[str, list[float]] = {name: [] for name in counts}
    for number in range(rounds):
        for name, count in counts.items():
            found[name].append(seconds_per_cell(block(name, count)))
            print(f"round {number} {name:<7} {found[name][-1] * 1e3:8.1f} ms a cell", flush=True)
    median = {name: statistics.median(values) for name, values in found.items()}
    for name, count in counts.items():
        ratio = median["ours"] / median[name]
        cells = f"{rounds} x {count} cells"
        print(f"{name:<7} {median[name] * 1e3:8.1f} ms a cell ({cells}); ours is {ratio:.3f} of it")
    return (
        median["ours"] <= FRESH_BOUND * median["fresh"]
        and median["ours"] <= REUSED_BOUND * median["reused"]
    )


def flat() -> bool:
    """In one sweep of 2,000 cells, what a cell costs around the 2,000th against around the 200th,
    when every worker has long started; and with the store, over the whole sweep."""
    times = block("ours", 2000)
    early, late = seconds_per_cell(times[100:300]), seconds_per_cell(times[1798:1999])
    for start in range(0, 2000, 200):
        part = seconds_per_cell(times[start : min(start + 200, 1999)])
        print(f"  cells {start} to {start + 199}: {part * 1e3:.1f} ms a cell")
    print(f"the store had all {times[-1] - times[-2]:.1f} s after the last answer")
    print(f"{seconds_per_cell(times) * 1e3:.1f} ms a cell until the store had all")
    print(
        f"around 2,000: {late * 1e3:.1f} ms, around 200: {early * 1e3:.1f} ms, {late / early:.2f}"
    )
    return late <= FLAT_BOUND * early


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    for name, count in {"ours": 300, "fresh": 10, "reused": 300, "bare": 300, "fork": 100}.items():
        arguments.add_argument(f"--{name}", type=int, default=count, metavar="CELLS")
    arguments.add_argument("--flat", action="store_true")
    arguments.add_argument("--block", choices=BLOCKS)
    arguments.add_argument("--count", type=int)
    arguments.add_argument("--folder", type=Path)
    asked = arguments.parse_args()
    if asked.block:
        times = BLOCKS[asked.block](asked.count, asked.folder)
        print(json.dumps(times))
        return 0
    if asked.flat:
        return 0 if flat() else 1
    return 0 if compare(asked.rounds, {name: getattr(asked, name) for name in BLOCKS}) else 1


if __name__ == "__main__":
    sys.exit(main())
