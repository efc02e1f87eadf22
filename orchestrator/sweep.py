"""The spine: what is not answered yet is executed, journalled, recorded, and said, in that order.

    plan -> pending cells -> execute -> (cell, record) -> journal -> store writer -> progress

`execute` runs cells anywhere and hands records back one by one; nothing hears of a record before it
is on disk; the store follows the journal in a process of its own and may be down.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from orchestrator import provenance
from orchestrator.answers import Answers
from orchestrator.cost import CostModel
from orchestrator.full_disk import patiently
from orchestrator.journal import Journal
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from workloads.cell import Cell
from workloads.environment import Environment
from workloads.record import RunRecord

Execute = Callable[[Sequence[Cell]], Iterator[tuple[Cell, RunRecord]]]


class Follower(Protocol):
    """Whatever follows the journal: it is only told that there is something new."""

    def notify(self) -> None: ...


class Watcher(Protocol):
    """Whoever watches the sweep."""

    def answered(self, cell: Cell, record: RunRecord) -> None: ...

    def say(self, text: str) -> None: ...


def run_sweep(
    plan: Plan,
    journal: Journal,
    execute: Execute,
    *,
    epoch: int,
    model: CostModel,
    follower: Follower,
    watcher: Watcher,
    environments: Mapping[str, Environment] | None = None,
) -> Answers:
    """Run every cell of the plan that its journal does not answer; how it stands afterwards.

    Resuming, extending and repeating are all this same call. A cell that fails is tried again by
    the next call, up to a limit (`journal.MAX_ATTEMPTS`). `epoch` is the number of this driver's
    lease, greater than that of any record in the journal. Scheduling waits while a record cannot be
    stored. `environments`, by device class, are those of the machines that run the cells (default:
    this one's).

    Raises:
        LeaseLost: another driver has taken over; nothing more was written.
        DiskFull: a record could not be stored in time; all others are.
    """
    answers = Answers.of(plan, journal.read(), environments)
    sequence = itertools.count(1)
    attempts = Counter({cell.id: _attempts(answers, cell) for cell in plan.cells})
    for cell, record in execute(answers.pending()):
        attempts[cell.id] += 1
        envelope = Envelope(
            record=record,
            key=provenance.new_key(cell.id),
            sweep=plan.name,
            spec_hash=plan.spec_hash,
            attempt=attempts[cell.id],
            epoch=epoch,
            sequence=next(sequence),
            node=record.node or provenance.node_name(),
            source=provenance.source(),
            prediction=model.predict(cell),
            ceilings=model.rates.ceilings if model.probed else None,
        )
        patiently(partial(journal.append, envelope), journal.folder, watcher.say)
        follower.notify()
        watcher.answered(cell, record)
    return Answers.of(plan, journal.read(), environments)


def _attempts(answers: Answers, cell: Cell) -> int:
    known = answers.known(cell)
    return 0 if known is None else len(known.envelopes)
