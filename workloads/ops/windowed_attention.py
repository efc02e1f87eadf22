"""Softmax attention to the last tokens only, in blocks: a cost linear in the context.

Each block of queries sees itself and the keys just before it. Every product runs in torch's
`scaled_dot_product_attention`, with one mask of the size of a block for all blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.ops.attention import distance_behind, sdpa

SMALLEST_BLOCK = 16
"""Queries in a block of windowed attention, at least: smaller products cost more than they save."""


def block_size(window: int) -> int:
    """Queries in a block: as many as the window, where that is not too few."""
    return max(window, SMALLEST_BLOCK)


def attend_in_window(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, *, window: int
) -> Tensor:
    """Attention to the last `window` tokens, one's own included: 0 <= i - j < window.

    q (B, T, H, D), k and v (B, T, H_kv, D) -> (B, T, H, D); past_k, past_v (B, P, H_kv, D) are the
    P <= window - 1 tokens before. A block of `window` queries (at least 16) sees itself and the
    `window` keys before it; all whole blocks but the first go as one batch, so nothing here is
    quadratic in T.
    """
    batch, length, heads, width = q.shape
    size = block_size(window)
    if length <= size:
        return _banded(q, _after(past_k, k), _after(past_v, v), window)
    whole = length // size * size
    # Copies: a slice that is kept for backward would hold the whole projection.
    q_first, k_first, v_first = (x[:, :size].contiguous() for x in (q, k, v))
    outputs = [_banded(q_first, _after(past_k, k_first), _after(past_v, v_first), window)]
    if whole > size:
        rest = q[:, size:whole].reshape(-1, size, heads, width)
        keys, values = (_with_previous(x[:, :whole], size, window) for x in (k, v))
        mixed = _banded(rest, keys, values, window)
        outputs.append(mixed.reshape(batch, whole - size, heads, width))
    if whole < length:
        k_last, v_last = (x[:, whole - window :].contiguous() for x in (k, v))
        outputs.append(_banded(q[:, whole:].contiguous(), k_last, v_last, window))
    return torch.cat(outputs, 1)


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention of the last T of S tokens, within the window."""
    rows, seen = q.shape[1], k.shape[1]
    if seen == rows <= window:
        return sdpa(q, k, v, causal=True)
    distance = distance_behind(rows, seen, q.device)
    return sdpa(q, k, v, mask=(distance >= 0) & (distance < window))


def _with_previous(x: Tensor, size: int, window: int) -> Tensor:
    """(B, N size, H, D) -> ((N - 1) B, window + size, H, D): each block after the first, with the
    `window` tokens before it."""
    batch, _, heads, width = x.shape
    blocks = x.reshape(batch, -1, size, heads, width)
    return torch.cat((blocks[:, :-1, size - window :], blocks[:, 1:]), 2).flatten(0, 1)


def _after(past: Tensor, x: Tensor) -> Tensor:
    return torch.cat((past, x), 1) if past.shape[1] else x


def keys_per_query(length: int, window: int) -> float:
    """Keys that a query is multiplied with, mean over a context from its start: all of those
    before it in the first block, masked ones included in the others."""
    size = block_size(window)
    first = min(length, size)
    of_first = (first + 1) / 2 if first <= window else float(first)
    whole, rest = length // size * size, length % size if length > size else 0
    blocks = (whole - size) * (window + size) if length > size else 0
    return (first * of_first + blocks + rest * (window + rest)) / length
