"""Memory caching over vector memories: hidden states of an LSTM or GRU at segment ends.

An adaptation, not in the paper. Read `hidden`: a memory answers with its hidden vector, so that the
layer attends over segment-end hidden vectors, with pooled inputs as keys. Read `gate` (LSTM): a
memory is a cell, and answers with o_t tanh(cell) under the output gate of the token that reads; the
online answer is then the LSTM's own output. The recurrence itself is untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workloads.mixer import MixerState
from workloads.ops.memory_caching.weights import Caching, Layout, pool_keys, weigh
from workloads.ops.precision import without_autocast


@dataclass(slots=True)
class VectorCache(MixerState):
    """memories: (B, slots, D), hidden vectors or cells at segment ends, in the input's dtype;
    summaries: (B, slots, Dk) and key_sum: (B, Dk), None without a gate, in float32 or wider;
    hidden, cell: (B, D), cell None for a GRU; length: tokens seen."""

    memories: Tensor
    summaries: Tensor | None
    hidden: Tensor
    cell: Tensor | None
    key_sum: Tensor | None
    length: int


def empty_cache(
    caching: Caching,
    batch: int,
    width: int,
    has_cell: bool,
    max_len: int,
    device: torch.device,
    dtype: torch.dtype,
) -> VectorCache:
    """The state before the first token, with room for `max_len`."""
    slots, wide = caching.slots(max_len), torch.promote_types(dtype, torch.float32)
    summaries = key_sum = None
    if caching.gated:
        summaries = torch.zeros((batch, slots, width), device=device, dtype=wide)
        key_sum = torch.zeros((batch, width), device=device, dtype=wide)
    hidden = torch.zeros((batch, width), device=device, dtype=dtype)
    return VectorCache(
        torch.zeros((batch, slots, width), device=device, dtype=dtype),
        summaries,
        hidden,
        torch.zeros_like(hidden) if has_cell else None,
        key_sum,
        0,
    )


@dataclass(slots=True)
class Trace:
    """What a recurrence over some tokens leaves. hidden: (B, T, D). ends: (B, N, D), the memory at
    the end of each segment, in the open one as far as it goes. out_gate: (B, T, D), for read
    `gate`; cells: (B, T, D), for a soup of cells; last: hidden and cell after the last token."""

    hidden: Tensor
    ends: Tensor
    out_gate: Tensor | None
    cells: Tensor | None
    last: tuple[Tensor, Tensor | None]


def vector_caching(
    trace: Trace,
    k: Tensor | None,
    u: Tensor | None,
    caching: Caching,
    *,
    cache: VectorCache | None = None,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, VectorCache | None]:
    """All tokens at once: k, u (B, T, Dk), None without a gate -> (B, T, D) in the hidden vectors'
    dtype, and the cache after them where one was given, its buffers written in place."""
    given = trace.hidden.dtype
    with without_autocast(trace.hidden):
        dtype = torch.promote_types(given, torch.float32)
        seen = 0 if cache is None else cache.length
        layout = Layout.of(trace.hidden.shape[1], seen, caching.segment, lengths)
        before, segments = seen // caching.segment, layout.segments
        ends = trace.ends.to(dtype)
        memories = ends[:, : segments - 1]
        if cache is not None and before:
            memories = torch.cat((cache.memories[:, :before].to(dtype), memories), 1)
        cached_logits = online_logits = pooled = None
        if k is not None and u is not None:
            u = u.to(dtype) * caching.gate_scale
            keys = layout.lay(k.to(dtype))[..., None, :]
            key_sum = None if cache is None or cache.key_sum is None else cache.key_sum[:, None]
            pooled = pool_keys(keys, key_sum, layout, caching.pool)
            summaries = pooled.ends[:, : segments - 1, 0]
            if cache is not None and cache.summaries is not None and before:
                summaries = torch.cat((cache.summaries[:, :before], summaries), 1)
            cached_logits = u @ summaries.mT
            running = layout.gather(pooled.running)[:, :, 0]
            online_logits = (u * running).sum(-1, keepdim=True)
        device = trace.hidden.device
        counts = torch.tensor(layout.pieces, device=device)
        segment = torch.arange(before, before + segments, device=device).repeat_interleave(
            counts, output_size=trace.hidden.shape[1]
        )
        columns = torch.arange(memories.shape[1], device=device)
        visible = (columns < segment[:, None]).to(dtype)
        weights, own = weigh(caching, visible, cached_logits, online_logits)
        output = _answer(
            weights.expand(ends.shape[0], -1, -1),
            own,
            memories,
            trace.hidden.to(dtype),
            None if trace.out_gate is None else trace.out_gate.to(dtype),
            None if trace.cells is None else trace.cells.to(dtype),
        )
    if cache is None:
        return output.to(given), None
    end = seen + layout.length
    finished, at_end = end // caching.segment - before, end % caching.segment == 0
    cache.memories[:, before : before + finished] = trace.ends[:, :finished]
    key_sum = None
    if pooled is not None and cache.summaries is not None:
        cache.summaries[:, before : before + finished] = pooled.ends[:, :finished, 0]
        key_sum = pooled.key_sum[:, 0].clone()
    hidden, cell = trace.last
    return output.to(given), _reset(
        caching, at_end, cache, hidden.clone(), None if cell is None else cell.clone(), key_sum, end
    )


def vector_caching_step(
    hidden: Tensor,
    cell: Tensor | None,
    out_gate: Tensor | None,
    k: Tensor | None,
    u: Tensor | None,
    caching: Caching,
    *,
    cache: VectorCache,
) -> tuple[Tensor, VectorCache]:
    """One token, after the recurrence's own step: hidden, cell, out_gate (B, D), k, u (B, Dk) ->
    (B, D) and the cache after it. out_gate is given for read `gate` alone."""
    given = hidden.dtype
    dtype = torch.promote_types(given, torch.float32)
    before, position = divmod(cache.length, caching.segment)
    memories = cache.memories[:, :before].to(dtype)
    key_sum, summary = cache.key_sum, None
    cached_logits = online_logits = None
    if k is not None and u is not None and key_sum is not None and cache.summaries is not None:
        u = u.to(dtype)[:, None] * caching.gate_scale
        key_sum = key_sum + k.to(dtype)
        summary = key_sum / (position + 1) if caching.pool == "mean" else key_sum
        cached_logits = u @ cache.summaries[:, :before].mT
        online_logits = (u * summary[:, None]).sum(-1, keepdim=True)
    weights, own = weigh(
        caching,
        torch.ones((1, before), device=hidden.device, dtype=dtype),
        cached_logits,
        online_logits,
    )
    soup = caching.rule == "soup" and out_gate is not None and cell is not None
    output = _answer(
        weights.expand(hidden.shape[0], -1, -1),
        own,
        memories,
        hidden.to(dtype)[:, None],
        None if out_gate is None else out_gate.to(dtype)[:, None],
        cell.to(dtype)[:, None] if soup and cell is not None else None,
    )[:, 0]
    at_end = position + 1 == caching.segment
    if at_end:
        kept = hidden if out_gate is None else cell
        assert kept is not None
        cache.memories[:, before] = kept
        if cache.summaries is not None and summary is not None:
            cache.summaries[:, before] = summary
    return output.to(given), _reset(caching, at_end, cache, hidden, cell, key_sum, cache.length + 1)


def _answer(
    weights: Tensor,
    own: Tensor,
    memories: Tensor,
    hidden: Tensor,
    out_gate: Tensor | None,
    cells: Tensor | None,
) -> Tensor:
    """weights (B, T, M), own (B or 1, T, 1), memories (B, M, D), others (B, T, D) -> (B, T, D)."""
    if out_gate is None:
        return own * hidden + weights @ memories
    if cells is not None:
        return out_gate * (own * cells + weights @ memories).tanh()
    return own * hidden + out_gate * (weights @ memories.tanh())


def _reset(
    caching: Caching,
    at_end: bool,
    cache: VectorCache,
    hidden: Tensor,
    cell: Tensor | None,
    key_sum: Tensor | None,
    length: int,
) -> VectorCache:
    """The cache with its online part, emptied where a segment has just ended."""
    if at_end:
        key_sum = None if key_sum is None else torch.zeros_like(key_sum)
        if caching.start == "independent":
            hidden = torch.zeros_like(hidden)
            cell = None if cell is None else torch.zeros_like(cell)
    return VectorCache(cache.memories, cache.summaries, hidden, cell, key_sum, length)
