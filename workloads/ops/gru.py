"""The GRU's recurrence on a CPU: torch's loop over tokens forward, a backward by hand.

    (r, z) = sigmoid(W_rz x_t + b_rz + U_rz h_(t-1) + c_rz)
    m_t = U_n h_(t-1) + c_n
    n_t = tanh(W_n x_t + b_n + r m_t)
    h_t = (1 - z) n_t + z h_(t-1)

Cho et al. 2014, in the form of torch and cuDNN: the state is reset after the recurrent matrix.

torch has no fused GRU on a CPU, and autograd notes and later visits about ten small operations a
token of its loop. Here forward is that loop unrecorded, so that its numbers are `nn.GRU`'s own, and
keeps nothing but its input and output. Backward makes the gates of all tokens again, in two
products, as all states are known by then, and with them every factor that does not depend on later
tokens; that leaves a product and two element-wise operations a token. Weights' gradients are one
product each at the end. Saved activations fall from 8 d to 2 d numbers a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workloads.ops.precision import without_autocast


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its tracer would unroll the tokens
def gru(
    x: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """x (B, T, E) and the state before it (B, D) -> the states after each token, (B, T, D).

    Weights as `nn.GRU` has them: (3 D, E), (3 D, D), (3 D,), (3 D,), gates in the order r, z, n. T
    is at least 1. Under autocast products run in its dtype, forward and backward.
    """
    output: Tensor = _Sequence.apply(  # type: ignore[no-untyped-call]
        x, hidden, w_ih, w_hh, b_ih, b_hh
    )
    return output


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor, *weights: Tensor) -> Tensor:
        kind = x.device.type
        within_autocast = torch.is_autocast_enabled(kind)
        ctx.product_dtype = torch.get_autocast_dtype(kind) if within_autocast else x.dtype
        states: Tensor = torch.gru(
            x,
            hidden[None],
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=False,
            bidirectional=False,
            batch_first=True,
        )[0]
        ctx.save_for_backward(x, hidden, states, *weights)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, ...]:
        with without_autocast(d_states):
            x, hidden, states, *weights = ctx.saved_tensors
            batch, length, width = states.shape
            low_x, w_ih, w_hh, b_ih, b_hh = (
                tensor.to(ctx.product_dtype) for tensor in (x, *weights)
            )
            # Time first, so that every token's part is contiguous.
            inputs = low_x.transpose(0, 1).flatten(0, 1)
            before = torch.cat((hidden[None].to(states.dtype), states.transpose(0, 1)[:-1]))
            before = before.flatten(0, 1)
            low_before = before.to(ctx.product_dtype)
            gates = torch.addmm(b_ih, inputs, w_ih.t()).to(states.dtype)
            mixed = torch.addmm(b_hh, low_before, w_hh.t()).to(states.dtype)
            factors, to_n, z = _factors(gates, mixed, before)
            # dh_t = what later layers want + U^T d(mixed_(t+1)) + z_(t+1) dh_(t+1)
            d_hidden = d_states.transpose(0, 1).clone(memory_format=torch.contiguous_format)
            d_mixed = inputs.new_empty(length, batch, 3, width)
            later: tuple[Tensor, Tensor, Tensor] | None = None
            for now, z_now, by_hidden, d_token in zip(
                *(
                    reversed(part.view(length, batch, *part.shape[1:]).unbind(0))
                    for part in (d_hidden.flatten(0, 1), z, factors, d_mixed.flatten(0, 1))
                ),
                strict=True,
            ):
                if later is not None:
                    _carry(now, *later, w_hh)
                torch.mul(by_hidden, now.unsqueeze(1), out=d_token)
                later = d_token.flatten(1), z_now, now
            assert later is not None
            d_first = torch.zeros_like(d_hidden[0])
            _carry(d_first, *later, w_hh)
            d_gates = d_mixed.flatten(2).flatten(0, 1)
            d_w_hh, d_b_hh = d_gates.t() @ low_before, d_gates.sum(0)
            # The input's share of n is not reset by r.
            torch.mul(to_n, d_hidden.flatten(0, 1), out=d_gates[:, 2 * width :])
            d_x = (d_gates @ w_ih).view(length, batch, -1).transpose(0, 1)
            d_w_ih, d_b_ih = d_gates.t() @ inputs, d_gates.sum(0)
            given = (x, hidden, *weights)
            found = (d_x, d_first, d_w_ih, d_w_hh, d_b_ih, d_b_hh)
            return tuple(d.to(like.dtype) for d, like in zip(found, given, strict=True))


def _factors(gates: Tensor, mixed: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens' (N, 3 D) shares of the gates from input and state, and the states before them (N,
    D) -> what dh is multiplied by for the gradients of `mixed`, (N, 3, D), and for that of n's
    input, (N, D); and z, (N, D)."""
    width = before.shape[1]
    rz, n, m = gates[:, : 2 * width], gates[:, 2 * width :], mixed[:, 2 * width :]
    r, z = rz.add_(mixed[:, : 2 * width]).sigmoid_().chunk(2, 1)
    n.addcmul_(r, m).tanh_()
    to_n = (1 - z).mul_(1 - n * n)
    factors = gates.new_empty(before.shape[0], 3, width)
    to_r, to_z, to_m = factors.unbind(1)
    torch.mul(to_n, r, out=to_m)
    torch.mul(to_m, m, out=to_r).mul_(1 - r)
    torch.mul(before - n, z * (1 - z), out=to_z)
    return factors, to_n, z.contiguous()


def _carry(d_hidden: Tensor, d_mixed: Tensor, z: Tensor, later: Tensor, w_hh: Tensor) -> None:
    """Adds to dh what the next token's gradients say: dh its own `later`, and d(mixed)."""
    if d_mixed.dtype == d_hidden.dtype:
        d_hidden.addmm_(d_mixed, w_hh)
    else:
        d_hidden.add_(d_mixed @ w_hh)
    d_hidden.addcmul_(later, z)
