"""What a clause looks at: the two sides of a comparison, and what their records say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.blocks import Block
from orchestrator.analysis.derived import TIMED
from orchestrator.analysis.observations import ObservedCell
from orchestrator.search import Search

TIMES = ("s", "1/s")
"""Units of metrics that a clock gives."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its cells of the block that have records, and the searches that said how it
    is trained."""

    label: str
    row: int
    cells: tuple[ObservedCell, ...]
    searches: tuple[Search, ...]

    def facts(self, name: str, metric: str = "") -> set[Any]:
        """What its records say of something, of a metric if it has a say of its own, without those
        that do not."""
        return {seen.said(name, metric) for seen in self.cells} - {None}


@dataclass(frozen=True, slots=True)
class Compared:
    """A challenger and the baseline in a block."""

    block: Block
    challenger: Side
    baseline: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.challenger, self.baseline

    @property
    def clocked(self) -> str:
        """The metric whose clock gives the block's: itself, or what it derives from."""
        return TIMED.get(self.block.metric, self.block.metric)

    @property
    def is_timed(self) -> bool:
        return self.block.kind == "measure" and self.block.facts.unit in TIMES


Outcome = tuple[bool | None, str]
"""Whether a clause holds, None where the records do not tell; and its figure."""
Clause = Callable[[Compared], Outcome | None]
"""None where it does not concern the comparison."""
