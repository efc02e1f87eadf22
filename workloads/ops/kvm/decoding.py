"""Key-value means for one token: attention to the sums where they are held, without a copy of them.

A row is read as LN(x) = (x - mean x) / deviation x * weight + bias, x its sum of keys, so that q .
LN(x) = u . x / deviation x + q . bias with u = q weight - mean(q weight): the query is centred in
place of every row. A row's value is its sum times one number. Both numbers are noted when the sums
change, once in a chunk; a token costs its attention to rows and window and no other work that grows
with the rows. Goldstein and Cheah 2026, arXiv 2605.09877. Shapes: B batch, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workloads.mixer import put_token
from workloads.ops.kvm.cache import Cache, check_room, note_factors
from workloads.ops.kvm.state import Learned, Method, memory_keys, per_head, route, scales, weighed
from workloads.ops.precision import without_autocast


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

    The oldest chunk enters the state when a token opens a new one.

    Raises:
        ValueError: more tokens than the cache was made for.
    """
    growth = method.growth
    now, end = cache.length, cache.length + 1
    check_room(cache, growth, end)
    before, covered = growth.covered(now), growth.covered(end)
    rows, slot = growth.rows(covered), now - covered
    with without_autocast(q):
        if covered > before:
            _absorb(cache, growth.rows(before), rows, method, learned)
        put_token(cache.keys, slot, k)
        put_token(cache.values, slot, v)
        if gate is not None and cache.gates is not None:
            put_token(cache.gates, slot, gate)
        mixed = _attend(q.to(cache.row_keys.dtype), cache, rows, slot + 1, learned)
    return mixed.to(q.dtype), replace(cache, length=end)


def _attend(query: Tensor, cache: Cache, rows: int, near: int, learned: Learned) -> Tensor:
    """Attention of query (B, H, D) to the first rows and the first `near` window tokens, in the
    query's dtype."""
    query = query * query.shape[-1] ** -0.5
    ahead = query
    if learned.window_temperature is not None:
        ahead = query * per_head(learned.window_temperature, query)
    keys, values = (t.flatten(0, 1)[:, :near].to(query) for t in (cache.keys, cache.values))
    logits = torch.bmm(ahead.flatten(0, 1).unsqueeze(1), keys.mT)
    if not rows:
        return torch.bmm(logits.softmax(-1), values).view_as(query)
    row_logits, row_values = _row_logits(query, cache, rows, learned), cache.row_values
    weights = torch.cat((row_logits, logits), -1).softmax(-1)
    of_rows = weights[..., :rows] * cache.value_factors.flatten(0, 1)[:, None, :rows]
    mixed = torch.bmm(weights[..., rows:], values)
    return torch.baddbmm(mixed, of_rows, row_values.flatten(0, 1)[:, :rows]).view_as(query)


def _row_logits(query: Tensor, cache: Cache, rows: int, learned: Learned) -> Tensor:
    """What a softmax takes of scaled queries (B, H, D) and the first rows: (B H, 1, rows)."""
    if learned.state_temperature is not None:
        query = query * per_head(learned.state_temperature, query)
    turned = query * learned.weight.to(query)
    centred = (turned - turned.mean(-1, keepdim=True)).flatten(0, 1).unsqueeze(1)
    offset = (query @ learned.bias.to(query)).view(-1, 1, 1)
    products = torch.bmm(centred, cache.row_keys.flatten(0, 1)[:, :rows].mT)
    return torch.addcmul(offset, products, cache.key_factors.flatten(0, 1)[:, None, :rows])


def _absorb(cache: Cache, made: int, rows: int, method: Method, learned: Learned) -> None:
    """The window's oldest chunk enters the state of `made` rows, which has `rows` then, and the
    window moves up. In place, in the order of training's routing."""
    chunk = method.growth.chunk
    keys = memory_keys(cache.keys[:, :, :chunk], method, learned)
    values = cache.values[:, :, :chunk].to(keys.dtype)
    gates = None if cache.gates is None else cache.gates[:, :, :chunk]
    target, makes = route(keys, cache.row_keys[:, :, :made], gates, rows - made, method, learned)
    weights = weighed(gates, makes, method, initial=not made)
    cache.row_scales.scatter_add_(2, target, scales(values, weights, makes, method))
    if weights is not None:
        keys, values = keys * weights[..., None], values * weights[..., None]
    index = target[..., None].expand_as(keys)
    cache.row_keys.scatter_add_(2, index, keys)
    cache.row_values.scatter_add_(2, index, values)
    only_new = rows - made == chunk
    note_factors(cache, slice(made if only_new else 0, rows), method)
    for held in (cache.keys, cache.values, cache.gates):
        if held is not None:
            held[:, :, :-chunk] = held[:, :, chunk:].clone()
