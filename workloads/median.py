"""How well the median of a sample is known, whatever its distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache


def interval_width(samples: Sequence[float]) -> float:
    """Of the 95 % interval of the median by order statistics (David and Nagaraja 2003, "Order
    Statistics", 7.1), relative to the median; infinite where there are too few for one."""
    rank = _rank(len(samples))
    if rank == 0:
        return math.inf
    ordered = sorted(samples)
    middle = ordered[len(ordered) // 2]
    return (ordered[-rank] - ordered[rank - 1]) / middle if middle else math.inf


@cache
def _rank(count: int) -> int:
    """The largest k of which the k-th smallest and the k-th largest of `count` draws have the
    median between them with 95 %; 0 where there is none."""
    outside, rank = 0.0, 0
    while True:
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 0.05:
            return rank
        rank += 1
