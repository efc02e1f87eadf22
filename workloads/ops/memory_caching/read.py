"""The cached read: o_t = sum_i w_t(i) q_t S_i, with a hand-written backward.

As one product [w_1 q, ..., w_M q] [S_1; ...; S_M] for each group of segments. Autograd would keep
the scaled queries, T M Dk numbers; here they are made again, and memories that no token of the
group may see are left out of the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ROWS = 64
"""Tokens a product at least, so that short segments do not make many small ones."""


def weighted_read(weights: Tensor, q: Tensor, memories: Tensor, before: int) -> Tensor:
    """weights (B, H, N, C, M), q (B, H, N, C, Dk) -> (B, H, N, C, Dv).

    memories: (B, H, 1, M, Dk, Dv), shared by the segments, of which segment n sees the first before
    + n; or (B, H, N, M, Dk, Dv), each segment's own list.
    """
    if memories.shape[2] == 1:
        read: Tensor = _SharedRead.apply(weights, q, memories[:, :, 0], before)  # type: ignore[no-untyped-call]
        return read
    rows = (weights[..., None] * q[..., None, :]).flatten(-2)
    return rows @ memories.flatten(3, 4)


def _groups(segments: int, width: int, before: int, count: int) -> Iterator[tuple[int, int, int]]:
    """First and last segment of each product, and how many memories it has."""
    step = max(1, ROWS // width)
    for first in range(0, segments, step):
        last = min(first + step, segments)
        if seen := min(before + last - 1, count):
            yield first, last, seen


class _SharedRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, q: Tensor, memories: Tensor, before: int) -> Tensor:
        ctx.save_for_backward(weights, q, memories)
        ctx.before = before
        batch, heads, segments, width, count = weights.shape
        read = q.new_zeros((batch, heads, segments, width, memories.shape[-1]))
        for first, last, seen in _groups(segments, width, before, count):
            rows = _scaled(weights, q, first, last, seen)
            table = memories[:, :, :seen].flatten(2, 3)
            read[:, :, first:last] = torch.unflatten(rows @ table, 2, (last - first, width))
        return read

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weights, q, memories = ctx.saved_tensors
        segments, width, count = weights.shape[2:]
        d_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
        d_q = torch.zeros_like(q, memory_format=torch.contiguous_format)
        d_memories = torch.zeros_like(memories, memory_format=torch.contiguous_format)
        for first, last, seen in _groups(segments, width, ctx.before, count):
            rows = _scaled(weights, q, first, last, seen)
            table = memories[:, :, :seen].flatten(2, 3)
            out = grad[:, :, first:last].flatten(2, 3)
            d_memories[:, :, :seen] += torch.unflatten(rows.mT @ out, 2, (seen, q.shape[-1]))
            d_rows = torch.unflatten(out @ table.mT, 3, (seen, q.shape[-1]))
            d_rows = torch.unflatten(d_rows, 2, (last - first, width))
            part = q[:, :, first:last, :, None]
            d_weights[:, :, first:last, :, :seen] = (d_rows * part).sum(-1)
            d_q[:, :, first:last] = (d_rows * weights[:, :, first:last, :, :seen, None]).sum(-2)
        return d_weights, d_q, d_memories, None


def _scaled(weights: Tensor, q: Tensor, first: int, last: int, seen: int) -> Tensor:
    """(B, H, (last - first) C, seen Dk)."""
    part = weights[:, :, first:last, :, :seen, None] * q[:, :, first:last, :, None]
    return part.flatten(4).flatten(2, 3)
