"""Memory caching over matrix memories: S_t = exp(g_t) S_(t-1) + k_t v_t^T, read as q S.

All reads are linear in the memory, so every rule is a weight for each token and memory: the cached
part is one product of [w_1 q, ..., w_M q] with the stacked memories, segment by segment, so that
no product is made with memories that lie ahead. Inside a segment it is plain gated linear
attention. A normalised read (q S) / (q z) carries z as one more value column of S and goes into the
weights too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops.gated_linear import gated_linear_attention
from workloads.ops.memory_caching.cache import MatrixCache, store, stored
from workloads.ops.memory_caching.counter import binary_counter, digits
from workloads.ops.memory_caching.read import weighted_read
from workloads.ops.memory_caching.weights import Caching, Layout, pool_keys, weigh
from workloads.ops.precision import without_autocast


def memory_caching(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    log_decay: Tensor | None,
    caching: Caching,
    *,
    scale: float,
    cache: MatrixCache | None = None,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, MatrixCache | None]:
    """All tokens at once, continuing from `cache`, whose buffers it writes.

    q, k: (B, T, H, Dk), or (B, T, 1, Dk) where all heads share them; the pooled keys are these k.
    v: (B, T, H, Dv). u: (B, T, H, Dk), the connector of gated rules. log_decay: (B, T, H), at most
    0. lengths: uneven segments in place of `caching.segment`, from an empty context. Returns the
    outputs (B, T, H, Dv) in v's dtype, and the cache after them where one was given.

    Raises:
        ValueError: `lengths` that do not sum to T or do not start at the first token.
    """
    given = v.dtype
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        q, k, v = q.to(dtype) * scale, k.to(dtype), v.to(dtype)
        if caching.normalised:
            v = F.pad(v, (0, 1), value=1.0)
        seen = 0 if cache is None else cache.length
        layout = Layout.of(v.shape[1], seen, caching.segment, lengths)
        q, k, v = layout.lay(q), layout.lay(k), layout.lay(v)
        decay = None if log_decay is None else layout.lay(log_decay.to(dtype))
        online, ends = _inside_segments(q, k, v, decay, caching, cache)
        output = online.permute(0, 3, 1, 2, 4)  # (B, H, N, C, Dv)
        before, heads = seen // caching.segment, v.shape[3]
        queries = q.permute(0, 3, 1, 2, 4).expand(-1, heads, -1, -1, -1)
        keys, summaries, key_sum = None, None, None
        if u is not None and caching.gated:
            connector = layout.lay(u.to(dtype)).permute(0, 3, 1, 2, 4)
            pooled = pool_keys(k, None if cache is None else cache.key_sum, layout, caching.pool)
            keys = connector, pooled.running.permute(0, 3, 1, 2, 4)
            summaries, key_sum = list(pooled.ends.unbind(1)), pooled.key_sum
        memories, summary, visible = _cached(caching, cache, ends, summaries, before)
        count = memories.shape[3]
        if count or caching.normalised:
            cached_logits = online_logits = cached_scale = online_scale = None
            if keys is not None and summary is not None:
                connector, running = keys
                cached_logits = _scores(connector, summary) * caching.gate_scale
                online_logits = (connector * running).sum(-1, keepdim=True) * caching.gate_scale
            if caching.normalised:
                cached_scale = _scores(queries, memories[..., -1])
                online_scale = output[..., -1:]
            weights, own = weigh(
                caching, visible, cached_logits, online_logits, cached_scale, online_scale
            )
            weights = weights.expand(*queries.shape[:-1], count)
            output = own * output
            if count:
                output = output + weighted_read(weights, queries, memories, before)
        if caching.normalised:
            output = output[..., :-1]
        result = layout.gather(output.permute(0, 2, 3, 1, 4)).to(given)
        if cache is None:
            return result, None
        return result, stored(caching, cache, layout, ends, summaries, key_sum)


def _inside_segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    caching: Caching,
    cache: MatrixCache | None,
) -> tuple[Tensor, list[Tensor]]:
    """The online memories' reads (B, N, C, H, Dv), and the N memories (B, H, Dk, Dv) at the ends of
    the segments."""
    batch, segments = v.shape[:2]
    start = None
    if cache is not None:
        start = F.pad(cache.online[:, None], (0, 0) * 3 + (0, segments - 1)).flatten(0, 1)
    output, states = gated_linear_attention(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        None if decay is None else decay.flatten(0, 1),
        scale=1.0,
        initial_state=start,
    )
    output = torch.unflatten(output, 0, (batch, segments))
    ends = list(torch.unflatten(states, 0, (batch, segments)).unbind(1))
    if caching.start == "independent" or segments == 1:
        return output, ends
    if decay is None:
        for n in range(1, segments):
            ends[n] = ends[n] + ends[n - 1]
    else:
        since_start = decay.cumsum(2).exp()
        kept = since_start[:, :, -1, :, None, None].unbind(1)
        for n in range(1, segments):
            ends[n] = torch.addcmul(ends[n], kept[n], ends[n - 1])
        q = q * since_start[..., None]
    carried = q[:, 1:].transpose(2, 3) @ torch.stack(ends[:-1], 1)
    return output + F.pad(carried.transpose(2, 3), (0, 0) * 3 + (1, 0)), ends


def _cached(
    caching: Caching,
    cache: MatrixCache | None,
    ends: list[Tensor],
    summaries: list[Tensor] | None,
    before: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the segments of one call see: memories (B, H, 1 or N, M, Dk, Dv), summaries (B, Hk, 1 or
    N, M, Dk), and which are visible (N, 1, M). A 1 where all segments share the list."""
    segments = len(ends)
    device, dtype = ends[0].device, ends[0].dtype
    if caching.logarithmic and before + segments > 1:
        old = None if cache is None else cache.memories
        memories, visible = binary_counter(old, ends[:-1], before, 1.0)
        summary = None
        if summaries is not None:
            old = None if cache is None else cache.summaries
            half = 0.5 if caching.pool == "mean" else 1.0
            summary, _ = binary_counter(old, summaries[:-1], before, half)
        return memories, summary, visible.to(device, dtype)[:, None]
    old = None if cache is None else cache.memories[:, :, :before]
    memories = _joined(old, ends[:-1], ends[0])
    summary = None
    if summaries is not None:
        old = None if cache is None or cache.summaries is None else cache.summaries[:, :, :before]
        summary = _joined(old, summaries[:-1], summaries[0])[:, :, None]
    segment = torch.arange(before, before + segments, device=device)
    column = torch.arange(memories.shape[2], device=device)
    visible = (column < segment[:, None]).to(dtype)[:, None]
    return memories[:, :, None], summary, visible


