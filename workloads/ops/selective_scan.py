"""The selective state space of Mamba (Gu and Dao 2023, section 3): N states for each channel, with
a step size, an input map and a read-out that depend on the token.

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t        y_t = C_t . h_t

dt (step sizes, positive) is one number per channel and token, A (negative) one per channel and
state, B and C one per state and token. The states of a whole context are T N D numbers, so that the
scan runs chunk by chunk in buffers that fit a cache, keeps only each chunk's first state for
backward, and computes the rest again there, as the paper's kernel does. States are laid out (B, N,
D), channels innermost, because every vector operation then runs along the channels. A chunk's
recurrence is one multiply-add a token: a token is N D numbers wide, which leaves nothing to be won
from a parallel scan, whose work is larger.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workloads.ops import backends
from workloads.plugins import Unsupported

KERNEL = "mamba_ssm selective_scan_fn"

CHUNK = 16
"""Tokens in a chunk."""
_BUFFER_ELEMENTS = 1 << 18
"""Numbers in one buffer, where a single row's chunk is not more: 1 MiB in float32."""


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All positions at once.

    u, dt (B, T, D), a (D, N), b, c (B, T, N), initial_state (B, N, D) or None for zeros -> y (B, T,
    D) and the last state. Plain torch; computed in float32 at least, and returned so.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    if initial_state is None:
        initial_state = u.new_zeros(u.shape[0], a.shape[1], u.shape[2], dtype=dtype)
    inputs = (x.to(dtype) for x in (u, dt, a, b, c, initial_state))
    y, state = _SelectiveScan.apply(*inputs)  # type: ignore[no-untyped-call]
    return y, state


