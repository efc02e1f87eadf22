"""One sweep through a random schedule of faults, repeatable by its seed.

A driver here is a thread that uses the real lease, journal, ledger, follower and store, on the
double of MLflow's client and a simulated world that answers. One runs at a time. At a boundary (an
fsync, a rename, the creation of a file, a call of the client; before it or after) it may be killed,
after which it does nothing more to any file or store, or stand still and come back late. Not in
here: standing still in the instant between the question whether one may write and the write that it
allows, which no file system and no MLflow makes one act.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from orchestrator import artifact_path, child_run, durable, journal, lease
from orchestrator.adoption import take_over
from orchestrator.cost import CostModel
from orchestrator.errors import LeaseLost, StoreError
from orchestrator.follower import StoreWriter
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from orchestrator.results import Results
from orchestrator.store import MlflowStore
from orchestrator.store.connection import _Allowed
from orchestrator.sweep import run_sweep
from tests.mlflow_double import MlflowDouble
from tests.simulated_world import ENVIRONMENT, SimulatedWorld
from workloads.cell import Cell
from workloads.record import RunRecord, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST = 160
"""Boundaries that a driver without faults comes to, or a few more."""
ENVIRONMENTS = {ENVIRONMENT.device: ENVIRONMENT}


class Killed(BaseException):
    """SIGKILL, as far as a thread can have it: no file and no store hears of it again."""


class Driver(threading.Thread):
    """One driver's process: `kill_at` and `late_at` number the boundary at which it is killed, or
    stands still."""

    def __init__(self, body: Callable[[Driver], None], kill_at: int = 0, late_at: int = 0) -> None:
        super().__init__(daemon=True)
        self._body, self._kill_at, self._late_at = body, kill_at, late_at
        self._go, self._still = threading.Event(), threading.Event()
        self.boundaries = 0
        self.dead = self.late = False
        self.error: BaseException | None = None

    def proceed(self) -> None:
        """Let it run until it has ended, or stands still."""
        self._still.clear()
        if self.late:
            self.late = False
            self._go.set()
        else:
            self.start()
        self._still.wait()
        if not self.late:
            self.join()

    def run(self) -> None:
        try:
            self._body(self)
        except (Killed, LeaseLost):
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._still.set()

    def alive(self) -> None:
        if self.dead:
            raise Killed

    def boundary(self, *, may_stand: bool) -> None:
        self.alive()
        self.boundaries += 1
        if self.boundaries == self._kill_at:
            self.dead = True
            raise Killed
        if may_stand and self._late_at and self.boundaries >= self._late_at:
            self._late_at, self.late = 0, True
            self._still.set()
            self._go.wait()
            self._go.clear()
            self.alive()


def _driver() -> Driver | None:
    thread = threading.current_thread()
    return thread if isinstance(thread, Driver) else None


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a boundary before it and one after it, for drivers."""

    def bounded(*arguments: Any, **options: Any) -> Any:
        driver = _driver()
        if driver is None:
            return function(*arguments, **options)
        driver.boundary(may_stand=False)
        result = function(*arguments, **options)
        try:
            driver.boundary(may_stand=True)
        except Killed:
            if function is _OPEN:
                os.close(result)
            raise
        return result

    return bounded


