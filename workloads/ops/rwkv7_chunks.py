"""WKV-7's chunked form, in one dtype; `workloads/ops/rwkv7.py` says what it computes.

It follows the delta rule's: u_i = a_i^T S_(i-1) solves one unit triangular system per chunk, linear
in the state before it. Decays are per channel and applied to rows as exp(G_i - G_m) and to columns
as exp(G_m - G_j), G the decays summed since the chunk's start and m its middle. That is one product
for all four matrices of a chunk, and safe because RWKV-7's decays are bounded: w is at least
-exp(-1/2), so no exponent passes 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.ops.chunks import chunk_of, from_chunks, solve_unit_lower, to_chunks

CHUNK = 32
"""Tokens a chunk at most; a power of two."""


def chunked_flops(length: int, heads: int, key_width: int, value_width: int) -> float:
    """Forward FLOPs of the chunked form for each of `length` tokens, those that pad the last chunk
    included: four C x C matrices, the triangular solve, three of them times values, and four
    products with the state."""
    chunk = chunk_of(length, CHUNK)
    padded = -(-length // chunk) * chunk
    in_chunk = 8 * chunk * key_width + chunk * (key_width + value_width) + 6 * chunk * value_width
    return padded / length * heads * (in_chunk + 8.0 * key_width * value_width)


def chunked(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`wkv7` of scaled r, with all tensors in one dtype."""
    length = v.shape[1]
    chunk = chunk_of(length, CHUNK)
    r, w, k, v, a, b = (to_chunks(x, chunk) for x in (r, w, k, v, a, b))
    total = w.cumsum(3)
    middle, last = total[..., (chunk - 1) // 2, None, :], total[..., -1:, :]
    rows = torch.cat((a * (total - w - middle).exp(), r * (total - middle).exp()), -2)
    columns = torch.cat((b, k), -2) * (middle - total).exp().repeat(1, 1, 1, 2, 1)
    # Removals see earlier tokens only, readings their own too: (2 C, 2 C), in four quarters.
    products = (rows @ columns.mT) * _visible(chunk, v)
    removing, reading = products.tensor_split(2, -2)
    solving, recalling = removing.tensor_split(2, -1)
    from_start = rows * middle.exp()
    weights, recalled = solve_unit_lower(-solving, from_start[..., :chunk, :], recalling @ v)
    closing = columns * (last - middle).exp()
    starts, removed, state = _carry(weights, recalled, v, closing.mT, last.exp().mT, state)
    output = from_start[..., chunk:, :] @ starts + reading @ torch.cat((removed, v), -2)
    return from_chunks(output, length), state


def _visible(chunk: int, like: Tensor) -> Tensor:
    """(2 C, 2 C) of ones and zeros: what removals (strictly earlier) and readings (their own token
    too) see of the removed and of the written."""
    ones = torch.ones(chunk, chunk, dtype=like.dtype, device=like.device)
    return torch.cat((ones.tril(-1), ones.tril()), 0).repeat(1, 2)


def _carry(
    weights: Tensor, recalled: Tensor, v: Tensor, closing: Tensor, decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Chunk after chunk: the state before each (N, B, H, Dk, Dv), the removals u, and the last
    state. Each product is one call over batch and heads together."""
    shape = state.shape
    at = state.flatten(0, 1)
    remove, write = closing.tensor_split(2, -1)
    written = write @ v
    starts, removals = [], []
    for weight, plus, key, new, kept in zip(
        *(x.flatten(1, 2).unbind(0) for x in (weights, recalled, remove, written, decay)),
        strict=True,
    ):
        starts.append(at)
        removed = torch.baddbmm(plus, weight, at)
        removals.append(removed)
        at = torch.baddbmm(torch.addcmul(new, at, kept), key, removed)
    removals_of_all = torch.stack(removals).view(v.shape)
    return torch.stack(starts).view(-1, *shape), removals_of_all, at.view(shape)
