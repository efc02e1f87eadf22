"""Memory caching as its formulas read: one token after another, one memory after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workloads.ops.memory_caching.weights import Caching


def segment_starts(length: int, segment: int, lengths: Sequence[int] | None) -> set[int]:
    """Positions at which a segment begins."""
    if lengths is None:
        return set(range(0, length, segment))
    return {sum(lengths[:n]) for n in range(len(lengths))}


def gate(
    caching: Caching, u: Tensor, cached_keys: Sequence[Tensor], online_key: Tensor
) -> list[Tensor]:
    """Weights of the cached memories and, last, the online one; u and keys (B, H, D) -> each (B,
    H)."""
    if caching.rule == "residual":
        return [torch.ones_like(u[..., 0])] * (len(cached_keys) + 1)
    if caching.rule == "average":
        count = len(cached_keys) + 1
        return [torch.full_like(u[..., 0], 1 / count)] * count
    logits = torch.stack([(u * key).sum(-1) for key in (*cached_keys, online_key)], -1)
    if caching.rule == "sparse" and caching.top_k < len(cached_keys):
        best = logits[..., :-1].topk(caching.top_k, -1).indices
        hidden = torch.ones_like(logits, dtype=torch.bool).scatter(-1, best, False)
        hidden[..., -1] = False
        logits = logits.masked_fill(hidden, -torch.inf)
    return list((logits * caching.gate_scale).softmax(-1).unbind(-1))


def _pooled(caching: Caching, keys: Sequence[Tensor]) -> Tensor:
    total = torch.stack(list(keys)).sum(0)
    return total / len(keys) if caching.pool == "mean" else total


def _merged(spans: list[list[int]]) -> list[list[int]]:
    """Finished segments' spans, where the last two merge while they are equally long."""
    while len(spans) > 1 and len(spans[-1]) == len(spans[-2]):
        spans = [*spans[:-2], spans[-2] + spans[-1]]
    return spans


def memory_caching_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    log_decay: Tensor | None,
    caching: Caching,
    *,
    scale: float,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """Matrix memories, as `matrix.memory_caching`: q, k, u (B, T, H, Dk), v (B, T, H, Dv),
    log_decay (B, T, H) -> (B, T, H, Dv) and each token's weights, the online memory's last."""
    batch, length, heads, width = v.shape
    starts = segment_starts(length, caching.segment, lengths)
    empty = v.new_zeros((batch, heads, k.shape[-1], width))
    memory, z = empty, torch.zeros_like(k[:, 0])
    finished: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    spans: list[list[int]] = []
    keys: list[Tensor] = []
    outputs, gates = [], []
    for t in range(length):
        if t in starts and t > 0:
            finished.append((memory, z, keys))
            spans.append([len(finished) - 1])
            spans = _merged(spans) if caching.logarithmic else spans
            keys = []
            if caching.start == "independent":
                memory, z = empty, torch.zeros_like(z)
        keys = [*keys, k[:, t]]
        if log_decay is not None:
            memory = memory * log_decay[:, t].exp()[..., None, None]
            z = z * log_decay[:, t].exp()[..., None]
        memory = memory + k[:, t, :, :, None] * v[:, t, :, None, :]
        z = z + k[:, t]
        cached = [
            (
                torch.stack([finished[i][0] for i in span]).sum(0),
                torch.stack([finished[i][1] for i in span]).sum(0),
                _pooled(caching, [key for i in span for key in finished[i][2]]),
            )
            for span in spans
        ]
        weights = gate(caching, u[:, t], [c[2] for c in cached], _pooled(caching, keys))
        gates.append(weights)
        visible = [*[(c[0], c[1]) for c in cached], (memory, z)]
        outputs.append(_read(caching, q[:, t] * scale, visible, weights))
    return torch.stack(outputs, 1), gates


def _read(
    caching: Caching, q: Tensor, memories: list[tuple[Tensor, Tensor]], weights: list[Tensor]
) -> Tensor:
    def one(memory: Tensor, z: Tensor) -> Tensor:
        read = (q[..., None, :] @ memory)[..., 0, :]
        return read / (q * z).sum(-1, keepdim=True) if caching.normalised else read

    if caching.rule == "soup":
        soup = sum((w[..., None, None] * m for w, (m, _) in zip(weights, memories, strict=True)))
        mean = sum((w[..., None] * z for w, (_, z) in zip(weights, memories, strict=True)))
        assert isinstance(soup, Tensor) and isinstance(mean, Tensor)
        return one(soup, mean)
    reads = [w[..., None] * one(*m) for w, m in zip(weights, memories, strict=True)]
    return torch.stack(reads).sum(0)


def vector_caching_reference(
    x: Tensor,
    k: Tensor,
    u: Tensor,
    cell: Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor, Tensor]],
    caching: Caching,
    *,
    read: str,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Vector memories, as `vector.vector_caching`: x, k, u (B, T, D) -> (B, T, D). cell(x_t,
    (hidden, cell)) returns both anew and the output gate."""
    starts = segment_starts(x.shape[1], caching.segment, lengths)
    fresh = torch.zeros_like(x[:, 0])
    state = (fresh, fresh)
    finished: list[tuple[Tensor, Tensor, Tensor]] = []
    keys: list[Tensor] = []
    outputs = []
    for t in range(x.shape[1]):
        if t in starts and t > 0:
            finished.append((*state, _pooled(caching, keys)))
            keys = []
            if caching.start == "independent":
                state = (fresh, fresh)
        keys = [*keys, k[:, t]]
        hidden, cells, out = cell(x[:, t], state)
        state = (hidden, cells)
        weights = gate(caching, u[:, t], [f[2] for f in finished], _pooled(caching, keys))
        memories = [f[0] if read == "hidden" else f[1] for f in finished]
        memories.append(hidden if read == "hidden" else cells)
        if caching.rule == "soup" and read == "gate":
            mixed = [w[:, None] * m for w, m in zip(weights, memories, strict=True)]
            outputs.append(out * torch.stack(mixed).sum(0).tanh())
            continue
        reads = [m if read == "hidden" else out * m.tanh() for m in memories]
        weighted = [w[:, None] * r for w, r in zip(weights, reads, strict=True)]
        outputs.append(torch.stack(weighted).sum(0))
    return torch.stack(outputs, 1)
