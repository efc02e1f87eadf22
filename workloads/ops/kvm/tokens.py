"""What is made of a token before it is mixed: rotation, merge gate, and two extras of the backbone
that key-value means were published in.

Sources: Goldstein and Cheah 2026, arXiv 2605.09877, and the authors' code. Shapes: B batch, H
heads, T tokens, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROPE_BASE = 10_000.0

_rotary: dict[tuple[int, int, float, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}


def rotary_tables(
    width: int,
    channels: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
    base: float = ROPE_BASE,
) -> tuple[Tensor, Tensor]:
    """cos and (sin, -sin, ...) of every position's angles, each (at least `length`, width); 1 and 0
    from channel `channels` on.

    The frequencies are base^(-j / (channels/2 - 1)): from 1 down to 1/base inclusive. Computed once
    in float64, kept for all layers, and grown to the next power of two for a longer context.
    """
    key = (width, channels, base, device, dtype)
    tables = _rotary.get(key)
    if tables is None or tables[0].shape[0] < length:
        # Never inference tensors: the same tables serve training later.
        with torch.inference_mode(False):
            pairs = torch.arange(channels // 2, dtype=torch.float64, device="cpu")
            position = torch.arange(
                1 << (length - 1).bit_length(), dtype=torch.float64, device="cpu"
            )
            angle = position[:, None] * base ** -(pairs / max(channels // 2 - 1, 1))
            angle = F.pad(angle.repeat_interleave(2, 1), (0, width - channels))
            sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device="cpu").repeat(width // 2)
            tables = (angle.cos().to(device, dtype), (angle.sin() * sign).to(device, dtype))
        _rotary[key] = tables
    return tables


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turns the neighbours (2j, 2j + 1) of the last dimension by their position's angle."""
    swapped = x.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, signed_sin)


def merge_gate(z: Tensor) -> Tensor:
    """1 + ELU(z), always positive, in float32 at least: how much a token weighs when merged."""
    return 1 + F.elu(z.to(torch.promote_types(z.dtype, torch.float32)))


def token_shift(x: Tensor, mix: Tensor, previous: Tensor | None = None) -> Tensor:
    """x_t + mix (x_(t-1) - x_t) along dimension 1 of (B, T, channels), `mix` (channels,).

    `previous` (B, channels) is the token before the first; without one the first stays itself.
    """
    first = x[:, :1] if previous is None else previous.unsqueeze(1)
    before = torch.cat((first, x[:, :-1]), 1)
    return torch.addcmul(x, mix, before - x)


def value_residual(v: Tensor, first: Tensor, gate: Tensor) -> Tensor:
    """v + sigmoid(gate) (first - v), each (B, T, channels): `first` are the first layer's values,
    before any shift, and `gate` is what a low-rank map makes of this layer's input."""
    return v + (first - v) * torch.sigmoid(gate)
