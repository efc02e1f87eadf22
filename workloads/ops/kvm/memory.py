"""The states of key-value means that a run of chunks leaves behind, all at once.

First the chunks are gone through in their order, without gradient, only to decide which token
enters which row. As a state is a sum, one scattered and one running sum then make every state.
Goldstein and Cheah 2026, arXiv 2605.09877. Shapes: B batch, H heads, D head width, A chunks
absorbed, Q states, C tokens of a chunk, M rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops.kvm.cache import Cache
from workloads.ops.kvm.state import Learned, Method, memory_keys, route, scales, weighed
from workloads.ops.precision import without_autocast


@dataclass(slots=True)
class Memory:
    """The states one after another: sums (B, H, Q, M, D) of keys and values and scales (B, H, Q,
    M), of which `rows[i]` are filled in state i; one for all (Q = 1) where no token was ever
    merged. And for each absorbed token (B, H, A, C) its row, and whether it made the row."""

    keys: Tensor
    values: Tensor
    scales: Tensor
    rows: list[int]
    target: Tensor
    makes: Tensor


def remember(
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    *,
    method: Method,
    learned: Learned,
    cache: Cache | None = None,
    keep_first: bool = False,
) -> Memory:
    """The state after each chunk of the tokens k, v (B, H, A C, D), gate (B, H, A C), which follow
    those that the cache's state summarises; `keep_first` puts the state before them in front."""
    growth = method.growth
    batch, heads, tokens, _ = k.shape
    chunks = tokens // growth.chunk
    before = growth.covered(cache.length) if cache else 0
    rows = [growth.rows(before + i * growth.chunk) for i in range(chunks + 1)]
    shape = (batch, heads, chunks, growth.chunk, k.shape[-1])
    with without_autocast(k):
        keys = memory_keys(k, method, learned).reshape(shape)
        values = v.to(keys.dtype).reshape(shape)
        gates = None if gate is None else gate.to(keys.dtype).reshape(shape[:-1])
        target, makes = _route_all(
            keys, gates, cache.row_keys if cache else None, rows, method, learned
        )
        weights = weighed(gates, makes, method, initial=not rows[0])
        lengths = scales(values, weights, makes, method)
        if weights is not None:
            keys, values = keys * weights[..., None], values * weights[..., None]
        olds: tuple[Tensor | None, ...] = (None, None, None)
        if cache is not None:
            olds = (cache.row_keys, cache.row_values, cache.row_scales[..., None])
        held = rows if keep_first else rows[1:]
        first_row = torch.arange(batch * heads * chunks, device=k.device) * rows[-1]
        index = (target + first_row.view(batch, heads, chunks, 1)).flatten()

        def states(added: Tensor, old: Tensor | None) -> Tensor:
            """What is added to the rows (B, H, A, C, D), to the rows before, as sums (B, H, Q, M,
            D)."""
            if rows[-1] == before + tokens:  # nothing was ever merged: every state is a prefix
                new = added.flatten(2, 3)
                return (new if old is None else torch.cat((old[:, :, : rows[0]], new), 2))[
                    :, :, None
                ]
            width = added.shape[-1]
            sums = added.new_zeros(batch * heads * chunks * rows[-1], width)
            sums = sums.index_add(0, index, added.flatten(0, 3))
            sums = sums.view(batch, heads, chunks, rows[-1], width).cumsum(2)
            if old is None or not (rows[0] or keep_first):
                return sums
            old = F.pad(old[:, :, : rows[0]], (0, 0, 0, rows[-1] - rows[0]))[:, :, None]
            return torch.cat((old, sums + old), 2) if keep_first else sums + old

        row_keys, row_values, row_scales = map(states, (keys, values, lengths[..., None]), olds)
    return Memory(row_keys, row_values, row_scales.squeeze(-1), held, target, makes)


@torch.no_grad()
def _route_all(
    keys: Tensor,
    gates: Tensor | None,
    old: Tensor | None,
    rows: list[int],
    method: Method,
    learned: Learned,
) -> tuple[Tensor, Tensor]:
    """`route` for each chunk of memory keys (B, H, A, C, D) in turn, from the sums `old`; `rows`
    are those before the first chunk and after each. Only the keys' sums are needed on the way."""
    batch, heads, chunks, chunk, width = keys.shape
    if not chunks:
        target = torch.zeros(batch, heads, 0, chunk, dtype=torch.int64, device=keys.device)
        return target, target.bool()
    sums = keys.new_zeros(batch, heads, rows[-1], width)
    if old is not None:
        sums[:, :, : rows[0]] = old[:, :, : rows[0]]
    targets, makes = [], []
    for i, tokens in enumerate(keys.unbind(2)):
        made, after = rows[i], rows[i + 1]
        gate = None if gates is None else gates[:, :, i]
        target, new = route(tokens, sums[:, :, :made], gate, after - made, method, learned)
        targets.append(target)
        makes.append(new)
        if i + 1 < chunks:
            weights = weighed(gate, new, method, initial=not made)
            added = tokens if weights is None else tokens * weights[..., None]
            sums.scatter_add_(2, target[..., None].expand_as(added), added)
    return torch.stack(targets, 2), torch.stack(makes, 2)