def _joined(old: Tensor | None, new: list[Tensor], like: Tensor) -> Tensor:
    """Cached (B, H, M, ...) and new (B, H, ...) along the list of memories; copies no cache where
    nothing is new."""
    if not new:
        return like.new_zeros((*like.shape[:2], 0, *like.shape[2:])) if old is None else old
    stacked = torch.stack(new, 2)
    return stacked if old is None or not old.shape[2] else torch.cat((old, stacked), 2)


def _scores(x: Tensor, keys: Tensor) -> Tensor:
    """(B, H, N, C, D) . (B, Hk, 1 or N, M, D) -> (B, H, N, C, M)."""
    if keys.shape[2] == 1:
        return torch.unflatten(x.flatten(2, 3) @ keys[:, :, 0].mT, 2, x.shape[2:4])
    return x @ keys.mT


def memory_caching_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    log_decay: Tensor | None,
    caching: Caching,
    *,
    scale: float,
    cache: MatrixCache,
) -> tuple[Tensor, MatrixCache]:
    """One token: q, k (B, H or 1, Dk), v (B, H, Dv), u (B, H, Dk), log_decay (B, H) -> (B, H, Dv)
    and the cache after it, written in place where a segment ends."""
    given = v.dtype
    dtype = torch.promote_types(v.dtype, torch.float32)
    q, k, v = q.to(dtype) * scale, k.to(dtype), v.to(dtype)
    if caching.normalised:
        v = F.pad(v, (0, 1), value=1.0)
    before, position = divmod(cache.length, caching.segment)
    write = k[..., None] * v[..., None, :]
    if log_decay is None:
        online = cache.online + write
    else:
        online = torch.addcmul(write, cache.online, log_decay.to(dtype).exp()[..., None, None])
    q = q.expand(-1, v.shape[1], -1)
    output = (q[..., None, :] @ online)[..., 0, :]
    count = caching.slots(cache.length)
    memories = cache.memories[:, :, :count]
    seen = torch.ones(count, device=v.device, dtype=dtype)
    if caching.logarithmic:
        seen = torch.tensor(digits(before), device=v.device, dtype=dtype)
    key_sum, summary = cache.key_sum, None
    cached_logits = online_logits = None
    if key_sum is not None and cache.summaries is not None and u is not None:
        u = u.to(dtype) * caching.gate_scale
        key_sum = key_sum + k
        pool = position + 1 if caching.pool == "mean" else 1
        summary = key_sum / pool
        online_logits = (u * summary).sum(-1, keepdim=True)
        cached_logits = (u[..., None, :] @ cache.summaries[:, :, :count].mT)[..., 0, :]
        if caching.rule == "sparse" and caching.top_k < count:
            masked = cached_logits.masked_fill(seen == 0, -torch.inf)
            best = masked.topk(caching.top_k, -1).indices
            cached_logits, seen = cached_logits.gather(-1, best), seen[best]
            index = best[..., None, None].expand(*best.shape, *memories.shape[3:])
            memories = memories.gather(2, index)
    if count or caching.normalised:
        cached_scale = online_scale = None
        if caching.normalised:
            cached_scale = (memories[..., -1] @ q[..., None])[..., 0]
            online_scale = output[..., -1:]
        weights, own = weigh(
            caching, seen, cached_logits, online_logits, cached_scale, online_scale
        )
        output = own * output
        if count:
            row = (weights.expand(*memories.shape[:3])[..., None] * q[:, :, None]).flatten(2)
            output = output + (row[:, :, None] @ memories.flatten(2, 3))[:, :, 0]
    if caching.normalised:
        output = output[..., :-1]
    if position + 1 == caching.segment:
        store(caching, cache, before, online, summary)
        if caching.start == "independent":
            online = torch.zeros_like(online)
        key_sum = None if key_sum is None else torch.zeros_like(key_sum)
    length = cache.length + 1
    return output.to(given), MatrixCache(cache.memories, cache.summaries, online, key_sum, length)
