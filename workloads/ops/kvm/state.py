"""The state of key-value means: rows of running sums, what a chunk of tokens does to them, and how
they are read.

A row is a sum of memory keys, a sum of values, and one number: the length of the value that made
the row, or how many tokens it holds. Nothing is averaged where it is written; a row is normalised
where it is read. Which token goes to which row is decided in float32 at least and carries no
gradient. Goldstein and Cheah 2026, arXiv 2605.09877. Shapes: B batch, H heads, M rows, C tokens of
a chunk, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops.kvm.growth import Growth

NORM_EPS = 1e-5
VALUE_EPS = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What of the method is switched on.

    sink: rows, from the first, that no token is merged into. rotary: the first channels of a key,
    which a position turned, and which a memory key therefore leaves out. value_radius: a row's mean
    value is stretched to the length of the value that made it; else it is the sum over the count.
    append_gate: the merge gate weighs appended tokens too.
    """

    growth: Growth
    sink: int
    rotary: int
    value_radius: bool = True
    append_gate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the op is given of the layer's parameters: weight and bias (D,) of the state's
    LayerNorm, and inverse temperatures (H,) of window and state, where there are any."""

    weight: Tensor
    bias: Tensor
    window_temperature: Tensor | None = None
    state_temperature: Tensor | None = None


def normalised(keys: Tensor, learned: Learned) -> Tensor:
    """The state's LayerNorm over the last dimension, in the keys' dtype."""
    weight, bias = learned.weight.to(keys), learned.bias.to(keys)
    return F.layer_norm(keys, keys.shape[-1:], weight, bias, NORM_EPS)


def memory_keys(keys: Tensor, method: Method, learned: Learned) -> Tensor:
    """(..., D) as attended to -> as a state holds them: without what a position turned, normalised,
    in float32 at least."""
    kept = keys[..., method.rotary :].to(torch.promote_types(keys.dtype, torch.float32))
    return normalised(F.pad(kept, (method.rotary, 0)), learned)


@torch.no_grad()
def route(
    tokens: Tensor, rows: Tensor, gates: Tensor | None, grown: int, method: Method, learned: Learned
) -> tuple[Tensor, Tensor]:
    """Where each token of a chunk goes: its row (B, H, C), and whether it makes that row.

    tokens: memory keys (B, H, C, D). rows: the sums before (B, H, M, D); an empty state takes the
    first chunk whole. The `grown` tokens least like any row become rows, in their order; every
    other goes to the row most like it, a new one maybe, but none below `method.sink`. Ties go to
    the lower index.
    """
    made, chunk = rows.shape[2], tokens.shape[2]
    made_rows = torch.arange(made, made + grown, device=tokens.device)
    if grown == chunk:
        target = made_rows.expand(tokens.shape[:3])
        return target, torch.ones_like(target, dtype=torch.bool)
    similarity = tokens @ normalised(rows, learned).mT
    if not grown:
        target = similarity[..., method.sink :].argmax(-1) + method.sink
        return target, torch.zeros_like(target, dtype=torch.bool)
    novel = similarity.amax(-1).sort(dim=-1, stable=True).indices[..., :grown].sort(-1).values
    fresh = tokens.gather(2, novel[..., None].expand(*novel.shape, tokens.shape[-1]))
    if method.append_gate and gates is not None:
        fresh = fresh * gates.gather(2, novel)[..., None]
    similarity = torch.cat((similarity, tokens @ normalised(fresh, learned).mT), -1)
    target = similarity[..., method.sink :].argmax(-1) + method.sink
    target.scatter_(2, novel, made_rows.expand_as(novel))
    makes = torch.zeros_like(target, dtype=torch.bool).scatter_(2, novel, True)
    return target, makes


def weighed(gates: Tensor | None, makes: Tensor, method: Method, *, initial: bool) -> Tensor | None:
    """Each token's weight in its row, shaped as gates and `makes` (B, H, C) or (B, H, A, C): the
    gate where it is merged, 1 where it makes the row; None where all are 1.

    Where appends are gated, only an empty state's first chunk (`initial`) is not.
    """
    if gates is None:
        return None
    if not method.append_gate:
        return gates.masked_fill(makes, 1.0)
    if not initial:
        return gates
    if gates.ndim == 3:
        return torch.ones_like(gates)
    return torch.cat((torch.ones_like(gates[:, :, :1]), gates[:, :, 1:]), 2)


def scales(values: Tensor, weights: Tensor | None, makes: Tensor, method: Method) -> Tensor:
    """What each token, shaped as `makes`, adds to its row's number: the length of the value that
    makes the row, or 1 for every token. values: (..., D)."""
    if not method.value_radius:
        return torch.ones_like(values[..., 0])
    length: Tensor = torch.linalg.vector_norm(values, dim=-1)
    if weights is not None:
        length = length * weights
    return length.masked_fill(~makes, 0.0)


def read(
    row_keys: Tensor, row_values: Tensor, row_scales: Tensor, method: Method, learned: Learned
) -> tuple[Tensor, Tensor]:
    """Sums as attended to: keys and values (..., M, D). The heads' dimension is the second."""
    keys = normalised(row_keys, learned)
    if learned.state_temperature is not None:
        keys = keys * per_head(learned.state_temperature, keys)
    return keys, row_values * value_factors(row_values, row_scales, method)[..., None]


def key_factors(row_keys: Tensor) -> Tensor:
    """(..., M): 1 / the deviation that the state's LayerNorm divides a sum of keys by."""
    variance: Tensor = row_keys.var(-1, correction=0)
    return torch.rsqrt(variance + NORM_EPS)


def value_factors(row_values: Tensor, row_scales: Tensor, method: Method) -> Tensor:
    """(..., M): what makes a row's value of its sum of values."""
    if method.value_radius:
        length: Tensor = torch.linalg.vector_norm(row_values, dim=-1)
        return row_scales / length.clamp_min(VALUE_EPS)
    return 1 / row_scales.clamp_min(1)


def per_head(temperature: Tensor, like: Tensor) -> Tensor:
    """(H,) -> (H, 1, 1, ...), to multiply (B, H, ...)."""
    return temperature.to(like.dtype).view(-1, *[1] * (like.ndim - 2))
