"""Attention of key-value means to states and windows, for many chunks at once.

Goldstein and Cheah 2026, arXiv 2605.09877. Shapes: B batch, H heads, T tokens, D head width, Q
states, C tokens of a chunk, L tokens of a window, M rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops.attention import fused
from workloads.ops.kvm.memory import Memory
from workloads.ops.kvm.state import Learned, Method, read

PREFIXES = 16
"""Chunks that attend together where all states are prefixes of the same rows."""


def causal(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Plain causal attention of the last tokens to all, (B, H, T, D)."""
    if q.shape[2] == keys.shape[2]:
        return fused(q, keys, values, is_causal=True)
    tokens, seen = q.shape[2], keys.shape[2]
    mask = torch.ones(tokens, seen, dtype=torch.bool, device=q.device).tril(seen - tokens)
    return fused(q, keys, values, attn_mask=mask)


def chunks_to_states(
    q: Tensor, keys: Tensor, values: Tensor, memory: Memory, method: Method, learned: Learned
) -> Tensor:
    """Attention of q (B, H, T, D), which ends where keys and values end, to its chunk's state and
    window. The keys begin with the first chunk's window, and T may begin and end within a chunk."""
    growth = method.growth
    chunk, states = growth.chunk, len(memory.rows)
    tokens, held = q.shape[2], keys.shape[2]
    whole = (states + growth.window - 1) * chunk
    front = held - tokens - (growth.window - 1) * chunk
    row_keys, row_values = read(memory.keys, memory.values, memory.scales, method, learned)
    row_keys, row_values = row_keys.to(q.dtype), row_values.to(q.dtype)
    if row_keys.shape[2] < states:
        rows = (row_keys.squeeze(2), row_values.squeeze(2))
        return _prefixes(q, keys, values, rows, memory.rows, front, method)
    by_chunk = F.pad(q, (0, 0, front, whole - held)).reshape(-1, states, chunk, q.shape[-1])
    keys, values = (F.pad(t, (0, 0, 0, whole - held)) for t in (keys, values))
    keys = torch.cat((row_keys, *_windows(keys, states, chunk)), 3)
    values = torch.cat((row_values, *_windows(values, states, chunk)), 3)
    seen = _seen(memory.rows, growth.window, chunk, q.device)
    mixed = fused(by_chunk, keys.flatten(0, 1), values.flatten(0, 1), attn_mask=seen[None])
    return mixed.reshape(*q.shape[:2], -1, q.shape[-1])[:, :, front : front + tokens]


def _prefixes(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: tuple[Tensor, Tensor],
    filled: list[int],
    front: int,
    method: Method,
) -> Tensor:
    """`chunks_to_states` where all states are prefixes of the same rows (B, H, M, D): some chunks
    at a time, so that no more is masked than seen. The first token is the `front`-th of its
    chunk."""
    chunk, window = method.growth.chunk, method.growth.window
    mixed, start = [], front
    for first in range(0, len(filled), PREFIXES):
        last = min(first + PREFIXES, len(filled))
        end = min(last * chunk, front + q.shape[2])
        near = slice(first * chunk, end + (window - 1) * chunk)
        at = torch.arange(start, end, device=q.device)[:, None]
        held = torch.arange(near.start, near.stop, device=q.device)
        seen = (held // chunk >= at // chunk) & (held <= at + (window - 1) * chunk)
        most = torch.tensor(filled, device=q.device)[at // chunk]
        seen = torch.cat((torch.arange(filled[last - 1], device=q.device) < most, seen), 1)
        mixed.append(
            fused(
                q[:, :, start - front : end - front],
                torch.cat((rows[0][:, :, : filled[last - 1]], keys[:, :, near]), 2),
                torch.cat((rows[1][:, :, : filled[last - 1]], values[:, :, near]), 2),
                attn_mask=seen,
            )
        )
        start = end
    return torch.cat(mixed, 2)


def _windows(tokens: Tensor, states: int, chunk: int) -> list[Tensor]:
    """(B, H, T, D) -> for each chunk of the window, oldest first, that of every state: (B, H, Q, C,
    D)."""
    by_chunk = tokens.reshape(*tokens.shape[:2], -1, chunk, tokens.shape[-1])
    return [by_chunk[:, :, i : i + states] for i in range(by_chunk.shape[2] - states + 1)]


def _seen(rows: list[int], window: int, chunk: int, device: torch.device) -> Tensor:
    """Which of its rows and window tokens a chunk's tokens see: (Q or 1, C, M + L)."""
    most = rows[-1]
    near = torch.ones(chunk, chunk * window, dtype=torch.bool, device=device)
    near = near.tril(chunk * (window - 1))
    if rows[0] == most:
        return torch.cat((near.new_ones(chunk, most), near), 1)[None]
    filled = torch.arange(most, device=device) < torch.tensor(rows, device=device)[:, None]
    parts = (filled[:, None].expand(-1, chunk, -1), near.expand(len(rows), -1, -1))
    return torch.cat(parts, 2)
