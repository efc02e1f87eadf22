"""Execute cells without Ray, one after another, each still in its own child."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.isolation import Isolation
from orchestrator.runtime import measure_cores
from workloads.cell import Cell
from workloads.events import Event
from workloads.record import RunRecord


def run_inline(
    cells: Sequence[Cell],
    *,
    cores: Sequence[int],
    on_event: Callable[[Cell, Event], None] = lambda cell, event: None,
) -> Iterator[tuple[Cell, RunRecord]]:
    """Answer the cells in order. `cores` are the machine's; measure cells are pinned to the
    last."""
    with Isolation() as isolation:
        for cell in cells:
            pinned = measure_cores(cell.device, cores) if cell.kind == "measure" else cores
            record = isolation.run_cell(
                cell, cores=pinned, on_event=lambda event, cell=cell: on_event(cell, event)
            )
            yield cell, record
