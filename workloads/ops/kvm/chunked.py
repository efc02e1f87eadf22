"""Key-value means for many tokens at once.

In two phases: the states after every chunk (`memory`), then one attention of all chunks to their
state and window (`reading`). Goldstein and Cheah 2026, arXiv 2605.09877. Shapes: B batch, H heads,
T tokens, D head width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workloads.ops.kvm.cache import Cache, check_room, note_factors
from workloads.ops.kvm.memory import Memory, remember
from workloads.ops.kvm.reading import causal, chunks_to_states
from workloads.ops.kvm.state import Learned, Method, per_head


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    *,
    method: Method,
    learned: Learned,
    cache: Cache | None = None,
) -> tuple[Tensor, Cache | None]:
    """Mix T more tokens: q, k (normalised, rotated) and v (B, H, T, D), gate (B, H, T) -> (B, H, T,
    D) and the cache after them, whose buffers are written in place; without a cache the context is
    empty and none is made.

    Raises:
        ValueError: more tokens than the cache was made for.
    """
    growth = method.growth
    start = cache.length if cache else 0
    end = start + q.shape[2]
    before, after = growth.covered(start), growth.covered(end)
    if cache is not None:
        check_room(cache, growth, end)
    if cache is not None and start > before:
        held = slice(0, start - before)
        k = torch.cat((cache.keys[:, :, held], k), 2)
        v = torch.cat((cache.values[:, :, held], v), 2)
        if gate is not None and cache.gates is not None:
            gate = torch.cat((cache.gates[:, :, held], gate), 2)
    near = k if learned.window_temperature is None else k * per_head(learned.window_temperature, k)
    early = min(max(growth.span - start, 0), end - start)
    mixed: list[Tensor] = []
    if early:  # before the state is read: plain causal attention
        seen = start + early
        mixed.append(causal(q[:, :, :early], near[:, :, :seen], v[:, :, :seen]))
    memory = None
    if end > growth.span:
        absorbed = slice(0, after - before)
        gone = None if gate is None else gate[:, :, absorbed]
        memory = remember(
            k[:, :, absorbed],
            v[:, :, absorbed],
            gone,
            method=method,
            learned=learned,
            cache=cache,
            keep_first=start > growth.span and start % growth.chunk != 0,
        )
        offset = after - (len(memory.rows) - 1) * growth.chunk - before
        mixed.append(
            chunks_to_states(
                q[:, :, early:], near[:, :, offset:], v[:, :, offset:], memory, method, learned
            )
        )
    if cache is not None:
        cache = _written(cache, k, v, gate, memory, after - before, end, method)
    return torch.cat(mixed, 2) if len(mixed) > 1 else mixed[0], cache


def _written(
    cache: Cache,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    memory: Memory | None,
    dropped: int,
    end: int,
    method: Method,
) -> Cache:
    """The cache after `end` tokens: the last state, and the window's tokens without those
    `dropped`."""
    if memory is not None:
        rows = slice(0, memory.rows[-1])
        cache.row_keys[:, :, rows] = memory.keys[:, :, -1]
        cache.row_values[:, :, rows] = memory.values[:, :, -1]
        cache.row_scales[:, :, rows] = memory.scales[:, :, -1]
        note_factors(cache, rows, method)
    held = slice(0, k.shape[2] - dropped)
    cache.keys[:, :, held] = k[:, :, dropped:]
    cache.values[:, :, held] = v[:, :, dropped:]
    if cache.gates is not None and gate is not None:
        cache.gates[:, :, held] = gate[:, :, dropped:]
    return replace(cache, length=end)
