"""The mLSTM's cell with exponential gates: a matrix memory, its normaliser and their common scale.

    m_t = max(log sigmoid(f_t) + m_(t-1), i_t)
    C_t = exp(log sigmoid(f_t) + m_(t-1) - m_t) C_(t-1) + exp(i_t - m_t) k_t v_t^T
    n_t = the same with k_t in place of k_t v_t^T
    h_t = scale C_t^T q_t / (max(|scale n_t . q_t|, exp(-m_t)) + eps)

Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", equations 19 to 27; eps as in the
authors' kernels. m only keeps the exponentials small: but for eps, no output depends on it.

The chunkwise parallel form (as in Beck et al. 2025, "Tiled Flash Linear Attention") is exact,
because m unrolls: with F_t the sum of log forget gates since the chunk began and a_s = i_s - F_s,
m_t - F_t = max(m before the chunk, a_1 ... a_t), a running maximum. All weights are then
exponentials of a difference to that maximum, so none is above 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops.gated_linear import chunk_length
from workloads.ops.precision import without_autocast

EPS = 1e-6
"""Added to the denominator."""
_LARGEST = {torch.float32: 80.0, torch.float64: 700.0}
"""Exponents whose exponentials are well within a dtype's range."""


class Memory(NamedTuple):
    """matrix: (B, H, Dk, Dv). normaliser: (B, H, Dk). scale: (B, H), the m of the formula. The
    memory proper is exp(scale) times what matrix and normaliser hold. float32 or wider."""

    matrix: Tensor
    normaliser: Tensor
    scale: Tensor


def empty_memory(
    batch: int, heads: int, key: int, value: int, device: torch.device, dtype: torch.dtype
) -> Memory:
    """Zeros, m among them, in dtype or float32, the wider: what the recurrence begins with."""
    dtype = torch.promote_types(dtype, torch.float32)
    shapes = ((batch, heads, key, value), (batch, heads, key), (batch, heads))
    return Memory(*(torch.zeros(shape, device=device, dtype=dtype) for shape in shapes))


def products_per_token(length: int, heads: int, key: int, value: int) -> float:
    """FLOPs of the chunked form's matrix products for one of `length` tokens: multiply-adds x 2,
    the padding of the last chunk included."""
    count, chunk = _chunks(length, key, value)
    within = 2 * chunk * (key + value)
    write_and_read = 4 * key * value + 2 * key
    return heads * (within + write_and_read) * (count * chunk / length)


def saved_per_token(length: int, heads: int, key: int, value: int) -> float:
    """Elements that the chunked form keeps for backward for one of `length` tokens: three C x C
    matrices a chunk, two states, and copies of the inputs, as measured."""
    count, chunk = _chunks(length, key, value)
    kept = 3 * chunk + 2 * key * value / chunk + 2 * (key + value)
    return heads * kept * (count * chunk / length)


def _chunks(length: int, key: int, value: int) -> tuple[int, int]:
    """How many chunks, and of how many tokens each."""
    chunk = chunk_length(length, key, value)
    return -(-length // chunk), chunk


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    scale: float,
    initial_state: Memory | None = None,
) -> tuple[Tensor, Memory]:
    """All tokens at once, continuing from `initial_state` (empty where None).

    q, k: (B, T, H, Dk). v: (B, T, H, Dv). i, f: the gates before their non-linearity, (B, T, H). T
    is at least 1. Returns the outputs (B, T, H, Dv) in v's dtype and the memory after the last
    token.
    """
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        length = v.shape[1]
        count, chunk = _chunks(length, k.shape[3], v.shape[3])
        if initial_state is None:
            initial_state = empty_memory(
                v.shape[0], v.shape[2], k.shape[3], v.shape[3], v.device, dtype
            )
        queries, keys, values = (
            _in_chunks(x, count, chunk) for x in (q.to(dtype) * scale, k.to(dtype), v.to(dtype))
        )
        # Padding forgets nothing and writes nothing, so that the last state is that of token T.
        gates = _in_chunks(i.to(dtype)[..., None], count, chunk, -torch.inf).squeeze(-1)
        kept = _in_chunks(F.logsigmoid(f.to(dtype))[..., None], count, chunk).squeeze(-1)
        output, state = _chunked(queries, keys, values, gates, kept.cumsum(-1), initial_state)
        return output.flatten(2, 3)[:, :, :length].transpose(1, 2).to(v.dtype), state


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *, scale: float, state: Memory
) -> tuple[Tensor, Memory]:
    """One token: the shapes of `mlstm` without T. Returns the output (B, H, Dv) in v's dtype and a
    new memory; `state` is left as it was."""
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        read, key, value, gate = (x.to(dtype) for x in (q * scale, k, v, i))
        decayed = F.logsigmoid(f.to(dtype)) + state.scale
        m = torch.maximum(decayed, gate)
        keep = (decayed - m).exp()[..., None]
        written = key * (gate - m).exp()[..., None]
        matrix = torch.addcmul(
            state.matrix * keep[..., None], written[..., :, None], value[..., None, :]
        )
        normaliser = torch.addcmul(written, state.normaliser, keep)
        numerator = (read[..., None, :] @ matrix).squeeze(-2)
        denominator = _denominator((read * normaliser).sum(-1), m)
        return (numerator / denominator[..., None]).to(v.dtype), Memory(matrix, normaliser, m)


