"""The short depthwise causal convolution: y_t = bias + sum_i weight[:, i] x_(t-W+1+i).

Used inside mixers (Gu and Dao 2023, "Mamba", section 3.4) and before them. Its state, the history,
is the last W - 1 inputs, so that a context can be continued token by token.

On a CPU it is a sum of shifted products with a hand-written backward: less than half of conv2d's
time forward and backward, which in turn takes a fourth of nn.Conv1d's (width 4, 384 channels). On a
GPU it is torch's depthwise conv1d.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All positions at once, continuing from `history`; none is the empty context, zeros.

    Shapes: x (B, T, D), weight (D, W), whose last column meets the current token, bias (D),
    history (B, W-1, D) -> y (B, T, D) and the history after it, a tensor of its own. Computed and
    returned in x's dtype.
    """
    width = weight.shape[1]
    if history is None:
        padded = F.pad(x, (0, 0, width - 1, 0))
    else:
        padded = torch.cat((history.to(x.dtype), x), 1)
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if x.is_cuda:
        y = F.conv1d(padded.transpose(1, 2), weight[:, None], bias, groups=x.shape[2])
        y = y.transpose(1, 2)
    else:
        y = _ShiftedSum.apply(padded, weight, bias)  # type: ignore[no-untyped-call]
    return y, padded[:, x.shape[1] :].clone(memory_format=torch.contiguous_format)


def causal_conv_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: x (B, D), history (B, W-1, D) -> y (B, D) and the history after it. Writes nothing
    in place."""
    window = torch.cat((history, x[:, None]), 1)
    y = (window * weight.t().to(x.dtype)).sum(1)
    return y if bias is None else y + bias.to(x.dtype), window[:, 1:].clone()


class _ShiftedSum(torch.autograd.Function):
    """(B, W-1+T, D) x (D, W) -> (B, T, D). Autograd's own form of it makes a tensor for every tap
    and, backward, one of the padded size for every slice."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, weight)
        ctx.biased = bias is not None
        length = padded.shape[1] - weight.shape[1] + 1
        taps = weight.t().contiguous()
        y = padded[:, :length] * taps[0]
        for i in range(1, len(taps)):
            y.addcmul_(padded[:, i : i + length], taps[i])
        return y if bias is None else y.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        padded, weight = ctx.saved_tensors
        length = grad.shape[1]
        d_padded = d_weight = None
        if ctx.needs_input_grad[0]:
            taps = weight.t().contiguous()
            d_padded = torch.empty_like(padded)
            torch.mul(grad, taps[0], out=d_padded[:, :length])
            d_padded[:, length:] = 0
            for i in range(1, len(taps)):
                d_padded[:, i : i + length].addcmul_(grad, taps[i])
        if ctx.needs_input_grad[1]:
            shifted = (padded[:, i : i + length] for i in range(weight.shape[1]))
            d_weight = torch.stack([(grad * inputs).sum((0, 1)) for inputs in shifted], 1)
        return d_padded, d_weight, grad.sum((0, 1)) if ctx.biased else None
