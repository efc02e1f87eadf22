"""The summary: each label's median over replicates at each context, with its 95 % interval.

The interval is Student's t on the replicates' logarithms (on the values where a metric is compared
by difference, or is not positive). With five replicates an interval from order statistics reaches
93.75 % at most, so a distribution has to be assumed; logs of independent processes' medians are
near normal. It is widened to hold the median where it would not, and that of an accuracy ends at 0
and 1.

Where a replicate only succeeds or fails, the share that succeeds stands in the median's place, with
its binomial interval (Wilson 1927).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from orchestrator.analysis.blocks import Block
from orchestrator.analysis.statistics import Floats, mean_interval, wilson
from workloads.measurement import Better, Scale


def rows(blocks: tuple[Block, ...], environment: str | None) -> list[dict[str, object]]:
    """The rows of the `summary` table: every planned point of every block."""
    return [
        _row(block, i, j, environment)
        for block in blocks
        for i, j in np.argwhere(block.planned).tolist()
    ]


def _row(block: Block, i: int, j: int, environment: str | None) -> dict[str, object]:
    label = block.labels[i]
    values = block.values[i, j][np.isfinite(block.values[i, j])]
    centre, low, high = estimate(values, block.facts)
    return block.key | {
        "label": label,
        "architecture": block.architectures[label],
        "seq_len": block.contexts[j],
        "unit": block.facts.unit,
        "median": centre,
        "low": low,
        "high": high,
        "replicates": len(values),
        "reason": block.reasons[i][j],
        "kind": block.kind,
        "title": block.facts.title,
        "better": block.facts.better,
        "scale": block.facts.scale,
        "deterministic": block.facts.deterministic,
        "environment": environment,
        "implementation": block.implementations[label],
        "trivial": block.trivial[j],
    }


class _Facts(Protocol):
    """What a metric says of itself."""

    @property
    def unit(self) -> str: ...
    @property
    def better(self) -> Better: ...
    @property
    def scale(self) -> Scale: ...


def estimate(values: Floats, facts: _Facts) -> tuple[float | None, float | None, float | None]:
    """The centre of `values` with its 95 % interval, as far as there are any."""
    if not len(values):
        return None, None, None
    if facts.scale == "share":
        return float(values.mean()), *wilson(int(values.sum()), len(values))
    low, high = interval(values, logs=facts.scale == "ratio")
    if low is not None and high is not None and _is_part(values, facts):
        low, high = max(low, 0.0), min(high, 1.0)
    return float(np.median(values)), low, high


def _is_part(values: Floats, facts: _Facts) -> bool:
    """Whether the metric is a part of a whole, such as an accuracy: more than all there cannot
    be."""
    counted = (facts.unit, facts.scale, facts.better) == ("1", "difference", "greater")
    return counted and bool(((values >= 0) & (values <= 1)).all())


def interval(values: Floats, *, logs: bool) -> tuple[float | None, float | None]:
    """The 95 % interval of the centre of `values`; nothing for fewer than two, unless all agree."""
    if len(values) and values.min() == values.max():
        return float(values[0]), float(values[0])
    logs = logs and bool((values > 0).all())
    low, high = mean_interval(np.log(values) if logs else values)
    if low is None or high is None:
        return None, None
    if logs:
        low, high = float(np.exp(low)), float(np.exp(high))
    median = float(np.median(values))
    return min(low, median), max(high, median)
