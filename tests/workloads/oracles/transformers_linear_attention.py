"""transformers' sums of k v^T: SSD without its decay, and lightning attention with a fixed one."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.workloads.oracles.oracle import (
    BATCH,
    CHUNK,
    FLOAT32,
    FLOAT64,
    HEAD,
    HEADS,
    STATES,
    Case,
    Oracle,
    Pair,
    draw,
    op_case,
)
from tests.workloads.oracles.transformers_library import configured, modeling
from tests.workloads.oracles.transformers_mamba import ssd
from workloads.architectures.linear_attention import normalised_linear_attention
from workloads.ops import gated_linear


def _without_decay(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Pair:
    """SSD with unit steps and rates of 0: the sum of k v^T."""
    return ssd(v, torch.ones_like(v[..., 0]), v.new_zeros(HEADS), k, q, state)


def _linear_attention(normalised: bool, length: int) -> Case:
    heads = (BATCH, length, HEADS)
    q, k, v = draw(*[(*heads, STATES)] * 2, (*heads, HEAD))
    (state,) = draw((BATCH, HEADS, STATES, HEAD + normalised), seed=1)

    def ours(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Pair:
        if normalised:
            return normalised_linear_attention(q, k, v, state)
        return gated_linear.gated_linear_attention(q, k, v, None, scale=1.0, initial_state=state)

    def theirs(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Pair:
        """The normaliser is the sum of keys: one more channel, of ones."""
        if not normalised:
            return _without_decay(q, k, v, state)
        sums, state = _without_decay(q, k, F.pad(v, (0, 1), value=1.0), state)
        return sums[..., :-1] / sums[..., -1:], state

    if normalised:
        q, k, state = F.elu(q) + 1, F.elu(k) + 1, state.abs()
    return op_case([q, k, v, state], ours, theirs)


def _lightning(length: int) -> Case:
    """A fixed decay a head, as RetNet's; the layer without its maps, its norm and its gate."""
    q, k, v = draw(*[(BATCH, length, HEADS, HEAD)] * 3)
    configuration = configured(
        "minimax",
        "MiniMax",
        "linear_attention",
        hidden_size=3 * HEADS * HEAD,
        num_attention_heads=HEADS,
        head_dim=HEAD,
        block_size=CHUNK,
    )
    layer = modeling("minimax").MiniMaxLightningAttention(configuration, 0).double()
    powers = layer.decay_factors(layer.slope_rate)  # anew: they were made in float32
    layer.query_decay, layer.key_decay, layer.diagonal_decay = powers
    layer.act_fn = layer.qkv_proj = layer.norm = layer.out_proj = nn.Identity()
    nn.init.zeros_(layer.output_gate.weight)  # half of everything passes
    decay = -layer.slope_rate.flatten()

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Pair:
        return gated_linear.gated_linear_attention(q, k, v, decay, scale=1.0)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Pair:
        output, state = layer(torch.cat((q, k, v), -1).flatten(2), None, None)
        return 2 * output.unflatten(-1, (HEADS, HEAD)), state

    return op_case([q, k, v], ours, theirs)


ORACLES = (
    Oracle(
        "linear_attention",
        "mamba2_chunk_scan without decay",
        FLOAT32,
        partial(_linear_attention, False),
    ),
    Oracle(
        "linear_attention",
        "mamba2_chunk_scan without decay, normalised",
        FLOAT32,
        partial(_linear_attention, True),
    ),
    Oracle("gla", "MiniMaxLightningAttention", FLOAT64, _lightning),
)
