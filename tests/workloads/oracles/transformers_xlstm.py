"""transformers' xLSTM: the mLSTM layer with our weights, and its chunked form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.workloads.oracles.oracle import (
    BATCH,
    CHUNK,
    FLOAT64,
    HEAD,
    HEADS,
    STATES,
    WIDTH,
    Case,
    Oracle,
    Pair,
    Twin,
    draw,
    layer_oracle,
    op_case,
)
from tests.workloads.oracles.transformers_library import configured, function, modeling
from workloads.ops import mlstm


def xlstm(mixer: Any, options: Any) -> Twin:
    configuration = configured(
        "xlstm",
        "xLSTM",
        hidden_size=WIDTH,
        num_heads=mixer.heads,
        qk_dim_factor=1.0,
        norm_reduction_force_float32=False,
        mode="train",
        chunk_size=1,  # divides every length
    )
    q, k, v, o = mixer.qkvo.weight.chunk(4)
    (write, keep), (write_bias, keep_bias) = (
        x.chunk(2) for x in (mixer.gates.weight, mixer.gates.bias)
    )
    parameters = {
        "q.weight": q,
        "k.weight": k,
        "v.weight": v,
        "ogate_preact.weight": o,
        "igate_preact.weight": write,
        "igate_preact.bias": write_bias,
        "fgate_preact.weight": keep,
        "fgate_preact.bias": keep_bias,
        "multihead_norm.weight": mixer.norm,
        "out_proj.weight": mixer.out.weight,
    }
    layer = modeling("xlstm").xLSTMLayer(configuration)
    return Twin(layer, parameters, lambda layer, x: layer(x)[0])


def longest_chunk(length: int, most: int) -> int:
    """The longest that divides `length`, for forms that do not pad."""
    return next(chunk for chunk in range(min(most, length), 0, -1) if length % chunk == 0)


def _mlstm(length: int) -> Case:
    """Memories are compared free of their scales, which are a matter of the form."""
    heads = (BATCH, length, HEADS)
    q, k, v, i, f = draw(*[(*heads, STATES)] * 2, (*heads, HEAD), *[heads] * 2)
    memory, normaliser = draw((BATCH, HEADS, STATES, HEAD), (BATCH, HEADS, STATES), seed=1)
    scale = torch.zeros(BATCH, HEADS, dtype=torch.float64)

    def proper(matrix: Tensor, normaliser: Tensor, scale: Tensor) -> Pair:
        return matrix * scale.exp()[..., None, None], normaliser * scale.exp()[..., None]

    def ours(*inputs: Tensor) -> tuple[Tensor, ...]:
        *given, memory, normaliser = inputs
        state = mlstm.Memory(memory, normaliser, scale)
        output, last = mlstm.mlstm(*given, scale=STATES**-0.5, initial_state=state)
        return output, *proper(*last)

    def theirs(*inputs: Tensor) -> tuple[Tensor, ...]:
        *given, memory, normaliser = inputs
        q, k, v, i, f = (x.transpose(1, 2).contiguous() for x in given)
        output, (matrix, sums, last) = function("xlstm", "mlstm_chunkwise_native_autograd")(
            q,
            k,
            v,
            i,
            f,
            c_initial=memory,
            n_initial=normaliser,
            m_initial=scale[..., None],
            return_last_states=True,
            chunk_size=longest_chunk(length, CHUNK),
        )
        return output.transpose(1, 2), *proper(matrix, sums, last[..., 0])

    return op_case([q, k, v, i, f + 2, memory, normaliser], ours, theirs)


ORACLES = (
    layer_oracle("mlstm", "xLSTMLayer", FLOAT64, xlstm, heads=HEADS),
    Oracle("mlstm", "mlstm_chunkwise_native_autograd", FLOAT64, _mlstm),
)
