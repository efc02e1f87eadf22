"""The sLSTM's cell: an LSTM with exponential gates, a normaliser, and memory mixing.

    (z, i, f, o)_t = x_t + R h_(t-1)                R block-diagonal: one block a head
    l_t = f_t, or log sigmoid(f_t)                  w_t = i_t, or log sigmoid(i_t)
    m_t = max(l_t + m_(t-1), w_t)
    c_t = exp(l_t + m_(t-1) - m_t) c_(t-1) + exp(w_t - m_t) tanh(z_t)
    n_t = exp(l_t + m_(t-1) - m_t) n_(t-1) + exp(w_t - m_t)
    h_t = sigmoid(o_t) c_t / n_t

Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", equations 8 to 18, whose input gate is
exponential; the sigmoid one, w_t = log sigmoid(i_t), is ours. m begins at minus infinity, so that
the first token's weight is 1 (the authors' code takes m_1 = i_1); n is at least 1 from then on and
h within -1 to 1.

Every token's gates need the output before it, so no form of it is parallel in time: here a Python
loop over tokens is inherent. What can be is taken out of it. Forward does a product and twelve
element-wise operations a token, two more with a sigmoid input gate, in buffers made once. Backward
is by hand: h does not depend on m (c and n carry the same factor), so m is a constant in it; all
factors that do not depend on later tokens are computed for all tokens at once, which leaves a
product and five element-wise operations a token; R's gradient is one product at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from workloads.ops.precision import without_autocast

Gate = Literal["exponential", "sigmoid"]


class Cell(NamedTuple):
    """hidden (h), cell (c), normaliser (n) and their scale (m), each (B, H, D). The cell proper is
    exp(scale) times what cell and normaliser hold. float32 or wider.

    Gradients flow through the first three at a fixed scale: exact for every later output."""

    hidden: Tensor
    cell: Tensor
    normaliser: Tensor
    scale: Tensor


def empty_cell(
    batch: int, heads: int, width: int, device: torch.device, dtype: torch.dtype
) -> Cell:
    """Zeros, and minus infinity for the scale, in dtype or float32, the wider."""
    dtype = torch.promote_types(dtype, torch.float32)
    hidden, cell, normaliser = (
        torch.zeros(batch, heads, width, device=device, dtype=dtype) for _ in range(3)
    )
    return Cell(hidden, cell, normaliser, torch.full_like(hidden, -torch.inf))


def slstm(
    x: Tensor,
    recurrent: Tensor,
    *,
    forget: Gate,
    gate: Gate = "exponential",
    initial_state: Cell | None = None,
) -> tuple[Tensor, Cell]:
    """All tokens, one after another, continuing from `initial_state` (empty where None).

    x: the gates' share from the input, biases included, (B, T, H, 4, D), in the order z, i, f, o.
    recurrent: (H, D, 4 D), from h to the gates in the same order. forget, gate: of which kind the
    forget and the input gate are. T is at least 1. Returns the outputs (B, T, H, D) and the state
    after the last token, in x's dtype or float32, the wider.
    """
    with without_autocast(x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        batch, _, heads, _, width = x.shape
        if initial_state is None:
            initial_state = empty_cell(batch, heads, width, x.device, dtype)
        gates = x.to(dtype).flatten(3).permute(1, 2, 0, 3)
        start = (state.transpose(0, 1) for state in initial_state)
        hidden, cell, normaliser, scale = _Sequence.apply(  # type: ignore[no-untyped-call]
            gates, recurrent.to(dtype), *start, forget, gate
        )
        last = (hidden[-1], cell, normaliser, scale)
        return hidden.permute(2, 0, 1, 3), Cell(
            *(s.transpose(0, 1).clone(memory_format=torch.contiguous_format) for s in last)
        )


def slstm_step(
    x: Tensor, recurrent: Tensor, *, forget: Gate, gate: Gate = "exponential", state: Cell
) -> tuple[Tensor, Cell]:
    """One token: x (B, H, 4, D). Returns the output (B, H, D) and a new state."""
    with without_autocast(x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        mixed = torch.bmm(state.hidden.transpose(0, 1), recurrent.to(dtype)).transpose(0, 1)
        z, i, f, o = (x.to(dtype) + _by_gate(mixed)).unbind(2)
        return _advance(z, i, f, o, forget, gate, state)


def slstm_reference(
    x: Tensor,
    recurrent: Tensor,
    *,
    forget: Gate,
    gate: Gate = "exponential",
    initial_state: Cell | None = None,
) -> tuple[Tensor, Cell]:
    """The formula, token after token, in x's dtype, differentiated by autograd; shapes of
    `slstm`."""
    batch, _, heads, _, width = x.shape
    state = initial_state or empty_cell(batch, heads, width, x.device, x.dtype)
    outputs = []
    for x_t in x.unbind(1):
        mixed = torch.einsum("bhd,hde->bhe", state.hidden, recurrent)
        z, i, f, o = (x_t + _by_gate(mixed)).unbind(2)
        hidden, state = _advance(z, i, f, o, forget, gate, state)
        outputs.append(hidden)
    return torch.stack(outputs, 1), state


def _advance(
    z: Tensor, i: Tensor, f: Tensor, o: Tensor, forget: Gate, gate: Gate, state: Cell
) -> tuple[Tensor, Cell]:
    """One token's gates and the state before it, all (B, H, D)."""
    before = (f if forget == "exponential" else F.logsigmoid(f)) + state.scale
    written = i if gate == "exponential" else F.logsigmoid(i)
    m = torch.maximum(before, written).detach()
    keep, write = torch.exp(before - m), torch.exp(written - m)
    cell = keep * state.cell + write * torch.tanh(z)
    normaliser = keep * state.normaliser + write
    hidden = torch.sigmoid(o) * cell / normaliser
    return hidden, Cell(hidden, cell, normaliser, m)


