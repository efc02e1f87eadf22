"""The delta rule: a state matrix that is corrected towards each value instead of added to.

    S~ = exp(g_t) S_(t-1)      u_t = beta_t (v_t - S~^T k_t)      S_t = S~ + k_t u_t^T
    o_t = scale q_t^T S_t

Without a decay g it is DeltaNet's (Yang et al. 2024, "Parallelizing Linear Transformers with the
Delta Rule over Sequence Length"), with one per head and token Gated DeltaNet's (Yang et al. 2024,
"Gated Delta Networks"), with one per key channel Kimi Delta Attention's (Kimi Team 2025, "Kimi
Linear"). Keys should have unit length; then beta = 1 replaces what the state holds at k_t.

The chunked form is the UT transform of those papers: within a chunk all corrections u solve one
unit triangular system whose right-hand side is linear in the state before the chunk,

    (I + tril(diag(beta) A, -1)) u = diag(beta) (v - (k exp(G)) S)
    A_ij = k_i^T exp(G_i - G_j) k_j

with G the decays summed since the chunk's start, so u = u_0 - w S with u_0 and w solved for all
chunks at once. Only S goes from chunk to chunk. Every exponent is of a sum of log decays, never of
its negative, so that nothing overflows however strong the decay.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops import delta_rule_kernels as kernels
from workloads.ops.precision import without_autocast

Backend = Literal["torch", "fla"]

CHUNK = 32
"""Tokens a chunk at most; a power of two. At heads of 64 channels a chunk of 64 takes 15 % longer
on a CPU, with or without decays."""
NORM_EPS = 1e-6
"""Added to a key's squared length, as in fla's kernels."""


def chunk_of(length: int, most: int = CHUNK) -> int:
    """Tokens a chunk where `length` tokens come: `most`, or the next power of two to fewer."""
    return min(most, 1 << (length - 1).bit_length())


def to_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, T, H, ...) -> (N, B, H, chunk, ...), with zeros after the last token. Contiguous."""
    batch, length, heads, *rest = x.shape
    if padding := -length % chunk:
        x = F.pad(x, (0, 0) * (len(rest) + 1) + (0, padding))
    x = x.reshape(batch, -1, chunk, heads, *rest)
    return x.permute(1, 0, 3, 2, *range(4, x.ndim)).contiguous()


def from_chunks(x: Tensor, length: int) -> Tensor:
    """(N, B, H, chunk, D) -> (B, length, H, D), the inverse of `to_chunks`."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]


def unit_length(x: Tensor) -> Tensor:
    """x / |x| along the last dimension, in float32 or wider; a zero vector stays zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """`gated_delta_rule` without a decay; see there."""
    return _delta_rule(q, k, v, None, beta, scale, initial_state, backend)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """All tokens at once, continuing from `initial_state` (zeros where None).

    q, k: (B, T, H, Dk), k of unit length. v: (B, T, H, Dv). log_decay: (B, T, H) or (B, T, H, Dk),
    at most 0. beta: (B, T, H), in (0, 1), or (0, 2) for negative eigenvalues. T is at least 1.
    Returns the outputs (B, T, H, Dv) in v's dtype and the last state (B, H, Dk, Dv) in float32 or
    wider.

    Raises:
        Unsupported: backend "fla" without its package, or where its kernel refuses dtype, width or
            device.
    """
    return _delta_rule(q, k, v, log_decay, beta, scale, initial_state, backend)


def delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    *,
    scale: float,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token: q, k (B, H, Dk), v (B, H, Dv), log_decay None, (B, H) or (B, H, Dk), beta (B, H),
    state (B, H, Dk, Dv). Returns the output (B, H, Dv) in v's dtype, and a new state."""
    dtype = state.dtype
    with without_autocast(v):
        if log_decay is not None:
            decay = log_decay.to(dtype).exp()
            state = state * (decay[..., None, None] if decay.ndim == 2 else decay[..., None])
        key = k.to(dtype)
        recalled = (key.unsqueeze(-2) @ state).squeeze(-2)
        write = beta.to(dtype)[..., None] * (v.to(dtype) - recalled)
        state = torch.addcmul(state, key.unsqueeze(-1), write.unsqueeze(-2))
        output = ((q.to(dtype) * scale).unsqueeze(-2) @ state).squeeze(-2)
    return output.to(v.dtype), state


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loop as the formula reads, one token after another. For tests."""
    state = initial_state
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    outputs = []
    for t in range(v.shape[1]):
        if log_decay is not None:
            decay = log_decay[:, t].exp()
            state = state * (decay if decay.ndim == 3 else decay[..., None])[..., None]
        recalled = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        write = beta[:, t, :, None] * (v[:, t] - recalled)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], write)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1), state


def chunked_flops(
    length: int, heads: int, key_width: int, value_width: int, *, per_channel: bool = False
) -> float:
    """Forward FLOPs of the chunked form for each of `length` tokens, those that pad the last chunk
    included: two C x C matrices (with a decay per channel just the blocks below their diagonals),
    the triangular solve, three products with the state and one with the corrections."""
    chunk = chunk_of(length)
    padded = -(-length // chunk) * chunk
    matrices = max(0, 2 * (chunk - 2)) if per_channel else 4 * chunk
    in_chunk = key_width * matrices + chunk * (key_width + value_width) + 2 * chunk * value_width
    return padded / length * heads * (in_chunk + 6.0 * key_width * value_width)


def _delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    if backend == "fla":

        def own(
            q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            return _delta_rule(q, k, v, gate, beta, scale, None, "torch")

        return kernels.fused(own, q, k, v, log_decay, beta, scale, initial_state)
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        q, k, beta, values = q.to(dtype), k.to(dtype), beta.to(dtype), v.to(dtype)
        if initial_state is None:
            shape = (v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
            initial_state = torch.zeros(shape, dtype=dtype, device=v.device)
        if log_decay is not None:
            log_decay = log_decay.to(dtype)
        output, state = _chunked(q, k, values, log_decay, beta, scale, initial_state)
    return output.to(v.dtype), state


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    scale: float,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    length, key_width = v.shape[1], k.shape[-1]
    per_channel = log_decay is not None and log_decay.ndim == 4
    chunk = chunk_of(length)
    q, k, v = to_chunks(q * scale, chunk), to_chunks(k, chunk), to_chunks(v, chunk)
    beta = to_chunks(beta, chunk).unsqueeze(-1)
    decay: Tensor | None = None
    if log_decay is None:
        keys, seen, reading, closing = k @ k.mT, (q @ k.mT).tril(), q, k
        before = k
    else:
        total = to_chunks(log_decay, chunk).cumsum(3)
        if per_channel:
            keys, seen = _channel_products(q, k, total)
        else:
            total = total.unsqueeze(-1)
            since = _differences(total.squeeze(-1)).exp()
            keys, seen = (k @ k.mT) * since, (q @ k.mT) * since
        from_start, last = total.exp(), total[..., -1:, :]
        before, reading = k * from_start, q * from_start
        closing = k * (last - total).exp()
        decay = last.exp().mT
    # Only what lies below the diagonal is read, so that nothing has to be masked.
    solved = torch.linalg.solve_triangular(
        keys * beta,
        torch.cat((before * beta, v * beta), -1),
        upper=False,
        unitriangular=True,
    )
    removed, written = solved.split((key_width, v.shape[-1]), -1)
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


def _differences(total: Tensor) -> Tensor:
    """(..., C) -> (..., C, C): the decays summed from token j (without) to token i (with), -inf
    where j comes after i."""
    chunk = total.shape[-1]
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=total.device).triu(1)
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, -torch.inf)


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
