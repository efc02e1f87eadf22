"""What key-value means hold while decoding: the state's rows and the window's tokens, allocated
once.

Beside its sums and its scale a row has two factors, by which a step reads the sums where they are
(`decoding`). Rows held a second time, as they are read, would save a step on a CPU 30 us where they
are few and cost it time where rows times batch are many, and would double the state's bytes.
Shapes: B batch, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workloads.mixer import MixerState
from workloads.ops.kvm.growth import Growth
from workloads.ops.kvm.state import Method, key_factors, value_factors


@dataclass(slots=True)
class Cache(MixerState):
    """A state with its window, after `length` tokens.

    row_keys, row_values: sums (B, H, rows, D); row_scales, and key_factors and value_factors that
    follow from sums and scales: (B, H, rows); all in float32 at least. keys (rotated), values: (B,
    H, window, D) in the model's dtype, gates (B, H, window) in float32 at least, or None without a
    gate. previous: the last token's projections (B, channels), where tokens are shifted. How many
    rows and window tokens are filled follows from `length`; rows beyond are zero.
    """

    row_keys: Tensor
    row_values: Tensor
    row_scales: Tensor
    key_factors: Tensor
    value_factors: Tensor
    keys: Tensor
    values: Tensor
    gates: Tensor | None
    previous: Tensor | None
    length: int


def empty_cache(
    shape: tuple[int, int, int],
    growth: Growth,
    max_len: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    gated: bool,
    shifted: int = 0,
) -> Cache:
    """For (B, H, D) and as many rows as the law makes of `max_len` tokens. `shifted` channels of
    the last token are kept where tokens are shifted."""
    batch, heads, width = shape
    exact = torch.promote_types(dtype, torch.float32)
    rows, window = growth.rows(growth.covered(max_len)), min(growth.span, max_len)

    def zeros(*size: int, dtype: torch.dtype = exact) -> Tensor:
        return torch.zeros(size, device=device, dtype=dtype)

    return Cache(
        row_keys=zeros(batch, heads, rows, width),
        row_values=zeros(batch, heads, rows, width),
        row_scales=zeros(batch, heads, rows),
        key_factors=zeros(batch, heads, rows),
        value_factors=zeros(batch, heads, rows),
        keys=zeros(batch, heads, window, width, dtype=dtype),
        values=zeros(batch, heads, window, width, dtype=dtype),
        gates=zeros(batch, heads, window) if gated else None,
        previous=zeros(batch, shifted, dtype=dtype) if shifted else None,
        length=0,
    )


def check_room(cache: Cache, growth: Growth, end: int) -> None:
    """Raises ValueError where the cache was made for fewer than `end` tokens."""
    rows = growth.rows(growth.covered(end))
    if rows > cache.row_keys.shape[2] or min(end, growth.span) > cache.keys.shape[2]:
        raise ValueError(f"this state was made for fewer than {end} tokens")


def note_factors(cache: Cache, rows: slice, method: Method) -> None:
    """To be called where sums or scales of these rows have changed."""
    cache.key_factors[:, :, rows] = key_factors(cache.row_keys[:, :, rows])
    cache.value_factors[:, :, rows] = value_factors(
        cache.row_values[:, :, rows], cache.row_scales[:, :, rows], method
    )
