"""Logarithmic segmentation: finished memories merge like the digits of a binary counter.

After n finished segments, digit l of n is set where a memory of 2^l segments is held. The next
segment's memory is added to digit 0; where that was set, the two merge into digit 1, and so on
(Behrouz et al. 2026, section on segmentation, read per position as a Fenwick tree).
"""

from __future__ import annotations

import torch
from torch import Tensor


def digits(finished: int) -> list[bool]:
    """Which digits of the counter are set, lowest first."""
    return [bool(finished >> level & 1) for level in range(finished.bit_length())]


def carry(held: Tensor, new: Tensor, finished: int, share: float) -> None:
    """Add the segment after `finished` ones to held (B, H, levels, ...), in place. A merged memory
    is `share` times the sum of the two: 1 for sums, 1/2 for means."""
    level = 0
    while finished >> level & 1:
        new = (new + held[:, :, level]) * share
        level += 1
    held[:, :, level] = new


def binary_counter(
    held: Tensor | None, new: list[Tensor], finished: int, share: float
) -> tuple[Tensor, Tensor]:
    """What each of len(new) + 1 successive segments sees, new[n] being finished after the n-th.

    held: (B, H, levels, ...) after `finished` segments. Returns (B, H, len(new) + 1, M, ...) and
    which are visible, bool (len(new) + 1, M), where M is the highest number of digits.
    """
    count = (finished + len(new)).bit_length()
    current: list[Tensor | None] = [None] * count
    if held is not None:
        for level, here in enumerate(digits(finished)):
            current[level] = held[:, :, level] if here else None
    rows, visible = [list(current)], [finished]
    for memory in new:
        level, merged = 0, memory
        while (other := current[level]) is not None:
            merged, current[level] = (merged + other) * share, None
            level += 1
        current[level] = merged
        rows.append(list(current))
        visible.append(visible[-1] + 1)
    known = next((m for row in rows for m in row if m is not None), None)
    mask = torch.tensor(
        [[bool(n >> level & 1) for level in range(count)] for n in visible], device="cpu"
    )
    if known is None:
        return torch.empty(0), mask
    nothing = torch.zeros_like(known)
    flat = [nothing if m is None else m for row in rows for m in row]
    return torch.unflatten(torch.stack(flat, 2), 2, (len(rows), count)), mask
