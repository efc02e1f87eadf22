"""The delta rule's chunked form, in one dtype; `workloads/ops/delta_rule.py` says what it computes.

It is the UT transform of the papers named there: within a chunk all corrections u solve one unit
triangular system whose right-hand side is linear in the state before the chunk,

    (I + tril(diag(beta) A, -1)) u = diag(beta) (v - (k exp(G)) S)
    A_ij = k_i^T exp(G_i - G_j) k_j

with G the decays summed since the chunk's start, so u = u_0 - w S with u_0 and w solved for all
chunks at once. Only S goes from chunk to chunk. Every exponent is of a sum of log decays, never of
its negative, so that nothing overflows however strong the decay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.ops.chunks import chunk_of, from_chunks, solve_unit_lower, to_chunks

CHUNK = 32
"""Tokens a chunk at most; a power of two. At heads of 64 channels a chunk of 64 takes 15 % longer
on a CPU, with or without decays."""


def chunked_flops(
    length: int, heads: int, key_width: int, value_width: int, *, per_channel: bool = False
) -> float:
    """Forward FLOPs of the chunked form for each of `length` tokens, those that pad the last chunk
    included: two C x C matrices (with a decay per channel just the blocks below their diagonals),
    the triangular solve, three products with the state and one with the corrections."""
    chunk = chunk_of(length, CHUNK)
    padded = -(-length // chunk) * chunk
    matrices = max(0, 2 * (chunk - 2)) if per_channel else 4 * chunk
    in_chunk = key_width * matrices + chunk * (key_width + value_width) + 2 * chunk * value_width
    return padded / length * heads * (in_chunk + 6.0 * key_width * value_width)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`delta_rule`, with all tensors in one dtype."""
    length = v.shape[1]
    chunk = chunk_of(length, CHUNK)
    q, k, v = to_chunks(q * scale, chunk), to_chunks(k, chunk), to_chunks(v, chunk)
    beta = to_chunks(beta, chunk).unsqueeze(-1)
    decay: Tensor | None = None
    if log_decay is None:
        keys, seen, opening, reading, closing = k @ k.mT, (q @ k.mT).tril(), k, q, k
    else:
        total = to_chunks(log_decay, chunk).cumsum(3)
        if log_decay.ndim == 4:
            keys, seen = _channel_products(q, k, total)
        else:
            total = total.unsqueeze(-1)
            keys, seen = _head_products(q, k, total)
        from_start, last = total.exp(), total[..., -1:, :]
        opening, reading = k * from_start, q * from_start
        closing = k * (last - total).exp()
        decay = last.exp().mT
    removed, written = solve_unit_lower(keys * beta, opening * beta, v * beta)
    starts, writes, state = _carry(removed, written, closing.mT, decay, state)
    return from_chunks(reading @ starts + seen @ writes, length), state


def _carry(
    removed: Tensor, written: Tensor, closing: Tensor, decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Chunk after chunk: the state before each (N, B, H, Dk, Dv), the corrections u, and the last
    state. Each product is one call over batch and heads together."""
    shape = state.shape
    at = state.flatten(0, 1)
    starts, writes = [], []
    decays = (None,) * removed.shape[0] if decay is None else decay.flatten(1, 2).unbind(0)
    for minus, plus, key, kept in zip(
        removed.flatten(1, 2).unbind(0),
        written.flatten(1, 2).unbind(0),
        closing.flatten(1, 2).unbind(0),
        decays,
        strict=True,
    ):
        starts.append(at)
        write = torch.baddbmm(plus, minus, at, alpha=-1)
        writes.append(write)
        at = torch.baddbmm(at if kept is None else at * kept, key, write)
    states = torch.stack(starts).view(-1, *shape)
    return states, torch.stack(writes).view(written.shape), at.view(shape)


def _head_products(q: Tensor, k: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """x_i^T k_j exp(G_i - G_j) for j <= i, for x = k and for x = q: (..., C, C) each. G, (..., C,
    1), is one for all channels."""
    chunk, at = total.shape[-2], total.squeeze(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=at.device).triu(1)
    since = (at.unsqueeze(-1) - at.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()
    return (k @ k.mT) * since, (q @ k.mT) * since


def _channel_products(q: Tensor, k: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """sum_d x_id k_jd exp(G_id - G_jd) for j <= i, for x = k and for x = q: (..., C, C) each.

    By doubling: in a block of 2h tokens the later half meets the earlier through x times the decays
    since the middle and k times the decays up to it.
    """
    chunk = k.shape[-2]
    rows = torch.stack((k, q))
    products = (rows * k).sum(-1)[..., None, None]  # (2, ..., blocks, 1, 1)
    half = 1
    while half < chunk:
        earlier = _halves(k, half)[0]
        later = _halves(rows, half)[1]
        left, right = _halves(total, half)
        middle = left[..., -1:, :]
        queries = later * (right - middle).exp()
        keys = earlier * (middle - left).exp()
        across = (queries * keys).sum(-1, keepdim=True) if half == 1 else queries @ keys.mT
        first, second = products[..., 0::2, :, :], products[..., 1::2, :, :]
        products = torch.cat(
            (
                torch.cat((first, torch.zeros_like(first)), -1),
                torch.cat((across, second), -1),
            ),
            -2,
        )
        half *= 2
    keys_with, queries_with = products.squeeze(-3).unbind(0)
    return keys_with, queries_with


def _halves(x: Tensor, half: int) -> tuple[Tensor, ...]:
    """(..., C, D) -> the first and the second halves of all blocks of 2 half tokens, each (...,
    blocks, half, D)."""
    return x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1]).unbind(-3)