class _Sequence(torch.autograd.Function):
    """Time first, then heads, then batch, so that every token's part is contiguous and a head's
    product with its block of R is one of a batch.

    (T, H, B, 4 D), (H, D, 4 D), four states (H, B, D), the kinds of the forget and the input
    gate -> outputs (T, H, B, D) and the last c, n, m (H, B, D).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        recurrent: Tensor,
        h: Tensor,
        c: Tensor,
        n: Tensor,
        m: Tensor,
        forget: Gate,
        gate: Gate,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        length, heads, batch, _ = x.shape
        width = h.shape[-1]
        keep = any(ctx.needs_input_grad)
        gates = x.clone(memory_format=torch.contiguous_format)
        hidden = x.new_empty(length, heads, batch, width)
        # c and n side by side, before the first token and after every one; without backward, of the
        # last alone
        memory = x.new_empty(length + 1 if keep else 1, heads, batch, 2, width)
        memory[0] = torch.stack((c, n), 2)
        before, first = memory[0], h
        m = m.unsqueeze(2).clone(memory_format=torch.contiguous_format)
        decays, writes = [], []
        for token, z, i, f, i_and_f, o, (after, cell, normaliser), now, out in zip(
            gates.unbind(0),
            *_parts(_by_gate(gates), (0, 1), (1, 2), (2, 3), (1, 3), (3, 4)),
            _places(memory[1:] if keep else memory, length),
            hidden.unbind(0),
            hidden.unsqueeze(-2).unbind(0),
            strict=True,
        ):
            torch.baddbmm(token, h, recurrent, out=token)  # in place, as FLOP counters see it
            decay = f if forget == "exponential" else F.logsigmoid(f)
            if keep and forget == "sigmoid":
                decays.append(decay)
            torch.add(decay, m, out=f)
            if gate == "sigmoid":
                write = F.logsigmoid(i)
                if keep:
                    writes.append(write)
                i.copy_(write)
            torch.maximum(f, i, out=m)
            i_and_f.sub_(m).exp_()
            z.tanh_()
            o.sigmoid_()
            torch.mul(before, f, out=after)
            cell.addcmul_(i, z)
            normaliser.add_(i)
            torch.div(cell, normaliser, out=out).mul_(o)
            h, before = now, after
        cell, normaliser = (part.clone() for part in before.unbind(2))
        if keep:
            logs = (torch.stack(x).squeeze(-2) if x else None for x in (decays, writes))
            ctx.save_for_backward(gates, *logs, memory, hidden, recurrent, first)
        m = m.squeeze(2)
        ctx.mark_non_differentiable(m)
        return hidden, cell, normaliser, m

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dh: Tensor, dc: Tensor, dn: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        with without_autocast(dh):
            gates, decay, write, memory, hidden, recurrent, first = ctx.saved_tensors
            by_gate = _by_gate(gates)
            factors = _factors(by_gate, decay, write, memory, hidden)
            gradient = torch.empty_like(gates)
            d_memory = torch.stack((dc, dn), 2)
            d_cell, d_normaliser = d_memory[:, :, :1], d_memory[:, :, 1:]
            back = recurrent.transpose(1, 2)
            mixed: Tensor | None = None
            for d_out, d_token, d_zif, d_if, d_o, by_memory, by_cell, by_normaliser, by_o, f in zip(
                *map(
                    reversed,
                    (
                        dh.contiguous().unbind(0),
                        gradient.unbind(0),
                        *_parts(gradient.view_as(by_gate), (0, 3), (1, 3), (3, 4)),
                        *_parts(factors, (0, 2), (2, 5), (5, 7), (7, 8)),
                        *_parts(by_gate, (2, 3)),
                    ),
                ),
                strict=True,
            ):
                d_hidden = d_out if mixed is None else torch.baddbmm(d_out, mixed, back)
                d_hidden = d_hidden.unsqueeze(2)
                d_memory.addcmul_(d_hidden, by_memory)
                torch.mul(d_cell, by_cell, out=d_zif)
                d_if.addcmul_(d_normaliser, by_normaliser)
                torch.mul(d_hidden, by_o, out=d_o)
                d_memory.mul_(f)
                mixed = d_token
            assert mixed is not None
            before = torch.cat((first[None], hidden[:-1]))
            d_recurrent = torch.bmm(
                before.permute(1, 3, 0, 2).flatten(2), gradient.transpose(0, 1).flatten(1, 2)
            )
            d_first = torch.bmm(mixed, back)
            return gradient, d_recurrent, d_first, *d_memory.unbind(2), None, None, None


def _factors(
    gates: Tensor, decay: Tensor | None, write: Tensor | None, memory: Tensor, hidden: Tensor
) -> Tensor:
    """What backward multiplies by, for all tokens, (T, H, B, 8, D): dh to (dc, dn); dc to the
    gradients of the gates z, i, f; dn to those of i, f; dh to that of o.

    gates: tanh z, the weights of i and f, sigmoid o, (T, H, B, 4, D). decay, write: log sigmoid f
    and i, (T, H, B, D), None where they are f and i themselves. memory: c and n, (T + 1, H, B, 2,
    D)."""
    z, i, f, o = gates.unbind(-2)
    factors = gates.new_empty(*gates.shape[:3], 8, gates.shape[4])
    to_c, to_n, c_to_z, c_to_i, c_to_f, n_to_i, n_to_f, h_to_o = factors.unbind(-2)
    normaliser = memory[1:, ..., 1, :]
    torch.div(o, normaliser, out=to_c)
    torch.div(hidden, normaliser, out=to_n).neg_()
    torch.mul(i, z, out=c_to_i)
    torch.addcmul(i, c_to_i, z, value=-1, out=c_to_z)
    # d log sigmoid(f) = 1 - sigmoid(f)
    slope = f if decay is None else f * decay.expm1().neg_()
    torch.mul(memory[:-1, ..., 0, :], slope, out=c_to_f)
    torch.mul(memory[:-1, ..., 1, :], slope, out=n_to_f)
    n_to_i.copy_(i)
    if write is not None:
        slope = write.expm1().neg_()
        c_to_i.mul_(slope)
        n_to_i.mul_(slope)
    torch.addcmul(hidden, hidden, o, value=-1, out=h_to_o)
    return factors


def _by_gate(x: Tensor) -> Tensor:
    """(..., 4 D) -> (..., 4, D)."""
    return x.view(*x.shape[:-1], 4, -1)


def _parts(x: Tensor, *bounds: tuple[int, int]) -> list[Sequence[Tensor]]:
    """(T, H, B, n, D) -> for each (first, end) of n, the T views (H, B, end - first, D)."""
    return [x[..., first:end, :].unbind(0) for first, end in bounds]


def _places(memory: Tensor, length: int) -> Iterable[tuple[Tensor, ...]]:
    """Where each of `length` tokens leaves c and n: both (H, B, 2, D), c, and n (H, B, 1, D). All
    in the same place where `memory` has but one."""
    views = list(zip(*_parts(memory, (0, 2), (0, 1), (1, 2)), strict=True))
    return views if len(views) == length else views * length
