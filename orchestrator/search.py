"""A search for how an architecture trains best, as far as it has come: its trials, and what it
chose. Plain values, so that tables, figures and the certificate can be made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from workloads.cell import Cell
from workloads.measurement import Better

Setting = Mapping[str, float]
"""Learning rate, weight decay, ... by name."""
Stage = Literal["range", "sampler", "halving", "widened", "check"]
"""Where a trial's setting comes from: evenly from the range; Optuna's sampler; the better half of
the trials before, for twice their tokens; the range widened on the side where the optimum lay at
its end; or the rate chosen, its half and its double at a length that is trained at."""
Edge = Literal["low", "high"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One cell of kind `tune`. `value` is its metric once it is answered, None where it has no
    samples for a `reason` (a rate too high diverges), or is not answered yet."""

    cell: Cell
    stage: Stage
    value: float | None = None
    reason: str | None = None

    @property
    def answered(self) -> bool:
        return self.value is not None or self.reason is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One label, size and length. `low` and `high` bound the learning rates tried, the range as it
    was widened; `chosen` is None until all trials are answered, and where none has a value."""

    label: str
    size: int
    seq_len: int
    metric: str
    better: Better
    low: float
    high: float
    trials: tuple[Trial, ...]
    chosen: Setting | None = None
    fitted: bool = False
    """The chosen rate is the vertex of a parabola fitted to the last trials, not one of them."""
    at_edge: Edge | None = None
    """The best rate lies at this end of the range, also after that was widened."""
    widened: bool = False
    is_check: bool = False

    @property
    def better_beside(self) -> Literal["half", "double"] | None:
        """Of a check, whose trials are half the rate, the rate and its double: which of the two
        is the best of the three. None where the rate is, or nothing has a value."""
        if not self.is_check or len(self.trials) != 3:
            return None
        sign = 1.0 if self.better == "smaller" else -1.0
        half, rate, double = (
            math.inf if trial.value is None else sign * trial.value for trial in self.trials
        )
        if rate <= min(half, double):
            return None
        return "half" if half <= double else "double"

    @property
    def tokens(self) -> int:
        """Spent by all its trials."""
        return sum(trial.cell.tokens or 0 for trial in self.trials)
