"""RWKV-7's time mixing, WKV-7: a delta rule whose removal and writing keys differ.

    S_t = diag(exp(w_t)) S_(t-1) + b_t (a_t^T S_(t-1)) + k_t v_t^T        o_t = scale r_t^T S_t

Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", where a = -kk (a unit key)
and b = kk times an in-context learning rate in (0, 1). Note that a reads the state before its
decay.

The chunked form follows the delta rule's: u_i = a_i^T S_(i-1) solves one unit triangular system per
chunk, linear in the state before it. Decays are per channel and applied to rows as exp(G_i - G_m)
and to columns as exp(G_m - G_j), G the decays summed since the chunk's start and m its middle. That
is one product for all four matrices of a chunk, and safe because RWKV-7's decays are bounded: w is
at least -exp(-1/2), so no exponent passes 10.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops import backends
from workloads.ops.delta_rule import chunk_of, from_chunks, to_chunks
from workloads.ops.delta_rule_kernels import check_width
from workloads.ops.precision import without_autocast

Backend = Literal["torch", "fla"]

CHUNK = 32
"""Tokens a chunk at most; a power of two."""
STRONGEST_DECAY = -math.exp(-0.5)
"""The least log decay a token of RWKV-7, -0.6065. Down to -2.5 the chunked form stays finite in
float32."""

_KERNEL = "fla.ops.rwkv7:chunk_rwkv7"
_KERNEL_BOUND = -0.6066
"""What licenses the kernel's chunks of 64, with room for rounding."""


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """All tokens at once, continuing from `initial_state` (zeros where None).

    r, w, k, a, b: (B, T, H, Dk), w the log decay in (STRONGEST_DECAY, 0). v: (B, T, H, Dv). T is at
    least 1. Returns the outputs (B, T, H, Dv) in v's dtype and the last state (B, H, Dk, Dv) in
    float32 or wider.

    Raises:
        Unsupported: backend "fla" without its package, or where its kernel refuses width or device.
    """
    if backend == "fla":
        return _fused(r, w, k, v, a, b, scale, initial_state)
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        if initial_state is None:
            shape = (v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
            initial_state = torch.zeros(shape, dtype=dtype, device=v.device)
        inputs = [x.to(dtype) for x in (r * scale, w, k, v, a, b)]
        output, state = _chunked(inputs, initial_state)
    return output.to(v.dtype), state


def wkv7_step(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token: r, w, k, a, b (B, H, Dk), v (B, H, Dv), state (B, H, Dk, Dv). Returns the output
    (B, H, Dv) in v's dtype, and a new state."""
    dtype = state.dtype
    with without_autocast(v):
        removed = a.to(dtype).unsqueeze(-2) @ state
        state = torch.addcmul(
            state * w.to(dtype).exp().unsqueeze(-1), b.to(dtype)[..., None], removed
        )
        state = torch.addcmul(state, k.to(dtype).unsqueeze(-1), v.to(dtype).unsqueeze(-2))
        output = ((r.to(dtype) * scale).unsqueeze(-2) @ state).squeeze(-2)
    return output.to(v.dtype), state


def wkv7_reference(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loop as the formula reads, one token after another. For tests."""
    state = initial_state
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    outputs = []
    for t in range(v.shape[1]):
        removed = torch.einsum("bhkv,bhk->bhv", state, a[:, t])
        state = (
            w[:, t].exp()[..., None] * state
            + torch.einsum("bhk,bhv->bhkv", b[:, t], removed)
            + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        )
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, r[:, t]))
    return torch.stack(outputs, 1), state


def chunked_flops(length: int, heads: int, key_width: int, value_width: int) -> float:
    """Forward FLOPs of the chunked form for each of `length` tokens, those that pad the last chunk
    included: four C x C matrices, the triangular solve, three of them times values, and four
    products with the state."""
    chunk = chunk_of(length, CHUNK)
    padded = -(-length // chunk) * chunk
    in_chunk = 8 * chunk * key_width + chunk * (key_width + value_width) + 6 * chunk * value_width
    return padded / length * heads * (in_chunk + 8.0 * key_width * value_width)


def _chunked(inputs: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    length = inputs[0].shape[1]
    chunk = chunk_of(length, CHUNK)
    r, w, k, v, a, b = (to_chunks(x, chunk) for x in inputs)
    total = w.cumsum(3)
    middle, last = total[..., (chunk - 1) // 2, None, :], total[..., -1:, :]
    rows = torch.cat((a * (total - w - middle).exp(), r * (total - middle).exp()), -2)
    columns = torch.cat((b, k), -2) * (middle - total).exp().repeat(1, 1, 1, 2, 1)
    # Removals see earlier tokens only, readings their own too: (2 C, 2 C), in four quarters.
    products = (rows @ columns.mT) * _visible(chunk, v)
    removing, reading = products.tensor_split(2, -2)
    solving, recalling = removing.tensor_split(2, -1)
    from_start = rows * middle.exp()
    solved = torch.linalg.solve_triangular(
        -solving,
        torch.cat((from_start[..., :chunk, :], recalling @ v), -1),
        upper=False,
        unitriangular=True,
    )
    weights, recalled = solved.split((k.shape[-1], v.shape[-1]), -1)
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


def _small_inputs(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two rows of 80 tokens in two heads of width 32; the decays stay in float32."""
    generator = torch.Generator().manual_seed(5)
    r, w, k, v, key, rate = torch.randn(6, 2, 80, 2, 32, generator=generator).unbind(0)
    key = F.normalize(key, dim=-1)
    half = (x.to(device, dtype) for x in (r, k / 32**0.5, v, -key, key * rate.sigmoid()))
    return (next(half), (STRONGEST_DECAY * w.sigmoid()).to(device), *half)


def _fused(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The Triton kernel, in v's dtype with decays and state in float32."""
    check_width(_KERNEL, k)
    kernel = backends.kernel(_KERNEL)

    def fast(
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r, k, a, b = (x.to(v.dtype) for x in (r, k, a, b))
        output, last = kernel(
            r=r,
            w=w.float(),
            k=k,
            v=v,
            a=a,
            b=b,
            scale=scale,
            initial_state=None if state is None else state.float(),
            output_final_state=True,
            lower_bound=_KERNEL_BOUND,
        )
        return output, last

    def own(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        r, w, k, v, a, b = inputs
        return wkv7(r, w, k, v, a, b, scale=scale)

    backends.check_once(_KERNEL, fast, own, _small_inputs, v)
    return fast(r, w, k, v, a, b, initial_state)
