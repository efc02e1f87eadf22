"""RWKV-7's time mixing, WKV-7: a delta rule whose removal and writing keys differ.

    S_t = diag(exp(w_t)) S_(t-1) + b_t (a_t^T S_(t-1)) + k_t v_t^T        o_t = scale r_t^T S_t

Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", where a = -kk (a unit key)
and b = kk times an in-context learning rate in (0, 1). Note that a reads the state before its
decay.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops import backends
from workloads.ops.chunks import empty_memory
from workloads.ops.delta_rule_kernels import check_width
from workloads.ops.precision import in_state_dtype
from workloads.ops.rwkv7_chunks import chunked

Backend = backends.Backend

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
        ValueError: another backend than these two.
    """
    backends.check_backend(backend)
    if backend == "fla":
        return _fused(r, w, k, v, a, b, scale, initial_state)
    state = empty_memory(k, v) if initial_state is None else initial_state
    return in_state_dtype(chunked, (r * scale, w, k, v, a, b), state, like=v)


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
    return in_state_dtype(_step, (r, w, k, v, a, b), state, scale, like=v)


def _step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    removed = a.unsqueeze(-2) @ state
    state = torch.addcmul(state * w.exp().unsqueeze(-1), b[..., None], removed)
    state = torch.addcmul(state, k.unsqueeze(-1), v.unsqueeze(-2))
    return ((r * scale).unsqueeze(-2) @ state).squeeze(-2), state


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

    backends.check_once(_KERNEL, fast, partial(wkv7, scale=scale), _small_inputs, v)
    return fast(r, w, k, v, a, b, initial_state)


def _small_inputs(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two rows of 80 tokens in two heads of width 32; the decays stay in float32."""
    generator = torch.Generator().manual_seed(5)
    r, w, k, v, key, rate = torch.randn(6, 2, 80, 2, 32, generator=generator).unbind(0)
    key = F.normalize(key, dim=-1)
    half = (x.to(device, dtype) for x in (r, k / 32**0.5, v, -key, key * rate.sigmoid()))
    return (next(half), (STRONGEST_DECAY * w.sigmoid()).to(device), *half)