def _living(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which a dead driver does not come to."""

    def living(*arguments: Any, **options: Any) -> Any:
        if (driver := _driver()) is not None:
            driver.alive()
        return function(*arguments, **options)

    return living


_OPEN = os.open


def bound(patch: pytest.MonkeyPatch) -> None:
    """Put boundaries around all that drivers write."""
    for place, name in ((os, "fsync"), (os, "open"), (Path, "rename"), (durable, "sync")):
        patch.setattr(place, name, _bounded(getattr(place, name)))
    patch.setattr(journal, "sync", durable.sync)
    for name in ("open", "write_bytes", "unlink", "mkdir"):
        patch.setattr(Path, name, _living(getattr(Path, name)))
    # Beats are of other tests; nobody watches here, for no two drivers run at once.
    patch.setattr(lease, "BEAT_SECONDS", 3600.0)
    patch.setattr(lease, "WATCH_SECONDS", 0.0)


class Client:
    """A client of the double, over a network: each call is a boundary, and may find nobody."""

    def __init__(self, server: MlflowDouble) -> None:
        self._server = server
        self._calls = 0
        self.up = False
        self.down: list[range] = []

    def __getattr__(self, name: str) -> Any:
        return _bounded(lambda *arguments, **options: self._call(name, arguments, options))

    def _call(self, name: str, arguments: Any, options: Any) -> Any:
        self._calls += 1
        if not self.up and any(self._calls in window for window in self.down):
            raise ConnectionRefusedError("connection refused")
        return getattr(self._server, name)(*arguments, **options)


@dataclass(kw_only=True)
class Schedule:
    """What has become of one sweep; `faults` says, in words, what should not have."""

    seed: int
    folder: Path
    plan: Plan
    world: SimulatedWorld
    model: CostModel
    faults: list[str] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.server = MlflowDouble(self.folder / "artifacts")
        self.client = Client(self.server)
        self._clock = 1_700_000_000.0
        self._generation = 0
        ends: tuple[Status, ...] = "failed", "lost"
        self._failing: dict[str, list[Status]] = {
            cell.id: [self.random.choice(ends) for _ in range(self.random.randint(1, 2))]
            for cell in self.plan.cells
            if self.random.random() < 0.25
        }

    @property
    def results(self) -> Results:
        return Results(self.folder / str(self._generation) / self.plan.name)

    # -- what a driver does ----------------------------------------------------------------------

    def drive(self, driver: Driver) -> None:
        """As the verb `sweep` does, with the store's writer in the same thread."""
        results, said = self.results, list[str]()
        with results.locked() as held:
            own = results.journal(held.check)
            store = MlflowStore("http://double", self.plan.name, results.folder, held.check)
            connection: Any = store._connection
            connection._client = _Allowed(cast("MlflowClient", self.client), held.check)
            # A machine that cannot ask would have to run again what only MLflow has.
            self.client.up = True
            take_over(own, store, held, said.append)
            self.client.up = False
            answered = {
                one["record"]["id"]
                for one in self._journalled().values()
                if one["record"]["status"] == "finished"
            }
            writer = StoreWriter(store, own, self.plan, results.folder, said.append, held.check)
            with writer:
                run_sweep(
                    self.plan,
                    own,
                    lambda cells: self._execute(cells, answered),
                    epoch=held.number,
                    model=self.model,
                    follower=_Following(writer, self.random),
                    watcher=_Watching(said),
                    environments=ENVIRONMENTS,
                )
                any(writer.catch_up() for _ in range(3))
                writer.end()
                try:
                    store.finish(self.plan, {"step/lstm": [(128, 0.5)]}, results.folder)
                except StoreError as error:
                    said.append(str(error))

    def _execute(
        self, cells: Sequence[Cell], answered: set[str]
    ) -> Iterator[tuple[Cell, RunRecord]]:
        for cell in cells:
            if cell.id in answered:
                self.faults.append(f"{cell.id[:8]} was executed though its record was there")
            self._clock += self.random.choice((1.0, 1.0, 5.0, -4000.0, 4000.0, -1e7))
            record = replace(self.world.answer(cell), started_at=self._clock)
            if self._failing.get(cell.id):
                status = self._failing[cell.id].pop()
                record = replace(record, status=status, measurements=(), message="it broke")
            yield cell, record

    # -- what happens to drivers -----------------------------------------------------------------

    def run(self) -> None:
        """Some drivers with faults, then one without, then all that come back late."""
        late: list[Driver] = []
        for _ in range(self.random.randint(1, 3)):
            late += self._leg()
            if late and self.random.random() < 0.3:
                self._come_back(late.pop(self.random.randrange(len(late))))
            self._move(late)
        self.client.down, self._failing = [], {}
        last = Driver(self.drive)
        self._proceed(last, "the last")
        before = self._written()
        for driver in late:
            self._come_back(driver)
        if self._written() != before:
            self.faults.append("a driver that came back late wrote something")

    def _leg(self) -> list[Driver]:
        """One driver, and what happens to it; those that stand still now."""
        at = self.random.randint(1, LONGEST)
        kill = self.random.random() < 0.6
        if self.random.random() < 0.4:
            start = self.client._calls + self.random.randint(0, 60)
            self.client.down = [range(start, start + self.random.randint(1, 25))]
        driver = Driver(self.drive, *((at, 0) if kill else (0, at)))
        self._proceed(driver, f"{'killed' if kill else 'late'} at {at}")
        return [driver] if driver.late else []

    def _come_back(self, driver: Driver) -> None:
        self._proceed(driver, "comes back")

    def _proceed(self, driver: Driver, what: str) -> None:
        driver.proceed()
        self.incidents.append(f"{what} (now {driver.boundaries})")
        if driver.error is not None:
            self.faults.append(f"{type(driver.error).__name__}: {driver.error}")
        self._keep()

    def _move(self, late: list[Driver]) -> None:
        """Where the next driver runs: here, on another machine with the same folder, or on one with
        nothing but MLflow; nobody comes back from a machine that is gone."""
        place = self.random.random()
        if place < 0.2:
            for driver in late:
                driver.dead = True
                self._come_back(driver)
            late.clear()
            self.incidents.append("only MLflow is left")
            self._generation += 1
            self.kept = dict(self.stored)
        elif late or place < 0.5:
            self.incidents.append("on another machine")
            for name in ("driver.lock", "mlflow/writer.lock"):
                (self.results.folder / name).unlink(missing_ok=True)

    # -- what should be so -----------------------------------------------------------------------

    def _keep(self) -> None:
        """What was on record, in the journal or in the store, is so for ever and does not
        change."""
        there, stored = self._journalled(), self._stored()
        for what, known, now in (("journal", self.kept, there), ("store", self.stored, stored)):
            for key, content in known.items():
                # What only the store has is in the journal as soon as a driver has taken over.
                if (key in now or what == "store") and now.get(key) != content:
                    self.faults.append(f"{what}: {key} changed or is gone")
            known.update(now)

    def _journalled(self) -> dict[str, Any]:
        """The records in the journal, by their keys, past all that reads it."""
        files = self.results.journal().folder.glob("[!.]*.json")
        return {path.stem: json.loads(path.read_bytes()) for path in files}

    def _stored(self) -> dict[str, Any]:
        """The records that can be read from the store alone, by their keys."""
        found: dict[str, Any] = {}
        for run in self._children():
            tags = run.data.tags
            folder = artifact_path.local_folder(run.info.artifact_uri)
            assert folder is not None
            path = folder / child_run.RECORD_FILE
            content = path.read_bytes() if path.exists() else b""
            digests = tags.get(child_run.RECORD_TAG), tags.get(child_run.NEXT_RECORD_TAG)
            if child_run.sha256(content) in digests:
                newest = json.loads(content)
                for one in (*newest.pop("earlier"), newest):
                    found[one["key"]] = one
        return found

    def _children(self) -> list[Any]:
        runs = self.server.runs.values()
        return [run for run in runs if "cell_id" in run.data.tags and _is_active(run)]

    def _written(self) -> tuple[Any, ...]:
        """All but its own lease, and what was never finished, which its driver takes away."""
        places = [self.results.journal().folder, self.results.folder / "mlflow"]
        files = sorted(path for place in places for path in place.glob("[!.]*"))
        return (
            [(path, path.read_bytes()) for path in files],
            [(run.info.status, run.data.tags) for run in self.server.runs.values()],
        )

    def envelopes(self) -> list[Envelope]:
        return self.results.journal().read()

    def check(self) -> None:
        """At the end: every cell answered once, in one run, and nothing RUNNING."""
        there, children = self._journalled(), self._children()
        cells = sorted(cell.id for cell in self.plan.cells)
        records = [one["record"] for one in there.values()]
        active = [one.info for one in self.server.runs.values() if _is_active(one)]
        found = {
            "cells finished": (
                sorted(r["id"] for r in records if r["status"] == "finished"),
                cells,
            ),
            "cells with a run": (sorted(run.data.tags["cell_id"] for run in children), cells),
            "statuses of runs": ({info.status for info in active}, {"FINISHED"}),
            "records in the store": (self._stored(), there),
            "records kept": ({key: there.get(key) for key in self.kept}, self.kept),
        }
        self.faults += [what for what, (seen, expected) in found.items() if seen != expected]


def _is_active(run: Any) -> bool:
    return bool(run.info.lifecycle_stage == "active")


class _Following:
    """The store's writer, which gets to it now and then."""

    def __init__(self, writer: StoreWriter, random_: random.Random) -> None:
        self._writer, self._random = writer, random_

    def notify(self) -> None:
        if self._random.random() < 0.4:
            self._writer.catch_up()


class _Watching:
    def __init__(self, said: list[str]) -> None:
        self._said = said

    def answered(self, cell: Cell, record: RunRecord) -> None:
        self._said.append(f"{record.status}: {cell.id[:8]}")

    def say(self, text: str) -> None:
        self._said.append(text)
