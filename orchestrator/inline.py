"""Execute cells without Ray, one after another, each still in its own child."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.isolation import Isolation
from orchestrator.runtime import cores_for, keep_off
from workloads.cell import Cell
from workloads.record import RunRecord


def run_inline(
    cells: Sequence[Cell], isolation: Isolation, *, cores: Sequence[int]
) -> Iterator[tuple[Cell, RunRecord]]:
    """Answer the cells in order. `cores` are the machine's; measure cells are pinned to the last,
    and this process keeps off those meanwhile."""
    try:
        for cell in cells:
            own = cores_for(cell, cores)
            keep_off(own if cell.kind == "measure" else (), cores)
            yield cell, isolation.run_cell(cell, cores=own)
    finally:
        keep_off((), cores)
