"""How far a plan is answered on a machine: which cells are still to be run, failed, or given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator import journal, provenance
from orchestrator.journal import Merged
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from workloads import environment, registry
from workloads.cell import Cell
from workloads.environment import Environment


@dataclass(frozen=True, slots=True)
class Answers:
    """A plan held against its records, in the environments it would be run in."""

    plan: Plan
    merged: Mapping[tuple[str, str], Merged]
    versions: Mapping[str, int]
    environments: Mapping[str, Environment]

    @classmethod
    def of(
        cls,
        plan: Plan,
        envelopes: Iterable[Envelope],
        environments: Mapping[str, Environment] | None = None,
    ) -> Answers:
        """`environments`, by device class, are those of the machines that run the cells; without
        them `expected_environments` says."""
        envelopes = list(envelopes)
        devices = {cell.device for cell in plan.cells}
        found = environments or expected_environments(devices, envelopes)
        asked = {(cell.task, name) for cell in plan.cells for name in cell.metrics}
        return cls(
            plan=plan,
            merged=journal.merge(envelopes),
            versions={name: registry.metric(task, name).version for task, name in asked},
            environments={device: found[device] for device in devices},
        )

    def known(self, cell: Cell) -> Merged | None:
        """All records of the cell in this environment, merged; None where there are none."""
        return self.merged.get((cell.id, self.environments[cell.device].fingerprint))

    def missing(self, cell: Cell) -> tuple[str, ...]:
        """Metrics of the cell still to be measured; none means answered."""
        return journal.missing(cell, self.known(cell), self.versions)

    def exhausted(self, cell: Cell) -> bool:
        """True where the cell failed as often as it may with these limits and this code."""
        return journal.exhausted(self.known(cell), cell, provenance.source().hash)

    def pending(self) -> list[Cell]:
        """What a driver would run now, in the plan's order, narrowed to missing metrics."""
        return [cell for cell in self.plan.pending(self.missing) if not self.exhausted(cell)]

    def status(self, cell: Cell) -> str:
        """`finished`, `failed`, `lost` or `pending`: what stands in the cells table."""
        if not self.missing(cell):
            return "finished"
        known = self.known(cell)
        return known.status if known is not None and known.status != "finished" else "pending"

    def counts(self) -> Counter[str]:
        """Cells by status."""
        return Counter(self.status(cell) for cell in self.plan.cells)

    def elsewhere(self) -> int:
        """Cells that only another environment has answered: kept, never mixed with these."""
        finished = {
            cell_id for (cell_id, _), one in self.merged.items() if one.status == "finished"
        }
        return sum(self.known(cell) is None and cell.id in finished for cell in self.plan.cells)

    def other_sources(self) -> int:
        """Answered cells whose workloads' source differed from today's."""
        now = provenance.source().hash
        answered = (self.known(cell) for cell in self.plan.cells if not self.missing(cell))
        return sum(one is not None and one.newest.source.hash != now for one in answered)

    def remarks(self) -> list[str]:
        """What a count does not show, in sentences."""
        waiting = sum(cell.is_open for cell in self.plan.cells)
        given_up = sum(bool(self.missing(c)) and self.exhausted(c) for c in self.plan.cells)
        elsewhere, changed = self.elsewhere(), self.other_sources()
        return [
            f"{cells(number)} {what}"
            for number, what in (
                (waiting, "wait for tuning to say with which settings they are trained"),
                (given_up, "failed as often as allowed; other code or limits start anew"),
                (elsewhere, "answered in another environment only; they are kept apart"),
                (changed, "answered by other source code than today's"),
            )
            if number
        ]


def cells(number: int) -> str:
    """`1 cell`, `12 cells`."""
    return f"{number:,} cell{'' if number == 1 else 's'}"


def expected_environments(
    devices: Iterable[str], envelopes: Iterable[Envelope]
) -> dict[str, Environment]:
    """Where cells of these classes would run, as far as can be said here: on this machine; where it
    has no such accelerator, on whatever the newest record of the class ran on."""
    newest = newest_environments(envelopes)
    return {
        device: environment.describe(device)
        if environment.is_here(device) or device not in newest
        else newest[device]
        for device in devices
    }


def newest_environments(envelopes: Iterable[Envelope]) -> dict[str, Environment]:
    """What the newest record of each device class ran in."""
    ordered = journal.in_order(envelopes)
    return {one.record.cell.device: one.record.environment for one in ordered}
