"""The fairness certificate: what a fair comparison has, clause by clause, each with its figure.

A clause holds, fails, or is not known (null) where the records do not tell. One that fails forbids
no verdict; it is printed beside it, for the reader to weigh.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from orchestrator.analysis.blocks import BEST, Block
from orchestrator.analysis.certificate import implementation, timing, training
from orchestrator.analysis.certificate.compared import Clause, Compared, Side
from orchestrator.analysis.observations import Observed, ObservedCell
from orchestrator.search import Search

KERNEL_CLASS = "kernel class"
CLAUSES: dict[str, Clause] = {
    "parameters": implementation.parameters,
    "FLOPs per token": implementation.flops,
    "data order": training.data_order,
    "training tokens": training.tokens,
    "tuning budget": training.budget,
    "optimum inside the range": training.inside,
    KERNEL_CLASS: implementation.kernel_class,
    "precision": implementation.precision,
    "device": implementation.device,
    "clocks": timing.clocks,
    "device busy": timing.busy,
    "noise": timing.noise,
    "quiet machine": timing.quiet,
}

_Cells = dict[tuple[str, str, int, str], list[ObservedCell]]
"""With records, by label, task, size and device."""


def rows(
    blocks: tuple[Block, ...],
    baseline: str,
    observed: Observed,
    references: Collection[str] = (),
    searches: Collection[Search] = (),
) -> list[dict[str, object]]:
    """The rows of the `certificate` table: the clauses of each challenger in each block.
    `references` are labels that are no candidates and have no rows; `searches` are those of
    tuning."""
    cells: _Cells = {}
    for seen in observed.compared:
        if seen.merged is not None:
            cell = seen.cell
            cells.setdefault((cell.label, cell.task, cell.size, cell.device), []).append(seen)
    return [
        compared.block.key
        | {
            "environment": observed.environment,
            "baseline": baseline,
            "challenger": compared.challenger.label,
            "clause": clause,
            "holds": outcome[0],
            "figure": outcome[1],
        }
        for compared in _comparisons(blocks, baseline, cells, searches)
        if compared.challenger.label not in references
        for clause, examine in CLAUSES.items()
        if (outcome := examine(compared)) is not None
    ]


def _comparisons(
    blocks: tuple[Block, ...], baseline: str, cells: _Cells, searches: Collection[Search]
) -> Iterator[Compared]:
    """Every challenger of every block that the baseline is part of, as in `pairs`."""
    for block in blocks:
        if baseline not in block.labels or block.facts.scale == "share":
            continue
        theirs = _side(block, block.labels.index(baseline), cells, searches)
        for row in range(len(block.labels)):
            ours = _side(block, row, cells, searches)
            if row != theirs.row and ours.cells and theirs.cells:
                yield Compared(block, ours, theirs)


def _side(block: Block, row: int, cells: _Cells, searches: Collection[Search]) -> Side:
    label = block.labels[row]
    mine = [
        seen
        for seen in cells.get((label, block.task, block.size, block.device), [])
        if (seen.cell.kind, seen.cell.batch) == (block.kind, block.batch)
        and block.execution in (None, BEST, seen.cell.execution)
    ]
    searched = tuple(s for s in searches if (s.label, s.size) == (label, block.size))
    return Side(label, row, tuple(mine), searched)