def mlstm_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    scale: float,
    initial_state: Memory | None = None,
) -> tuple[Tensor, Memory]:
    """The formula, token after token, in v's dtype; shapes of `mlstm`."""
    if initial_state is None:
        initial_state = Memory(
            v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3]),
            v.new_zeros(v.shape[0], v.shape[2], k.shape[3]),
            v.new_zeros(v.shape[0], v.shape[2]),
        )
    matrix, normaliser, m = initial_state
    outputs = []
    for q_t, k_t, v_t, i_t, f_t in zip(*(x.unbind(1) for x in (q, k, v, i, f)), strict=True):
        before = F.logsigmoid(f_t) + m
        m = torch.maximum(before, i_t)
        keep, write = torch.exp(before - m)[..., None], torch.exp(i_t - m)[..., None]
        outer = k_t[..., :, None] * v_t[..., None, :]
        matrix = keep[..., None] * matrix + write[..., None] * outer
        normaliser = keep * normaliser + write * k_t
        numerator = scale * (q_t[..., :, None] * matrix).sum(-2)
        size = (scale * (q_t * normaliser).sum(-1)).abs()
        outputs.append(numerator / (torch.maximum(size, torch.exp(-m)) + EPS)[..., None])
    return torch.stack(outputs, 1), Memory(matrix, normaliser, m)


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, total: Tensor, start: Memory
) -> tuple[Tensor, Memory]:
    """q (scaled), k, v: (B, H, N, C, D). i and total, the log forget gates summed since the chunk
    began: (B, H, N, C). Returns (B, H, N, C, Dv) and the memory after the last chunk."""
    relative = i - total
    highest = relative.cummax(-1).values
    m = start.scale
    before = []
    for kept, most in zip(total[..., -1].unbind(2), highest[..., -1].unbind(2), strict=True):
        before.append(m)
        m = kept + torch.maximum(m, most)
    scale_before = torch.stack(before, 2)[..., None]
    highest = torch.maximum(highest, scale_before)

    chunk = q.shape[3]
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    weights = (relative[..., None, :] - highest[..., :, None]).masked_fill(future, -torch.inf).exp()
    within = (q @ k.transpose(-1, -2)) * weights
    since_start = (scale_before - highest).exp()
    written = k * (relative - highest[..., -1:]).exp()[..., None]
    matrix, normaliser = start.matrix, start.normaliser
    matrices, normalisers = [], []
    for write, sum_of_keys, keep in zip(
        (written.transpose(-1, -2) @ v).unbind(2),
        written.sum(-2).unbind(2),
        since_start[..., -1:].unbind(2),
        strict=True,
    ):
        matrices.append(matrix)
        normalisers.append(normaliser)
        matrix = torch.addcmul(write, matrix, keep[..., None])
        normaliser = torch.addcmul(sum_of_keys, normaliser, keep)
    seen = q * since_start[..., None]
    numerator = within @ v + seen @ torch.stack(matrices, 2)
    projection = within.sum(-1) + (seen @ torch.stack(normalisers, 2)[..., None]).squeeze(-1)
    denominator = _denominator(projection, total + highest)
    return numerator / denominator[..., None], Memory(matrix, normaliser, m)


def _denominator(projection: Tensor, m: Tensor) -> Tensor:
    """max(|projection|, exp(-m)) + eps, of equal shapes.

    Where exp(-m) would overflow, the output is zero to every digit either way, and an infinity
    would make its gradient NaN.
    """
    return torch.maximum(projection.abs(), (-m).clamp(max=_LARGEST[m.dtype]).exp()) + EPS


def _in_chunks(x: Tensor, count: int, chunk: int, filling: float = 0.0) -> Tensor:
    """(B, T, H, D) -> (B, H, count, chunk, D), contiguous, with `filling` at the end."""
    x = x.transpose(1, 2)
    missing = count * chunk - x.shape[2]
    if missing:
        x = F.pad(x, (0, 0, 0, missing), value=filling)
    return x.contiguous().view(*x.shape[:2], count, chunk, x.shape[3])
