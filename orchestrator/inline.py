"""Execute cells without Ray, one after another, each still in its own child."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from orchestrator.budget import BUDGET_SPENT, Budget
from orchestrator.isolation import Isolation, is_cut_short
from orchestrator.runtime import cores_for, keep_off
from workloads.cell import Cell
from workloads.record import RunRecord


def run_inline(
    cells: Sequence[Cell],
    isolation: Isolation,
    *,
    cores: Sequence[int],
    budget: Budget | None = None,
) -> Generator[tuple[Cell, RunRecord], None, None]:
    """Answer the cells in order, as far as the budget goes. `cores` are the machine's; measure
    cells are pinned to the last, and this process keeps off those meanwhile."""
    budget = budget or Budget()
    try:
        for cell in cells:
            if budget.exhausted:
                return
            own = cores_for(cell, cores)
            keep_off(own if cell.kind == "measure" else (), cores)
            record = _within(budget.left(), cell, isolation, own)
            budget.add(record)
            yield cell, record
    finally:
        keep_off((), cores)


def _within(seconds: float, cell: Cell, isolation: Isolation, own: Sequence[int]) -> RunRecord:
    """The cell's record; a lost one where this end of the budget came before the cell's own."""
    record = isolation.run_cell(cell, cores=own, seconds=seconds)
    if not is_cut_short(record, seconds=seconds):
        return record
    return replace(record, status="lost", measurements=(), message=BUDGET_SPENT)
