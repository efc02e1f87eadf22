"""A measurement: one metric of one cell as raw samples with their unit, or the reason why there are
none.

Samples are kept, never means, so that intervals and derived metrics need no rerun. Absence is a
reason, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Reason = Literal["out_of_memory", "diverged", "timeout", "unsupported", "undertrained"]
Better = Literal["smaller", "greater"]
Scale = Literal["ratio", "difference", "share"]
"""How two architectures are compared: by log ratio; by difference where a value is bounded or can
be zero; or, where a replicate only succeeds (1) or fails (0), by the shares that succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric of one cell.

    Plain metrics have `samples` only. A curve over training has `steps` beside them (update
    numbers); a curve over another coordinate (position, distance, ...) names it in `coordinate` and
    has its values in `at`.
    `deterministic` metrics have no noise: taken in the first round, they hold for every round.
    `memory_bytes` is the cap it was measured under, where it is a measurement of what a cap allows.
    `detail` says in words what `reason` cannot, for example the figures at which a limit was
    reached.
    """

    metric: str
    version: int
    unit: str
    title: str
    better: Better = "smaller"
    scale: Scale = "ratio"
    deterministic: bool = False
    samples: tuple[float, ...] = ()
    steps: tuple[int, ...] | None = None
    coordinate: str | None = None
    at: tuple[float, ...] | None = None
    reason: Reason | None = None
    detail: str | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.samples):
            raise ValueError(f"{self.metric}: a sample is not finite; say `diverged` instead")
        if not self.samples and self.reason is None:
            raise ValueError(f"{self.metric}: neither samples nor a reason why not")
        if self.scale == "share" and not set(self.samples) <= {0.0, 1.0}:
            raise ValueError(
                f"{self.metric}: a replicate succeeds (1) or fails (0), nothing between"
            )
        for name, along in (("steps", self.steps), ("at", self.at)):
            if along is not None and len(along) != len(self.samples):
                raise ValueError(
                    f"{self.metric}: {len(along)} {name} for {len(self.samples)} samples"
                )
        if (self.coordinate is None) != (self.at is None):
            raise ValueError(f"{self.metric}: a coordinate and its values go together")

    @property
    def is_curve(self) -> bool:
        return self.steps is not None or self.coordinate is not None

    def to_dict(self) -> dict[str, Any]:
        content = ((name, getattr(self, name)) for name in _FIELDS)
        return {name: value for name, value in content if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_dict` wrote, also after a trip through JSON. Raises
        ValueError."""
        values = dict(data)
        for name in ("samples", "steps", "at"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"measurement is not readable: {error}") from None


_FIELDS = tuple(one.name for one in fields(Measurement))
