"""What was seen of every planned cell in one environment: a median per plain metric, or the reason
why there is none."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.analysis.derived import DERIVED, MetricFacts, derive
from orchestrator.journal import Merged, merge
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from workloads import conditions
from workloads.cell import Cell


@dataclass(slots=True, kw_only=True)
class ObservedCell:
    """One planned cell with its merged records, None while it is pending.

    `medians` holds the median of the samples of every plain metric, measured or derived, in the
    metric's unit; `reasons` why a metric has no samples, or no verdict.
    """

    cell: Cell
    merged: Merged | None
    medians: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    elsewhere: bool = False
    """Pending here, but another environment has records of it."""

    def said(self, fact: str, metric: str) -> Any:
        """A fact of one metric, where it has its own, else of the cell; None where neither is on
        record."""
        facts = self.merged.facts if self.merged else {}
        return facts.get(conditions.fact(fact, metric), facts.get(fact))

    def condition(self, name: str, metric: str) -> float | None:
        """A condition under which a metric was timed; None where it is not on record."""
        facts = self.merged.facts if self.merged else {}
        value = facts.get(conditions.fact(name, metric))
        return float(value) if isinstance(value, int | float) else None

    @property
    def status(self) -> str:
        return "pending" if self.merged is None else str(self.merged.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The cells in the plan's order, and what the records say of every plain metric."""

    environment: str | None
    environments: Mapping[str, Mapping[str, Any]]
    cells: tuple[ObservedCell, ...]
    metrics: Mapping[str, MetricFacts]

    @property
    def compared(self) -> tuple[ObservedCell, ...]:
        """All but the trials of tuning, which are chosen from and never compared."""
        return tuple(seen for seen in self.cells if seen.cell.kind != "tune")


def observe(plan: Plan, envelopes: Sequence[Envelope]) -> Observed:
    """What `envelopes` say of the plan's cells in the environment of their newest records."""
    planned = {cell.id for cell in plan.cells}
    merged = merge(e for e in envelopes if e.record.cell.id in planned)
    environment = _newest_environment(merged)
    described = {fingerprint: found.environment for (_, fingerprint), found in merged.items()}
    known = {cell_id for cell_id, _ in merged}
    cells = tuple(
        _observe_cell(cell, merged.get((cell.id, environment or "")), cell.id in known)
        for cell in plan.cells
    )
    derive(cells)
    return Observed(
        environment=environment,
        environments={name: described[name].to_dict() for name in sorted(described)},
        cells=cells,
        metrics=_metrics(cells),
    )


def _newest_environment(merged: Mapping[tuple[str, str], Merged]) -> str | None:
    """The environment of the newest finished cell, else of the newest record of any status."""
    ordered = [
        (found.status == "finished", found.newest.order, fingerprint)
        for (_, fingerprint), found in merged.items()
    ]
    return max(ordered)[-1] if ordered else None


def _observe_cell(cell: Cell, merged: Merged | None, known: bool) -> ObservedCell:
    seen = ObservedCell(cell=cell, merged=merged, elsewhere=merged is None and known)
    for name, measurement in merged.measurements.items() if merged else ():
        if measurement.is_curve:
            continue
        if measurement.samples:
            seen.medians[name] = statistics.median(measurement.samples)
        if measurement.reason is not None:
            seen.reasons[name] = measurement.reason
    return seen


def _metrics(cells: Sequence[ObservedCell]) -> dict[str, MetricFacts]:
    """Every plain metric that was measured, then every derived one that came of it, by name."""
    found: dict[str, MetricFacts] = {}
    for seen in cells:
        for name, m in seen.merged.measurements.items() if seen.merged else ():
            if name not in found and not m.is_curve:
                found[name] = MetricFacts(m.title, m.unit, m.better, m.scale, m.deterministic)
    measured = dict(sorted(found.items()))
    named = {name for seen in cells for name in (*seen.medians, *seen.reasons)}
    return measured | {d.name: d.facts for d in DERIVED if d.name in named}
