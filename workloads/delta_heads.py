"""The heads of the delta-rule architectures, each with a square matrix of memory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class HeadOptions(Protocol):
    """heads: heads a layer, each d_model / heads wide."""

    @property
    def heads(self) -> int: ...


def check(options: HeadOptions) -> None:
    """Raises ValueError for no heads."""
    if options.heads < 1:
        raise ValueError(f"heads must be at least 1, not {options.heads}")


def width_multiple(options: HeadOptions) -> int:
    """Heads of equal width, a multiple of 8 channels."""
    return 8 * options.heads


def head_width(d_model: int, options: HeadOptions) -> int:
    """Raises ValueError where d_model does not split into `heads` heads of 8 n channels."""
    if d_model % width_multiple(options):
        raise ValueError(
            f"{options.heads} heads of a multiple of 8 channels need a d_model that is a multiple "
            f"of {width_multiple(options)}, not {d_model}"
        )
    return d_model // options.heads


def empty_memory(
    batch_size: int, heads: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(B, heads, key width, value width) of zeros, in float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    return torch.zeros(batch_size, heads, width, width, device=device, dtype=wide)


def memory_bytes(d_model: int, options: HeadOptions, seq_len: int, element_bytes: int) -> int:
    """Of one sequence's memories, at any length."""
    return d_model * (d_model // options.heads) * max(4, element_bytes)


def saved_in_chunks(
    d_model: int, options: HeadOptions, chunk: int, *, matrices: int, scalars: int
) -> float:
    """Kept for backward per token: so many C x C matrices and scalars a token in each head, and the
    memory before each chunk."""
    memory = d_model * (d_model // options.heads)
    return options.heads * (matrices * chunk + scalars) + 2 * memory / chunk
