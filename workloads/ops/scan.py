"""The diagonal linear recurrence h_t = a_t h_(t-1) + b_t, element by element, over a whole context.

The torch form cuts the context into blocks of about sqrt(T) tokens and walks all blocks at once,
twice: first for each block's end as if it began at zero, then, once the ends are carried from block
to block, for every state. That is 2 sqrt(T) vector operations and four passes through memory.
Its backward is the same walk from the end (Martin and Cundy 2018, "Parallelizing Linear Recurrent
Neural Nets Over Sequence Length"). Nothing divides and nothing leaves linear space, so that
no decay, 0 and 1 included, is out of its range. On a GPU fla's HGRN kernels compute the same
recurrence from log a.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workloads.ops import backends

KERNEL = "chunk_hgrn"


def linear_scan(
    decay: Tensor, inputs: Tensor, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All positions at once: decay a and inputs b (B, T, ...), initial_state (B, ...) or None for
    zeros -> states h, shaped as b, and the last of them, a tensor of its own. Plain torch; computed
    in float32 at least, and returned so."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    if initial_state is None:
        initial_state = torch.zeros_like(inputs[:, 0])
    states: Tensor = _LinearScan.apply(  # type: ignore[no-untyped-call]
        decay.to(dtype), inputs.to(dtype), initial_state.to(dtype)
    )
    return states, states[:, -1].clone()


def linear_scan_fla(
    log_decay: Tensor, inputs: Tensor, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_scan` by fla's Triton kernel, from log a <= 0; (B, T, D) only.

    Raises:
        workloads.plugins.Unsupported: the kernel is missing.
        ValueError: an initial state that wants a gradient, which this kernel does not give.
    """
    if initial_state is not None and initial_state.requires_grad:
        raise ValueError(f"{KERNEL} gives its initial state no gradient")
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    like = inputs.new_empty(0, dtype=dtype)
    backends.check_once(KERNEL, _fla_from_ones, _own_from_ones, _small_inputs, like)
    if initial_state is None:
        initial_state = torch.zeros_like(inputs[:, 0])
    return _fla(log_decay.to(dtype), inputs.to(dtype), initial_state.to(dtype))


def linear_scan_reference(
    decay: Tensor, inputs: Tensor, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loop as the formula reads; tests only."""
    state = torch.zeros_like(inputs[:, 0]) if initial_state is None else initial_state
    states = []
    for a, b in zip(decay.unbind(1), inputs.unbind(1), strict=True):
        state = a * state + b
        states.append(state)
    return torch.stack(states, 1), state


def _fla(log_decay: Tensor, inputs: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor]:
    chunk_hgrn = backends.kernel(f"fla.ops.hgrn:{KERNEL}")
    states, _ = chunk_hgrn(
        inputs.contiguous(), log_decay.contiguous(), initial_state=initial_state.contiguous()
    )
    return states, states[:, -1].clone()


def _fla_from_ones(log_decay: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    return _fla(log_decay, inputs, torch.ones_like(inputs[:, 0]))


def _own_from_ones(log_decay: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    return linear_scan(log_decay.exp(), inputs, initial_state=torch.ones_like(inputs[:, 0]))


def _small_inputs(device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_decay, inputs = torch.randn(2, 2, 150, 64, generator=generator)
    return [x.to(device, dtype) for x in (-log_decay.abs(), inputs)]


class _LinearScan(torch.autograd.Function):
    """decay, inputs (B, T, ...), initial (B, ...) -> states (B, T, ...)."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        walk(decay, inputs, initial, states)
        ctx.save_for_backward(decay, states, initial)
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, initial = ctx.saved_tensors
        # dL/db_t = dL/dh_t + a_(t+1) dL/db_(t+1), from the end
        d_inputs = torch.empty_like(states)
        d_inputs[:, -1] = grad[:, -1]
        walk(decay[:, 1:], grad[:, :-1], grad[:, -1], d_inputs[:, :-1], backwards=True)
        d_decay = torch.empty_like(states)
        torch.mul(d_inputs[:, 1:], states[:, :-1], out=d_decay[:, 1:])
        torch.mul(d_inputs[:, 0], initial, out=d_decay[:, 0])
        return d_decay, d_inputs, d_inputs[:, 0] * decay[:, 0]


def walk(
    decay: Tensor, inputs: Tensor, initial: Tensor, out: Tensor, *, backwards: bool = False
) -> None:
    """Write out_t = decay_t out_(t-1) + inputs_t, or out_(t+1) where `backwards`; before the first
    comes `initial`. All (B, T, ...), T from 0 on; autograd sees nothing of it."""
    length = inputs.shape[1]
    if length == 0:
        return
    block = 1 << ((length - 1).bit_length() // 2)
    body = length // block * block
    whole = slice(length - body, length) if backwards else slice(0, body)
    rest = slice(0, length - body) if backwards else slice(body, length)
    turn = slice(None, None, -1 if backwards else 1)

    def positions(x: Tensor) -> Sequence[Tensor]:
        """Each position of a block, (B, blocks, ...), in walking order."""
        part = x[:, whole]
        blocks = part.view(part.shape[0], -1, block, *part.shape[2:])
        return blocks.unbind(2)[turn]

    decays, added, states = positions(decay), positions(inputs), positions(out)
    ends, kept = added[0].clone(), decays[0].clone()
    for a, b in zip(decays[1:], added[1:], strict=True):
        torch.addcmul(b, a, ends, out=ends)
        kept.mul_(a)
    before = initial
    for a, end in zip(kept.unbind(1)[turn], ends.unbind(1)[turn], strict=True):
        before = end.addcmul_(a, before)
    first = initial[:, None]
    parts = (ends[:, 1:], first) if backwards else (first, ends[:, :-1])
    before = torch.cat(parts, 1)
    for a, b, state in zip(decays, added, states, strict=True):
        before = torch.addcmul(b, a, before, out=state)
    before = ends[:, 0] if backwards else ends[:, -1]
    remaining = (x[:, rest].unbind(1)[turn] for x in (decay, inputs, out))
    for a, b, state in zip(*remaining, strict=True):
        before = torch.addcmul(b, a, before, out=state)