def selective_scan_kernel(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective_scan` from an empty context by mamba-ssm's CUDA kernel, in u's dtype (dt, b and c
    are cast to it; the kernel itself computes in float32). Raises Unsupported without mamba-ssm."""
    kernel()
    backends.check_once(KERNEL, _cuda, selective_scan, _small_inputs, u)
    return _cuda(u, dt, a, b, c)


def kernel() -> Any:
    """mamba-ssm's function. Raises workloads.plugins.Unsupported where it cannot be imported."""
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError as error:
        raise Unsupported(
            f"{KERNEL}: {error}; Mamba-1 has no other fast kernel, and mamba-ssm must be built "
            "with nvcc (pip install --no-build-isolation mamba-ssm)"
        ) from error
    return module.selective_scan_fn


def _cuda(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    channels_first = (x.to(u.dtype).transpose(1, 2).contiguous() for x in (u, dt))
    maps = (x.to(u.dtype).transpose(1, 2).contiguous() for x in (b, c))
    y, last = kernel()(*channels_first, a.float().contiguous(), *maps, return_last_state=True)
    return y.transpose(1, 2), last.transpose(1, 2).contiguous()


def _small_inputs(device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, dt = torch.randn(2, 2, 70, 32, generator=generator)
    b, c = torch.randn(2, 2, 70, 16, generator=generator)
    a = -torch.rand(32, 16, generator=generator)
    return [x.to(device, dtype) for x in (u, dt.abs(), a, b, c)]


def selective_scan_step(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: u, dt (B, D), b, c (B, N), state (B, N, D) -> y (B, D), the state after it."""
    u, dt, a, b, c = (x.to(state.dtype) for x in (u, dt, a, b, c))
    decay = torch.exp(dt[:, None] * a.t())
    state = torch.addcmul(b[..., None] * (dt * u)[:, None], decay, state)
    return (c[..., None] * state).sum(1), state


def selective_scan_reference(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loop as the formula reads; tests only."""
    state = u.new_zeros(u.shape[0], a.shape[1], u.shape[2])
    state = state if initial_state is None else initial_state
    outputs = []
    for u_t, dt_t, b_t, c_t in zip(*(x.unbind(1) for x in (u, dt, b, c)), strict=True):
        written = b_t[:, :, None] * (dt_t * u_t)[:, None, :]
        state = torch.exp(dt_t[:, None, :] * a.t()) * state + written
        outputs.append((c_t[:, :, None] * state).sum(1))
    return torch.stack(outputs, 1), state


class _SelectiveScan(torch.autograd.Function):
    """u, dt, a, b, c, initial, as `selective_scan` has them -> y, last state."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor
    ) -> tuple[Tensor, Tensor]:
        rates = a.t().contiguous()
        written = dt * u
        y = torch.empty_like(written)
        last = torch.empty_like(initial)
        chunks = -(-u.shape[1] // CHUNK)
        starts = u.new_empty(u.shape[0], chunks, *rates.shape)
        for rows in _row_groups(u, rates):
            decay, states = _buffers(2, u[rows], rates)
            state = initial[rows]
            for start, dt_c, written_c, b_c, c_c, y_c in zip(
                starts[rows].unbind(1),
                *(torch.split(x[rows], CHUNK, 1) for x in (dt, written, b, c, y)),
                strict=True,
            ):
                start.copy_(state)
                _, states_c = _recur(dt_c, written_c, rates, b_c, start, decay, states)
                state = states_c[:, -1].clone()
                torch.sum(states_c.mul_(c_c[..., None]), 2, out=y_c)
            last[rows] = state
        ctx.save_for_backward(u, dt, a, b, c, starts)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor, d_last: Tensor) -> tuple[Tensor, ...]:
        u, dt, a, b, c, starts = ctx.saved_tensors
        rates = a.t().contiguous()
        written = dt * u
        d_written, d_dt = torch.empty_like(written), torch.empty_like(written)
        d_b, d_c, d_rates = torch.empty_like(b), torch.empty_like(c), torch.zeros_like(rates)
        d_initial = torch.empty_like(d_last)
        for rows in _row_groups(u, rates):
            decay, states, d_states, product = _buffers(4, u[rows], rates)
            carried = d_last[rows]
            parts = [starts[rows].unbind(1)]
            parts += [
                torch.split(x[rows], CHUNK, 1)
                for x in (dt, written, b, c, d_y, d_written, d_dt, d_b, d_c)
            ]
            for part in zip(*map(reversed, parts), strict=True):
                start, dt_c, written_c, b_c, c_c, dy_c, d_written_c, d_dt_c, d_b_c, d_c_c = part
                decay_c, states_c = _recur(dt_c, written_c, rates, b_c, start, decay, states)
                grad, product_c = (x[:, : dt_c.shape[1]] for x in (d_states, product))
                torch.sum(torch.mul(states_c, dy_c[:, :, None], out=product_c), 3, out=d_c_c)
                torch.mul(c_c[..., None], dy_c[:, :, None], out=grad)
                carried = _recur_backwards(grad, decay_c, carried)
                torch.sum(torch.mul(grad, written_c[:, :, None], out=product_c), 3, out=d_b_c)
                torch.sum(torch.mul(grad, b_c[..., None], out=product_c), 2, out=d_written_c)
                # dL/d(dt A) = dL/dh_t h_(t-1) exp(dt A), in grad's place
                grad.mul_(decay_c)
                grad[:, 1:].mul_(states_c[:, :-1])
                grad[:, 0].mul_(start)
                torch.sum(torch.mul(grad, rates, out=product_c), 2, out=d_dt_c)
                d_rates += grad.mul_(dt_c[:, :, None]).sum((0, 1))
            d_initial[rows] = carried
        return d_written * dt, d_dt.addcmul_(d_written, u), d_rates.t(), d_b, d_c, d_initial


def _row_groups(u: Tensor, rates: Tensor) -> list[slice]:
    """The batch in groups of which one chunk's states fit a buffer."""
    rows = max(1, _BUFFER_ELEMENTS // (min(CHUNK, u.shape[1]) * rates.numel()))
    return [slice(row, row + rows) for row in range(0, u.shape[0], rows)]


def _buffers(count: int, u: Tensor, rates: Tensor) -> Tensor:
    return u.new_empty(count, u.shape[0], min(CHUNK, u.shape[1]), *rates.shape)


def _recur(
    dt: Tensor,
    written: Tensor,
    rates: Tensor,
    b: Tensor,
    start: Tensor,
    decay_buffer: Tensor,
    states_buffer: Tensor,
) -> tuple[Tensor, Tensor]:
    """A chunk's decays and states, each (B, T, N, D), in the buffers given."""
    decay, states = (x[:, : dt.shape[1]] for x in (decay_buffer, states_buffer))
    torch.mul(dt[:, :, None], rates, out=decay).exp_()
    torch.mul(b[..., None], written[:, :, None], out=states)
    before = start
    for kept, now in zip(decay.unbind(1), states.unbind(1), strict=True):
        before = now.addcmul_(kept, before)
    return decay, states


def _recur_backwards(grad: Tensor, decay: Tensor, carried: Tensor) -> Tensor:
    """Make each state's gradient of its direct one, in place: add to it what comes back from the
    state after it. Returns what goes back to the state before the chunk."""
    grads, decays = grad.unbind(1), decay.unbind(1)
    grads[-1].add_(carried)
    for now, kept, after in zip(grads[-2::-1], decays[:0:-1], grads[:0:-1], strict=True):
        now.addcmul_(kept, after)
    return grads[0] * decays[0]
