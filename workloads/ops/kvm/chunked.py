"""Key-value means for many tokens at once, and for one.

Many tokens take two phases: the states after every chunk (`memory`), then one attention of all
chunks to their state and window (`reading`). Goldstein and Cheah 2026, arXiv 2605.09877. Shapes: B
batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops.attention import decoding_kernels
from workloads.ops.kvm.memory import Memory, remember
from workloads.ops.kvm.reading import causal, chunks_to_states
from workloads.ops.kvm.state import Cache, Learned, Method, per_head, read


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
        _check_room(cache, method, end)
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
        cache = _written(cache, k, v, gate, memory, after - before, end)
    return torch.cat(mixed, 2) if len(mixed) > 1 else mixed[0], cache


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    *,
    method: Method,
    learned: Learned,
    cache: Cache,
) -> tuple[Tensor, Cache]:
    """Mix one token: q, k, v (B, H, D), gate (B, H) -> (B, H, D) and the cache after it, written in
    place.

    The oldest chunk enters the state when a token opens a new one. Raises ValueError as `attend`.
    """
    growth = method.growth
    now, end = cache.length, cache.length + 1
    _check_room(cache, method, end)
    covered = growth.covered(end)
    if covered > growth.covered(now):
        _absorb(cache, method, learned)
    slot = now - covered
    cache.keys[:, :, slot] = k
    cache.values[:, :, slot] = v
    if gate is not None and cache.gates is not None:
        cache.gates[:, :, slot] = gate
    keys, values = cache.keys[:, :, : slot + 1], cache.values[:, :, : slot + 1]
    if learned.window_temperature is not None:
        keys = keys * per_head(learned.window_temperature, keys)
    if covered:
        rows = slice(0, growth.rows(covered))
        row_keys, row_values = read(
            cache.row_keys[:, :, rows],
            cache.row_values[:, :, rows],
            cache.row_scales[:, :, rows],
            method,
            learned,
        )
        keys = torch.cat((row_keys.to(keys.dtype), keys), 2)
        values = torch.cat((row_values.to(values.dtype), values), 2)
    with decoding_kernels(q):
        mixed = F.scaled_dot_product_attention(q.unsqueeze(2), keys, values)
    return mixed.squeeze(2), replace(cache, length=end)


def _check_room(cache: Cache, method: Method, end: int) -> None:
    growth = method.growth
    rows = growth.rows(growth.covered(end))
    if rows > cache.row_keys.shape[2] or min(end, growth.span) > cache.keys.shape[2]:
        raise ValueError(f"this state was made for fewer than {end} tokens")


def _absorb(cache: Cache, method: Method, learned: Learned) -> None:
    """The window's oldest chunk enters the state, and the window moves up."""
    chunk, span = method.growth.chunk, method.growth.span
    oldest = slice(0, chunk)
    gates = cache.gates
    memory = remember(
        cache.keys[:, :, oldest],
        cache.values[:, :, oldest],
        None if gates is None else gates[:, :, oldest],
        method=method,
        learned=learned,
        cache=cache,
    )
    _write_rows(cache, memory)
    for held in (cache.keys, cache.values, gates):
        if held is not None:
            held[:, :, : span - chunk] = held[:, :, chunk:].clone()


def _write_rows(cache: Cache, memory: Memory) -> None:
    rows = slice(0, memory.rows[-1])
    cache.row_keys[:, :, rows] = memory.keys[:, :, -1]
    cache.row_values[:, :, rows] = memory.values[:, :, -1]
    cache.row_scales[:, :, rows] = memory.scales[:, :, -1]


def _written(
    cache: Cache,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    memory: Memory | None,
    dropped: int,
    end: int,
) -> Cache:
    """The cache after `end` tokens: the last state, and the window's tokens without those
    `dropped`."""
    if memory is not None:
        _write_rows(cache, memory)
    held = slice(0, k.shape[2] - dropped)
    cache.keys[:, :, held] = k[:, :, dropped:]
    cache.values[:, :, held] = v[:, :, dropped:]
    if cache.gates is not None and gate is not None:
        cache.gates[:, :, held] = gate[:, :, dropped:]
    return replace(cache, length=end)
