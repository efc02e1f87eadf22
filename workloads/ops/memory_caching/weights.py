"""How much of each memory a token reads, and how tokens are laid out in segments.

A token t of segment s sees the cached memories of the segments before s and the online memory of
its own, which holds the segment up to and including t. Gated rules weigh memory i by the softmax
over the visible ones of <u_t, p_i>, where p_i is the pooled key of segment i; the online memory's
is the running pool up to and including t, as the whole segment's would show what comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Literal["residual", "gated", "soup", "sparse", "average"]
RULES: tuple[Rule, ...] = ("residual", "gated", "soup", "sparse", "average")
GATED: tuple[Rule, ...] = ("gated", "soup", "sparse")
"""The rules whose weights depend on content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """What is cached and how it is read.

    rule: residual adds all memories; gated weighs them; soup mixes them into one memory and reads
    that; sparse weighs the online and the `top_k` best cached ones; average is the uniform mean
    without a gate, for a model trained without caching. segment: tokens a segment. start: whether
    a segment's memory starts empty (independent) or from the last one's end (checkpoint). pool:
    keys of a segment into its summary. gate_scale: factor of the gate's logits. normalised: the
    read is divided by q z, z the sum of keys. logarithmic: finished memories of equal span merge,
    as digits of a binary counter; for independent memories without decay.
    """

    rule: Rule = "gated"
    segment: int = 64
    start: Literal["independent", "checkpoint"] = "independent"
    pool: Literal["mean", "sum"] = "mean"
    top_k: int = 2
    gate_scale: float = 1.0
    normalised: bool = False
    logarithmic: bool = False

    @property
    def gated(self) -> bool:
        return self.rule in GATED

    def slots(self, max_len: int) -> int:
        """Cached memories that a context of `max_len` tokens can come to."""
        finished = max_len // self.segment
        return finished.bit_length() if self.logarithmic else finished


@dataclass(frozen=True, slots=True)
class Layout:
    """Tokens of one call in segments: `front` were in the open segment already, `length` are new;
    `lengths` are uneven segments, else all are `width` wide but the last."""

    front: int
    length: int
    width: int
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, length: int, seen: int, segment: int, lengths: Sequence[int] | None) -> Layout:
        if lengths is not None:
            if seen or sum(lengths) != length or min(lengths) < 1:
                raise ValueError(
                    f"segment lengths {tuple(lengths)} must be positive, sum to the {length} "
                    "tokens given and start with the first token"
                )
            return cls(0, length, max(lengths), tuple(lengths))
        front = seen % segment
        return cls(front, length, min(segment, front + length))

    @property
    def segments(self) -> int:
        return len(self.lengths) if self.lengths else -(-(self.front + self.length) // self.width)

    @property
    def pieces(self) -> list[int]:
        """New tokens in each segment."""
        if self.lengths is not None:
            return list(self.lengths)
        ends = [min((n + 1) * self.width, self.front + self.length) for n in range(self.segments)]
        starts = [self.front, *ends[:-1]]
        return [end - start for start, end in zip(starts, ends, strict=True)]

    def lay(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """(B, T, ...) -> (B, segments, width, ...), `fill` where there is no new token."""
        if self.lengths is not None:
            pieces = [
                F.pad(piece, (0, 0) * (x.ndim - 2) + (0, self.width - piece.shape[1]), value=fill)
                for piece in x.split_with_sizes(list(self.lengths), 1)
            ]
            return torch.stack(pieces, 1)
        back = self.segments * self.width - self.front - self.length
        if self.front or back:
            x = F.pad(x, (0, 0) * (x.ndim - 2) + (self.front, back), value=fill)
        return torch.unflatten(x, 1, (self.segments, self.width))

    def gather(self, x: Tensor) -> Tensor:
        """(B, segments, width, ...) -> (B, T, ...): the inverse of `lay`."""
        if self.lengths is not None:
            pieces = zip(x.unbind(1), self.lengths, strict=True)
            return torch.cat([piece[:, :length] for piece, length in pieces], 1)
        return x.flatten(1, 2)[:, self.front : self.front + self.length]


@dataclass(slots=True)
class Pooled:
    """running: (B, N, C, Hk, D), each token's online summary; ends: (B, N, Hk, D), each segment's
    own, right where it is finished; key_sum: (B, Hk, D), of the last segment."""

    running: Tensor
    ends: Tensor
    key_sum: Tensor


def pool_keys(k: Tensor, key_sum: Tensor | None, layout: Layout, pool: str) -> Pooled:
    """Summaries of laid-out keys (B, N, C, Hk, D), the first segment continuing `key_sum`."""
    total = k.cumsum(2)
    if key_sum is not None and layout.front:
        total = torch.cat((total[:, :1] + key_sum[:, None, None], total[:, 1:]), 1)
    ends = total[:, :, -1]
    last = ends[:, -1]
    if pool == "sum":
        return Pooled(total, ends, last)
    counts = torch.arange(1, layout.width + 1, device=k.device, dtype=k.dtype)
    lengths = (
        torch.tensor(layout.lengths, device=k.device, dtype=k.dtype)[:, None, None]
        if layout.lengths
        else layout.width
    )
    return Pooled(total / counts[:, None, None], ends / lengths, last)


def weigh(
    caching: Caching,
    visible: Tensor,
    cached_logits: Tensor | None,
    online_logits: Tensor | None,
    cached_scale: Tensor | None = None,
    online_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The weights of cached (..., M) and online (..., 1) memories in the sum of their linear reads.

    visible: 1 or 0 in the weights' dtype, broadcasts to (..., M). Logits None: a rule without a
    gate. The scales are q z of each memory, where reads are normalised: each read is divided by its
    own, the soup's by the mixture's.
    """
    if cached_logits is None or online_logits is None:
        cached, online = visible, visible.new_ones((*visible.shape[:-1], 1))
        if caching.rule == "average":
            count = 1 + visible.sum(-1, keepdim=True)
            cached, online = cached / count, online / count
    else:
        logits = cached_logits.masked_fill(
            ~_chosen(caching, visible > 0, cached_logits), -torch.inf
        )
        both = torch.cat((logits, online_logits), -1).softmax(-1)
        cached, online = both.split_with_sizes([logits.shape[-1], 1], -1)
    if cached_scale is None or online_scale is None:
        return cached, online
    # Where no token or no memory is, the scale is 0 and so is what is read.
    cached_scale = cached_scale.masked_fill((visible == 0) | (cached_scale == 0), 1)
    online_scale = online_scale.masked_fill(online_scale == 0, 1)
    if caching.rule == "soup":
        mixed = online * online_scale + (cached * cached_scale).sum(-1, keepdim=True)
        return cached / mixed, online / mixed
    return cached / cached_scale, online / online_scale


def _chosen(caching: Caching, visible: Tensor, logits: Tensor) -> Tensor:
    """Which cached memories are read: all visible ones, or the best of them. The choice has no
    gradient, the weights have."""
    if caching.rule != "sparse" or caching.top_k >= logits.shape[-1]:
        return visible
    scores = logits.detach().masked_fill(~visible, -torch.inf)
    best = scores.topk(caching.top_k, -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & visible
