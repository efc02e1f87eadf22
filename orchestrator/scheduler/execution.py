"""Cells in, (cell, record) out: the sweep's cells on a Ray runtime that is up."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator import runtime
from orchestrator.budget import BUDGET_SPENT, Budget
from orchestrator.errors import EngineLost
from orchestrator.scheduler import placement
from orchestrator.scheduler.nodes import Say
from orchestrator.scheduler.session import RaySession
from orchestrator.scheduler.tune_run import MAX_WORKER_FAILURES, Event, TuneRun
from orchestrator.scheduler.watch import Watch
from orchestrator.scheduler.worker import Assignment
from workloads import environment
from workloads.cell import KINDS, Cell
from workloads.record import RunRecord

TICK_SECONDS = 1.0
IDLE_SECONDS = 60.0
"""After so long without a running cell a person is told what is being waited for."""

Answer = tuple[Cell, RunRecord]


def run_on_ray(
    cells: Sequence[Cell],
    session: RaySession,
    *,
    peak_bytes: Callable[[Cell], int],
    budget: Budget | None = None,
    say: Say = lambda text: None,
) -> Generator[Answer, None, None]:
    """Answer the cells: measure cells first, each with a whole device to itself; then those that
    train, which share devices by the memory they are predicted to peak at; then again, alone, those
    of them that needed more.

    Closing it stops what runs and leaves no process behind.

    Raises:
        EngineLost: the cluster went away.
    """
    session.joined()
    crew = _Crew(session, budget or Budget(), say)
    for measured in (True, False):
        if session.folder is not None:
            runtime.keep_off((), session.cores, session.folder)
        chosen = [cell for cell in cells if (cell.kind == "measure") == measured]
        if measured and chosen:
            crew.mention_small_nodes(chosen[0].device)
        yield from crew.answer([crew.assign(cell, peak_bytes(cell)) for cell in chosen])


def width(
    cells: Sequence[Cell], session: RaySession, peak_bytes: Callable[[Cell], int]
) -> dict[str, int]:
    """How many cells of each kind run side by side: of those that train, as many as of the
    largest."""
    found: dict[str, int] = dict.fromkeys(KINDS, 1)
    for kind in found:
        shares = [
            placement.asked(cell, peak_bytes(cell), session.nodes)
            for cell in cells
            if cell.kind == kind
        ]
        if shares:
            largest = max(shares, key=lambda share: share.of_device)
            found[kind] = max(1, placement.slots(largest, session.nodes))
    return found


@dataclass(slots=True)
class _Wave:
    """The cells of one Tune run: which are open, held by a node that may not run them, crowded out,
    given up by Tune before their time, placed with a worker, or running since when."""

    open: dict[str, Assignment]
    held: dict[str, Assignment] = field(default_factory=dict)
    crowded: dict[str, Assignment] = field(default_factory=dict)
    again: dict[str, Assignment] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)
    running: dict[str, float] = field(default_factory=dict)

    def costs(self) -> list[tuple[float, float]]:
        """(seconds so far, share) of what runs; a refused cell holds its place and runs not."""
        now = time.monotonic()
        return [
            (now - since, self.open[cell_id].share.of_device)
            for cell_id, since in self.running.items()
            if cell_id in self.open and cell_id not in self.held
        ]


class _Crew:
    """Runs waves of cells until all are answered, or the budget is."""

    def __init__(self, session: RaySession, budget: Budget, say: Say) -> None:
        self._session, self._budget, self._say = session, budget, say
        self._excluded = session.unfit
        self._watch = Watch(session)
        self._deaths: Counter[str] = Counter()
        self._given_up: Counter[str] = Counter()

    def assign(self, cell: Cell, peak_bytes: int) -> Assignment:
        return Assignment(cell, placement.asked(cell, peak_bytes, self._session.nodes))

    def mention_small_nodes(self, device: str) -> None:
        number = placement.too_small(device, self._session.nodes)
        if number:
            self._say(f"{number} nodes run no measure cells: they have half the largest's cores")

    def answer(self, assignments: Sequence[Assignment]) -> Iterator[Answer]:
        todo = list(assignments)
        while todo and not self._budget.exhausted:
            wave = yield from self._wave(todo)
            alone = [Assignment(one.cell, self._whole(one.cell)) for one in wave.crowded.values()]
            todo = [*wave.held.values(), *wave.again.values(), *alone]

    def _whole(self, cell: Cell) -> placement.Share:
        return placement.whole_device(cell.device, self._session.nodes)

    def _wave(self, todo: Sequence[Assignment]) -> Generator[Answer, None, _Wave]:
        wave = _Wave({one.cell.id: one for one in todo})
        idle_since: float | None = time.monotonic()
        with TuneRun(todo, self._session, self._excluded) as run:
            while any(cell_id not in wave.held for cell_id in wave.open):
                event = run.next(TICK_SECONDS)
                if event is not None and (answer := self._take(wave, event)) is not None:
                    yield self._counted(answer)
                try:
                    self._watch.look()
                except EngineLost:
                    run.abandon()
                    raise
                if self._budget.left(wave.costs()) <= 0:
                    yield from self._stopped(wave)
                    return _Wave({})
                idle_since = self._mention_idleness(wave, idle_since)
        return wave

    def _take(self, wave: _Wave, event: Event) -> Answer | None:
        """What an event says of the wave; a record where a cell is answered by it."""
        if event.over:
            self._watch.explain()
            raise RuntimeError(f"Ray Tune stopped: {event.error}") from event.error
        cell_id = event.cell_id
        if event.placed:
            wave.placed.add(cell_id)
        if event.started:
            wave.running[cell_id] = time.monotonic()
        said, assignment = event.said or {}, wave.open.get(cell_id)
        self._deaths[cell_id] += cell_id in wave.running and (event.retried or event.died)
        answer = None
        # A worker that dies after it answered is an error to Tune, but its cell is answered.
        if assignment is not None:
            if "record" in said:
                answer = assignment.cell, RunRecord.from_dict(json.loads(said["record"]))
            elif "crowded" in said:
                wave.crowded[cell_id] = wave.open.pop(cell_id)
                self._say(f"{assignment.cell.label}: more memory than predicted; runs again alone")
            elif said.get("refused"):
                self._refuse(wave, cell_id, said["node"], said["refused"])
            elif event.died and (why := self._given_up_for(cell_id)):
                answer = assignment.cell, self._lost(wave, cell_id, why)
            elif event.died:
                wave.again[cell_id] = wave.open.pop(cell_id)
        if answer is not None:
            del wave.open[cell_id]
        if (event.retried and cell_id in wave.open) or (event.died and cell_id in wave.again):
            self._say("the worker of a cell died; another one runs it again")
        if event.ended:
            self._account(wave, cell_id)
        return answer

    def _given_up_for(self, cell_id: str) -> str | None:
        """Why a cell that Tune gives up is lost; None where it has not had its tries.

        Tune gives up early: at the second news of one death, and where nodes that it does not know
        to be dead yet are given the cell again and again.
        """
        self._given_up[cell_id] += 1
        if self._deaths[cell_id] > MAX_WORKER_FAILURES:
            return f"its worker died {self._deaths[cell_id]} times"
        if self._given_up[cell_id] > MAX_WORKER_FAILURES:
            return f"no worker for it could be kept alive, in {self._given_up[cell_id]} rounds"
        return None

    def _account(self, wave: _Wave, cell_id: str) -> None:
        """An attempt has ended. One that no record tells of has used up device time, too."""
        wave.placed.discard(cell_id)
        since, assignment = wave.running.pop(cell_id, None), wave.open.get(cell_id)
        assignment = assignment or wave.crowded.get(cell_id) or wave.again.get(cell_id)
        if since is not None and assignment is not None and cell_id not in wave.held:
            self._budget.spent += (time.monotonic() - since) * assignment.share.of_device
        # Where a refusing node died, its cell is tried elsewhere by Tune itself.
        wave.held.pop(cell_id, None)

    def _refuse(self, wave: _Wave, cell_id: str, node: str, why: str) -> None:
        wave.held[cell_id] = wave.open[cell_id]
        if node not in self._excluded:
            self._excluded |= {node}
            self._say(f"a node that joined runs no cells of this sweep: {why}")

    def _counted(self, answer: Answer) -> Answer:
        self._budget.add(answer[1])
        return answer

    def _stopped(self, wave: _Wave) -> Iterator[Answer]:
        """What the end of the budget cut off: it took device time, so it is on record."""
        for cell_id in wave.running.keys() & wave.open.keys() - wave.held.keys():
            record = self._lost(wave, cell_id, BUDGET_SPENT)
            yield self._counted((wave.open[cell_id].cell, record))

    def _lost(self, wave: _Wave, cell_id: str, message: str) -> RunRecord:
        """The record of a cell that no worker has answered."""
        assignment = wave.open[cell_id]
        now = time.monotonic()
        seconds = now - wave.running.get(cell_id, now)
        return RunRecord(
            cell=assignment.cell,
            status="lost",
            environment=self._session.environment or environment.describe(assignment.cell.device),
            started_at=time.time() - seconds,
            seconds=seconds,
            message=message,
            device_share=assignment.share.of_device,
        )

    def _mention_idleness(self, wave: _Wave, since: float | None) -> float | None:
        """Say, once, that cells wait for a cluster's room; when the waiting began."""
        if self._session.head is None or wave.placed - wave.held.keys():
            return time.monotonic()
        if since is None or time.monotonic() - since < IDLE_SECONDS:
            return since
        self._say(f"{len(wave.open)} cells wait: no node has room for one")
        return None
