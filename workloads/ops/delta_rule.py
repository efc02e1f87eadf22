"""The delta rule: a state matrix that is corrected towards each value instead of added to.

    S~ = exp(g_t) S_(t-1)      u_t = beta_t (v_t - S~^T k_t)      S_t = S~ + k_t u_t^T
    o_t = scale q_t^T S_t

Without a decay g it is DeltaNet's (Yang et al. 2024, "Parallelizing Linear Transformers with the
Delta Rule over Sequence Length"), with one per head and token Gated DeltaNet's (Yang et al. 2024,
"Gated Delta Networks"), with one per key channel Kimi Delta Attention's (Kimi Team 2025, "Kimi
Linear"). Keys should have unit length; then beta = 1 replaces what the state holds at k_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.ops import backends
from workloads.ops import delta_rule_kernels as kernels
from workloads.ops.chunks import empty_memory
from workloads.ops.delta_rule_chunks import chunked
from workloads.ops.precision import in_state_dtype

Backend = backends.Backend

NORM_EPS = 1e-6
"""Added to a key's squared length, as in fla's kernels."""


def unit_length(x: Tensor) -> Tensor:
    """x / |x| along the last dimension, in float32 or wider; a zero vector stays zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """All tokens at once, continuing from `initial_state` (zeros where None).

    q, k: (B, T, H, Dk), k of unit length. v: (B, T, H, Dv). log_decay: None, (B, T, H) or (B, T, H,
    Dk), at most 0. beta: (B, T, H), in (0, 1), or (0, 2) for negative eigenvalues. T is at least 1.
    Returns the outputs (B, T, H, Dv) in v's dtype and the last state (B, H, Dk, Dv) in float32 or
    wider.

    Raises:
        Unsupported: backend "fla" without its package, or where its kernel refuses dtype, width or
            device.
        ValueError: another backend than these two.
    """
    backends.check_backend(backend)
    if backend == "fla":

        def own(
            q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            return delta_rule(q, k, v, gate, beta, scale=scale)

        return kernels.fused(own, q, k, v, log_decay, beta, scale, initial_state)
    state = empty_memory(k, v) if initial_state is None else initial_state
    return in_state_dtype(chunked, (q, k, v, log_decay, beta), state, scale, like=v)


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
    return in_state_dtype(_step, (q, k, v, log_decay, beta), state, scale, like=v)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    if log_decay is not None:
        decay = log_decay.exp()
        state = state * (decay[..., None, None] if decay.ndim == 2 else decay[..., None])
    recalled = (k.unsqueeze(-2) @ state).squeeze(-2)
    write = beta[..., None] * (v - recalled)
    state = torch.addcmul(state, k.unsqueeze(-1), write.unsqueeze(-2))
    return ((q * scale).unsqueeze(-2) @ state).squeeze(-2), state


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
