"""Values by distance, in buckets that double."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def by_doubling(
    distance: NDArray[np.integer[Any]], values: NDArray[Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """In each of the buckets 1, 2, 3-4, 5-8, 9-16, ... of distances (N,): the largest distance, and
    the mean of the values (N,)."""
    bucket = np.ceil(np.log2(distance)).astype(int)
    found = np.unique(bucket)
    return (
        tuple(float(distance[bucket == b].max()) for b in found),
        tuple(float(values[bucket == b].mean()) for b in found),
    )


def doubling_to(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]
