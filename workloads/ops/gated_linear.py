"""Gated linear attention: a state matrix that decays, is written by k v^T and read by q.

    S_t = diag(exp(g_t)) S_(t-1) + k_t v_t^T        o_t = scale q_t^T S_t

One recurrence for many methods: linear attention has no decay g; RetNet one fixed number per head;
Mamba-2, simple GLA and mLSTM with a sigmoid gate one number per head and token; GLA one per key
channel and token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops import backends
from workloads.ops import gated_linear_chunks as chunks
from workloads.ops.backends import Backend
from workloads.ops.gated_linear_chunks import (
    CHUNK,
    chunk_length,
    products_per_token,
    saved_per_token,
)
from workloads.ops.precision import without_autocast

__all__ = [
    "CHUNK",
    "Backend",
    "chunk_length",
    "gated_linear_attention",
    "gated_linear_attention_reference",
    "gated_linear_attention_step",
    "kernel_path",
    "products_per_token",
    "saved_per_token",
]


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """All tokens at once, continuing from `initial_state` (zeros where None).

    q, k: (B, T, H, Dk), or (B, T, 1, Dk) where all heads share them. v: (B, T, H, Dv). log_decay:
    None, (H,), (B, T, H) or (B, T, H, Dk); finite and at most 0. T is at least 1. Returns the
    outputs (B, T, H, Dv) in v's dtype and the last state (B, H, Dk, Dv), in float32 at least.

    Raises:
        Unsupported: backend "fla" without its package, or where its kernel refuses the device.
        ValueError: another backend than these two.
    """
    backends.check_backend(backend)
    if backend == "fla":
        return _kernel(q, k, v, log_decay, scale, initial_state)
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        q, k, values = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
        decay = None if log_decay is None else log_decay.to(dtype)
        if decay is not None and decay.ndim == 4:
            decay = decay.transpose(1, 2)
            output, state = chunks.per_channel(q, k, values, decay, scale, initial_state)
        else:
            output, state = chunks.per_head(q, k, values, decay, scale, initial_state)
        return output.transpose(1, 2).to(v.dtype), state


def gated_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, *, scale: float, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: the shapes of `gated_linear_attention` without T. Returns the output (B, H, Dv)
    and a new state; `state` is left as it was."""
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        if log_decay is not None:
            decay = log_decay.to(dtype).exp()
            state = state * (decay[..., None] if log_decay.ndim == 3 else decay[..., None, None])
        written = k.to(dtype)[..., None]
        state = torch.addcmul(state, written, v.to(dtype)[..., None, :])
        read = (q.to(dtype) * scale)[..., None, :] @ state
        return read.squeeze(-2).to(v.dtype), state


def gated_linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula, token after token, in v's dtype; shapes of `gated_linear_attention`."""
    heads = v.shape[2]
    if log_decay is None:
        log_decay = v.new_zeros(heads)
    if log_decay.ndim == 1:
        log_decay = log_decay.expand(*v.shape[:3])
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    q, k = (x.expand(-1, -1, heads, -1) for x in (q, k))
    if initial_state is None:
        initial_state = v.new_zeros(v.shape[0], heads, k.shape[3], v.shape[3])
    state, outputs = initial_state, []
    for q_t, k_t, v_t, g_t in zip(*(x.unbind(1) for x in (q, k, v, log_decay)), strict=True):
        state = g_t.exp()[..., None] * state + k_t[..., :, None] * v_t[..., None, :]
        outputs.append(scale * (q_t[..., :, None] * state).sum(-2))
    return torch.stack(outputs, 1), state


_KINDS = {
    0: ("no decay", None),
    1: ("fixed", "g_gamma"),
    3: ("per head", "g"),
    4: ("per channel", "g"),
}
"""By the decay's dimensions: what it is, and the kernel's name for it."""


def kernel_path(decay_dims: int) -> str:
    """The fla kernel for a log decay of that many dimensions, 0 for none."""
    if decay_dims == 4:
        return "fla.ops.gla:chunk_gla"
    return "fla.ops.simple_gla:chunk_simple_gla"


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    scale: float,
    start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """fla's Triton kernels. A gate per head runs backward on Hopper only with Triton 3.7.1 or
    later: fla refuses older ones (its issue 640), and so do we."""
    heads = v.shape[2]
    if log_decay is not None and log_decay.ndim == 1 and log_decay.requires_grad:
        log_decay = log_decay.expand(*v.shape[:3])  # the kernel gives a fixed decay no gradient
    dims = 0 if log_decay is None else log_decay.ndim
    path = kernel_path(dims)
    function = backends.kernel(path)
    kind, gate = _KINDS[dims]

    def fast(
        q: Tensor, k: Tensor, v: Tensor, start: Tensor | None, log_decay: Tensor | None = log_decay
    ) -> tuple[Tensor, Tensor]:
        q, k = (x.to(v.dtype).expand(-1, -1, heads, -1).contiguous() for x in (q, k))
        decay = {} if gate is None or log_decay is None else {gate: log_decay.float().contiguous()}
        start = None if start is None else start.float().contiguous()
        o, state = function(
            q, k, v.contiguous(), **decay, scale=scale, initial_state=start, output_final_state=True
        )
        return o, state

    def own(
        q: Tensor, k: Tensor, v: Tensor, start: Tensor, log_decay: Tensor | None = log_decay
    ) -> tuple[Tensor, Tensor]:
        return gated_linear_attention(q, k, v, log_decay, scale=scale, initial_state=start)

    def small_inputs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        dk, dv, few = q.shape[3], v.shape[3], 2 * CHUNK + 2
        shapes = [(2, few, heads, dk)] * 2 + [(2, few, heads, dv), (2, heads, dk, dv)]
        inputs = [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]
        if dims >= 3:
            gate = torch.randn((2, few, heads, dk)[:dims], generator=generator)
            inputs.append(F.logsigmoid(gate).to(device, dtype))
        return inputs

    backends.check_once(f"{path} ({kind})", fast, own, small_inputs, v)
    return fast(q, k, v, start)
