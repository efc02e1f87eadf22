"""Sweeps through faults at random, one after another, repeatable by their seed as far as real
processes are.

Two sweeps at once share a cluster of Ray, whose nodes die and join and whose head is lost; an
MLflow server on PostgreSQL, both of which die and come back; and a disk that fills up. Their
drivers are killed, go on elsewhere, with their results folder or with nothing but MLflow, meet each
other, come back late, and have clocks that jump. Every process is a real one; another machine is a
process that goes by another name.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient

from tests.end_to_end.nap_sweep import ARCHITECTURES, nap_sweep
from tests.end_to_end.other_machine import command, set_clock
from tests.end_to_end.sweep_process import SweepProcess
from tests.full_file_system import SmallDisk
from tests.mlflow_on_postgres import Store
from tests.ray_cluster import RayCluster, ray_cluster

CONTEXTS, UPDATES = (4, 8), 4
PATIENCE = 300.0
"""For what a machine of two cores does with all of this on it."""
TRIES = 5
"""How often the same command may be needed once nothing breaks any more: a cell that was given up
is asked for again."""
CHANGING = {
    "run_id": "MLflow's own",
    "seconds": "a time",
    "predicted_seconds": "calibrated by earlier times",
    "attempts": "what this is about",
}
"""Columns that differ between two runs of one sweep, each for a reason."""


@dataclass(slots=True)
class Sweep:
    """One sweep, its driver of now, and what it has left so far. Its results lie in `results`, as
    others see them."""

    folder: Path
    name: str
    seeds: int
    results: Path
    machine: int = 0
    driver: SweepProcess | None = None
    over: bool = False
    kept: dict[str, bytes] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        return ARCHITECTURES * len(CONTEXTS) * self.seeds

    @property
    def text(self) -> str:
        return nap_sweep(
            self.name,
            "What is left of a sweep to which everything happens?",
            seconds=0.3,
            seeds=self.seeds,
            contexts=CONTEXTS,
            updates=UPDATES,
        )

    @property
    def at(self) -> str:
        """The name of the machine where the driver is."""
        return f"machine {self.machine}"

    def records(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.results.glob("journal/[!.]*.json")}

    def runs(self) -> bool:
        return self.driver is not None and self.driver.process.poll() is None

    def kill(self) -> tuple[str, str]:
        """Kill its driver; what that had said."""
        assert self.driver is not None
        self.driver.process.kill()
        said = self.driver.process.communicate()
        self.driver = None
        return said


class Chaos:
    """What breaks, and what came of it: `incidents` says what was done, `wrong` what should not
    have become of it."""

    def __init__(
        self, folder: Path, store: Store, disk: SmallDisk, *, nodes: int, seed: int
    ) -> None:
        self._nodes = nodes
        self._folder, self._store, self._disk = folder, store, disk
        self._random = random.Random(seed)
        self._machines = 0
        self._sweeps: list[Sweep] = []
        self._cluster: RayCluster
        self._stack = contextlib.ExitStack()
        self.incidents: list[str] = []
        self.wrong: list[str] = []
        self._faults: list[Callable[[], str | None]] = [
            self._worker_killed,
            self._worker_killed,
            self._node_killed,
            self._node_added,
            self._head_lost,
            self._server_down,
            self._database_killed,
            self._disk_full,
            self._clock_jumps,
            self._driver_killed,
            self._driver_moved,
            self._only_mlflow_left,
            self._second_driver,
            self._back_late,
        ]

    def run(self, faults: int, seeds: int) -> None:
        """So many faults over as many pairs of sweeps as they last for."""
        with self._stack, contextlib.closing(self):
            self._bring_up()
            number = 0
            while len(self.incidents) < faults:
                number += 1
                self._sweeps = [self._sweep(f"{side}-{number}", seeds) for side in ("one", "two")]
                while len(self.incidents) < faults and not all(s.over for s in self._sweeps):
                    self._look()
                    self._wait()
                    self._one_fault()
                for sweep in self._sweeps:
                    self._finish(sweep)

    def close(self) -> None:
        """End what still runs."""
        for sweep in self._sweeps:
            if sweep.runs():
                sweep.kill()

    # -- what is there ---------------------------------------------------------------------------

    def _bring_up(self) -> None:
        cluster = ray_cluster(self._folder, self._nodes, slots=1)
        self._cluster = self._stack.enter_context(cluster)

    def _sweep(self, name: str, seeds: int) -> Sweep:
        folder = self._folder / name
        folder.mkdir()
        results = self._disk.seen / name
        sweep = Sweep(folder, name, seeds, results)
        self._new_machine(sweep)
        sweep.driver = self._start(sweep)
        return sweep

    def _new_machine(self, sweep: Sweep) -> None:
        """The next driver is on a machine where no lock of an earlier one holds."""
        self._machines += 1
        sweep.machine = self._machines
        for name in ("driver.lock", "mlflow/writer.lock"):
            (sweep.results / name).unlink(missing_ok=True)

    def _start(self, sweep: Sweep) -> SweepProcess:
        through = self._disk.command(sweep.folder)
        return SweepProcess(
            sweep.folder,
            sweep.text,
            "--address",
            self._cluster.address,
            "--results",
            str(self._disk.folder),
            command=[*through, *command(sweep.folder, sweep.at)],
            **{**self._cluster.environment, **self._store.variables()},
        )

    # -- how it goes -----------------------------------------------------------------------------

    def _look(self) -> None:
        """Keep what is on record, and start again what has ended with something left to do."""
        for sweep in self._sweeps:
            self._keep(sweep)
            if sweep.driver is not None and not sweep.runs():
                sweep.over = self._ended(sweep) == 0
            if sweep.driver is None and not sweep.over:
                sweep.driver = self._start(sweep)

    def _ended(self, sweep: Sweep, *, headless: bool = False) -> int:
        """The exit code of a driver that has ended, or does so now. Where the cluster is `headless`
        one that was about to join it may say that nobody is there."""
        assert sweep.driver is not None
        code, out, errors = sweep.driver.end(PATIENCE)
        sweep.driver = None
        found_nobody = headless and code == 2 and "nobody listens there" in errors
        if not (code in (0, 1) or found_nobody) or "Traceback" in out + errors:
            self.wrong.append(f"{sweep.name} ended with {code}: {out[-3000:]} {errors[-3000:]}")
        return code

    def _keep(self, sweep: Sweep) -> None:
        """What is on record stays, and stays as it is."""
        now = sweep.records()
        for name, content in sweep.kept.items():
            if now.get(name) != content:
                self.wrong.append(f"{sweep.name}: record {name} changed or is gone")
        sweep.kept = now

    def _wait(self) -> None:
        """Until something was answered, and a moment longer; or for a while, whatever happens."""
        deadline = time.monotonic() + PATIENCE
        if self._random.random() < 0.6:
            before = sum(len(sweep.records()) for sweep in self._sweeps)
            while sum(len(sweep.records()) for sweep in self._sweeps) == before:
                if not any(sweep.runs() for sweep in self._sweeps):
                    return
                if time.monotonic() > deadline:
                    said = [sweep.kill() for sweep in self._sweeps if sweep.runs()]
                    self.wrong.append(f"nothing was answered for {PATIENCE:.0f} s: {said}")
                    raise AssertionError(self.wrong, self.incidents)
                time.sleep(0.05)
            time.sleep(self._random.uniform(0, 0.5))
        else:
            time.sleep(self._random.uniform(0, 4))

    def _one_fault(self) -> None:
        """One that is possible now."""
        for fault in self._random.sample(self._faults, len(self._faults)):
            what = fault()
            if what is not None:
                self.incidents.append(f"{fault.__name__.strip('_').replace('_', ' ')}: {what}")
                return

    def _finish(self, sweep: Sweep) -> None:
        """Nothing breaks any more: the same command comes to its end, and all is as it should
        be."""
        while len(self._cluster.nodes) < 2:
            self._cluster.add()
        for _ in range(TRIES):
            self._keep(sweep)
            sweep.driver = sweep.driver or self._start(sweep)
            code, out, errors = sweep.driver.end(PATIENCE)
            sweep.driver = None
            # What went wrong before may still be told; the command after it has nothing to tell.
            if code == 0 and "not in the store" not in out + errors:
                break
        else:
            self.wrong.append(f"{sweep.name} does not end: {out[-3000:]} {errors[-3000:]}")
            return
        self._keep(sweep)
        self.wrong += [f"{sweep.name}: {fault}" for fault in self._faults_of(sweep)]

    # -- what should be so -----------------------------------------------------------------------

    def _faults_of(self, sweep: Sweep) -> Iterator[str]:
        records = [json.loads(text)["record"] for text in sweep.records().values()]
        answers = Counter(one["id"] for one in records if one["status"] == "finished")
        if len(answers) != sweep.cells or set(answers.values()) != {1}:
            yield f"{len(answers)} cells have {sum(answers.values())} answers"
        client = MlflowClient(self._store.server.uri)
        experiment = client.get_experiment_by_name(sweep.name)
        if experiment is None:
            yield "MLflow knows nothing of it"
            return
        runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
        children = Counter(run.data.tags["cell_id"] for run in runs if "cell_id" in run.data.tags)
        if set(children) != set(answers) or set(children.values()) != {1}:
            yield f"{len(children)} cells have {sum(children.values())} runs"
        statuses = Counter(run.info.status for run in runs)
        if statuses != {"FINISHED": sweep.cells + 1}:
            yield f"runs by status: {dict(statuses)}"
        yield from self._other_tables(sweep)

    def _other_tables(self, sweep: Sweep) -> Iterator[str]:
        """Tables in which anything differs from those of a run to which nothing happened."""
        folder = self._folder / f"{sweep.name} in peace"
        folder.mkdir()
        quiet = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        code, out, errors = SweepProcess(folder, sweep.text, "--inline", **quiet).end(PATIENCE)
        if code != 0:
            yield f"without faults it ends with {code}: {out} {errors}"
            return
        calm = folder / "results" / sweep.name / "tables"
        for path in sorted(calm.glob("*.parquet")):
            mine, other = pq.read_table(sweep.results / "tables" / path.name), pq.read_table(path)
            if _constant(mine) != _constant(other):
                differing = [
                    name
                    for name in other.column_names
                    if name not in CHANGING and mine[name] != other[name]
                ]
                yield f"{path.name} differs in {differing}"

    # -- what happens: each says what it did, or None where it is not possible now ----------------

    def _working(self) -> Sweep | None:
        """A sweep that has a driver at work."""
        working = [sweep for sweep in self._sweeps if sweep.runs()]
        return self._random.choice(working) if working else None

    def _answering(self) -> Sweep | None:
        """One that is past its start, too."""
        sweep = self._working()
        return sweep if sweep is not None and sweep.records() else None

    def _worker_killed(self) -> str | None:
        raylets = [node.all_processes["raylet"][0].process.pid for node in self._cluster.nodes]
        workers = [
            process
            for pid in raylets
            for process in psutil.Process(pid).children()
            if (title := process.name()).startswith("ray::")
            # With an agent of Ray's its node would go.
            and not title.endswith(("IDLE", "Agent"))
        ]
        if not workers:
            return None
        victim = self._random.choice(workers)
        victim.kill()
        return f"process {victim.pid}"

    def _node_killed(self) -> str | None:
        if len(self._cluster.nodes) < 2:
            return None
        self._cluster.kill(self._random.choice(self._cluster.nodes))
        return f"{len(self._cluster.nodes)} are left"

    def _node_added(self) -> str | None:
        if len(self._cluster.nodes) >= self._nodes:
            return None
        self._cluster.add()
        return f"{len(self._cluster.nodes)} are there"

    def _head_lost(self) -> str | None:
        if self._random.random() < 0.5 or not all(s.records() for s in self._sweeps):
            return None
        self._cluster.kill_head()
        ends = [self._ended(one, headless=True) for one in self._sweeps if one.driver is not None]
        self._stack.close()
        self._bring_up()
        return f"the drivers ended with {ends}; a new cluster is up"

    def _server_down(self) -> str:
        seconds = self._random.uniform(0, 10)
        self._store.server.kill()
        time.sleep(seconds)
        self._store.server.start()
        return f"for {seconds:.1f} s and its start"

    def _database_killed(self) -> str:
        seconds = self._random.uniform(0, 5)
        self._store.postgres.kill()
        time.sleep(seconds)
        self._store.postgres.start()
        return f"for {seconds:.1f} s and its recovery"

    def _disk_full(self) -> str:
        seconds = self._random.uniform(0, 15)
        pages = self._random.randrange(0, 8)
        self._disk.fill(but_pages=pages)
        time.sleep(seconds)
        self._disk.empty()
        return f"but {pages} pages, for {seconds:.1f} s"

    def _clock_jumps(self) -> str | None:
        sweep = self._working()
        if sweep is None:
            return None
        seconds = self._random.choice((-1e6, -3600.0, -30.0, 30.0, 3600.0, 1e6))
        set_clock(sweep.folder, sweep.at, seconds)
        return f"{sweep.name} is {seconds:.0f} s off"

    def _driver_killed(self) -> str | None:
        sweep = self._working()
        if sweep is None:
            return None
        sweep.kill()
        return f"{sweep.name} at {len(sweep.records())} records"

    def _driver_moved(self) -> str | None:
        sweep = self._working()
        if sweep is None:
            return None
        sweep.kill()
        self._new_machine(sweep)
        return f"{sweep.name} goes on at {sweep.at}"

    def _only_mlflow_left(self) -> str | None:
        """What only the journal had is run again, and is nobody's fault."""
        sweep = self._answering()
        if sweep is None:
            return None
        sweep.kill()
        there = len(sweep.records())
        sweep.kept = {}
        shutil.rmtree(sweep.results)
        self._new_machine(sweep)
        return f"{sweep.name} lost a journal of {there}"

    def _second_driver(self) -> str | None:
        sweep = self._answering()
        if sweep is None or not (sweep.results / "leases").exists():
            return None
        code, out, errors = self._start(sweep).end(PATIENCE)
        # Where the first ended meanwhile, the second has driven.
        if code == 2 and (errors.count("\n") != 1 or "is working on this sweep" not in errors):
            self.wrong.append(f"a second driver ended with {code}: {out} {errors}")
        return f"{sweep.name}, it ended with {code}"

    def _back_late(self) -> str | None:
        """It stands still with its locks lost, another takes over, and then it goes on."""
        sweep = self._answering()
        if sweep is None:
            return None
        first = sweep.driver
        assert first is not None
        leases = len(list(sweep.results.glob("leases/*")))
        os.kill(first.process.pid, signal.SIGSTOP)
        self._new_machine(sweep)
        sweep.driver = self._start(sweep)
        with contextlib.suppress(AssertionError):  # it may end before it has taken over
            sweep.driver.patience = PATIENCE
            sweep.driver.wait_for(lambda: len(list(sweep.results.glob("leases/*"))) > leases)
        os.kill(first.process.pid, signal.SIGCONT)
        code, out, errors = first.end(PATIENCE)
        if "Traceback" in out + errors:
            self.wrong.append(f"who came back late ended with {code}: {out} {errors}")
        return f"{sweep.name}, it ended with {code}"


def _constant(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in table.column_names if name in CHANGING])
