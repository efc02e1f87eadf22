"""Chunks of a sequence, for the forms that solve a triangular system in each: the delta rule's and
WKV-7's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def chunk_of(length: int, most: int) -> int:
    """Tokens a chunk where `length` tokens come: `most`, or the next power of two to fewer."""
    return min(most, 1 << (length - 1).bit_length())


def to_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, T, H, ...) -> (N, B, H, chunk, ...), with zeros after the last token. Contiguous."""
    batch, length, heads, *rest = x.shape
    if padding := -length % chunk:
        x = F.pad(x, (0, 0) * (len(rest) + 1) + (0, padding))
    x = x.reshape(batch, -1, chunk, heads, *rest)
    return x.permute(1, 0, 3, 2, *range(4, x.ndim)).contiguous()


def from_chunks(x: Tensor, length: int) -> Tensor:
    """(N, B, H, chunk, D) -> (B, length, H, D), the inverse of `to_chunks`."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]


def solve_unit_lower(matrix: Tensor, *right: Tensor) -> tuple[Tensor, ...]:
    """X of (I + L) X = R for each R of `right`, all in one solve. L is what lies below the diagonal
    of `matrix`; the rest is never read, so that nothing has to be masked."""
    solved = torch.linalg.solve_triangular(
        matrix, torch.cat(right, -1), upper=False, unitriangular=True
    )
    return torch.split(solved, [x.shape[-1] for x in right], -1)


def empty_memory(k: Tensor, v: Tensor) -> Tensor:
    """What (B, T, H, Dk) and (B, T, H, Dv) start from: (B, H, Dk, Dv) of zeros, in float32 or
    wider."""
    shape = (v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    return torch.zeros(shape, dtype=torch.promote_types(v.dtype, torch.float32), device=v.device)
