"""The plan of a sweep: its cells in order, without duplicates, and what they are compared for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.search import Search
from workloads.cell import KINDS, Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """The one comparison the report opens with; the baseline is the comparison's own."""

    challenger: str
    metric: str
    batch_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared: every other label against `baseline`, with the contexts of interest in
    `zone`."""

    baseline: str
    zone: tuple[int, int]
    primary: Primary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered, duplicate-free cells of one sweep file, and the hash of what it says.

    `spec_yaml` is the file's own text; `token_unit` is what a length counts (`bytes`, `BPE
    tokens`); `labels` are the architectures in the file's order, which the cells are not in;
    `references` are those of them that are no candidates (the shell without a mixer), measured for
    what all others share. `searches` are those of tuning, as far as they have come; cells that wait
    for them are open (`Cell.is_open`): planned, and not to be run yet.
    """

    name: str
    question: str
    spec_hash: str
    spec_yaml: str
    token_unit: str
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    comparison: Comparison
    references: tuple[str, ...] = ()
    searches: tuple[Search, ...] = ()

    def groups(self) -> dict[tuple[str, str], list[Cell]]:
        """Cells by (kind, label), in the file's order: what tables for people have as rows."""
        found: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.kind, cell.label), []).append(cell)
        order = [(kind, label) for kind in KINDS for label in self.labels]
        return {group: found[group] for group in dict.fromkeys([*order, *found]) if group in found}

    def pending(self, missing: Callable[[Cell], tuple[str, ...]]) -> list[Cell]:
        """The cells that can be run and still have to be, each narrowed to the metrics that
        `missing` names for it."""
        narrowed = ((cell, missing(cell)) for cell in self.cells if not cell.is_open)
        return [
            # The very same cell where nothing is narrowed: it knows its id already.
            cell if metrics == cell.metrics else cell.asking(metrics)
            for cell, metrics in narrowed
            if metrics
        ]
