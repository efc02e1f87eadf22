"""The decoding state of matrix memories: what it holds, and how finished segments enter it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workloads.mixer import MixerState
from workloads.ops.memory_caching.counter import carry
from workloads.ops.memory_caching.weights import Caching, Layout


@dataclass(slots=True)
class MatrixCache(MixerState):
    """memories: (B, H, slots, Dk, Dv'), filled from the front, or one slot a digit where the
    segmentation is logarithmic; summaries: (B, Hk, slots, Dk), None without a gate; online: (B, H,
    Dk, Dv') and key_sum: (B, Hk, Dk) of the open segment; length: tokens seen. Dv' is Dv, and one
    more where reads are normalised."""

    memories: Tensor
    summaries: Tensor | None
    online: Tensor
    key_sum: Tensor | None
    length: int


def empty_cache(
    caching: Caching,
    batch: int,
    heads: int,
    key_heads: int,
    widths: tuple[int, int],
    max_len: int,
    device: torch.device,
    dtype: torch.dtype,
) -> MatrixCache:
    """The state before the first token, with room for `max_len`; widths: (Dk, Dv). In float32 or
    wider."""
    dtype = torch.promote_types(dtype, torch.float32)
    slots, dk, dv = caching.slots(max_len), widths[0], widths[1] + caching.normalised

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device, dtype=dtype)

    return MatrixCache(
        zeros(batch, heads, slots, dk, dv),
        zeros(batch, key_heads, slots, dk) if caching.gated else None,
        zeros(batch, heads, dk, dv),
        zeros(batch, key_heads, dk) if caching.gated else None,
        0,
    )


def stored(
    caching: Caching,
    cache: MatrixCache,
    layout: Layout,
    ends: list[Tensor],
    summaries: list[Tensor] | None,
    key_sum: Tensor | None,
) -> MatrixCache:
    """The cache after the tokens laid out, every tensor in a storage of its own size."""
    length = cache.length + layout.length
    finished = length // caching.segment - cache.length // caching.segment
    at_end = length % caching.segment == 0
    for n in range(finished):
        store(
            caching,
            cache,
            n + cache.length // caching.segment,
            ends[n],
            None if summaries is None else summaries[n],
        )
    fresh = at_end and caching.start == "independent"
    online = (
        torch.zeros_like(cache.online)
        if fresh
        else ends[-1].clone(memory_format=torch.contiguous_format)
    )
    if key_sum is not None:
        key_sum = torch.zeros_like(key_sum) if at_end else key_sum.clone()
    return MatrixCache(cache.memories, cache.summaries, online, key_sum, length)


def store(
    caching: Caching, cache: MatrixCache, index: int, memory: Tensor, summary: Tensor | None
) -> None:
    """Keep the memory of finished segment `index`, in place."""
    if caching.logarithmic:
        carry(cache.memories, memory, index, 1.0)
        if cache.summaries is not None and summary is not None:
            carry(cache.summaries, summary, index, 0.5 if caching.pool == "mean" else 1.0)
        return
    cache.memories[:, :, index] = memory
    if cache.summaries is not None and summary is not None:
        cache.summaries[:, :, index] = summary
