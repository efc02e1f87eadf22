"""mambapy's block and its parallel scan, which serves every recurrence that is linear and
element-wise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.workloads.oracles.oracle import (
    BATCH,
    FLOAT32,
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
    library,
    op_case,
)
from workloads.ops import gated_linear, scan, selective_scan, slstm


def mamba_parameters(mixer: Any) -> dict[str, Tensor]:
    """By their names in the authors' code, which the libraries keep."""
    return {
        "in_proj.weight": mixer.into.weight,
        "conv1d.weight": mixer.conv_weight[:, None],
        "conv1d.bias": mixer.conv_bias,
        "x_proj.weight": mixer.select.weight,
        "dt_proj.weight": mixer.step_size.weight,
        "dt_proj.bias": mixer.step_size.bias,
        "A_log": mixer.log_rates,
        "D": mixer.skip,
        "out_proj.weight": mixer.out.weight,
    }


def mamba_block(mixer: Any, options: Any, width: int = WIDTH) -> Twin:
    mambapy = library("mambapy.mamba")
    layer = mambapy.MambaBlock(
        mambapy.MambaConfig(
            d_model=width,
            n_layers=1,
            d_state=options.state_size,
            expand_factor=options.expand,
            d_conv=options.conv,
        )
    )
    return Twin(layer, mamba_parameters(mixer))


def pscan(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """All states; (B, T, D, N), initial (B, D, N). The library's scan starts at 0."""
    first = inputs[:, :1] + decay[:, :1] * initial[:, None]
    states: Tensor = library("mambapy.pscan").pscan(decay, torch.cat((first, inputs[:, 1:]), 1))
    return states


def _linear_scan(length: int) -> Case:
    decay, inputs, initial = draw(*[(BATCH, length, WIDTH)] * 2, (BATCH, WIDTH))

    def ours(decay: Tensor, inputs: Tensor, initial: Tensor) -> Pair:
        return scan.linear_scan(decay, inputs, initial_state=initial)

    def theirs(decay: Tensor, inputs: Tensor, initial: Tensor) -> Pair:
        states = pscan(decay[..., None], inputs[..., None], initial[..., None]).squeeze(-1)
        return states, states[:, -1]

    return op_case([decay.sigmoid(), inputs, initial], ours, theirs)


def _selective_scan(length: int) -> Case:
    u, dt, b, c = draw(*[(BATCH, length, WIDTH)] * 2, *[(BATCH, length, STATES)] * 2)
    rates, skip = draw((WIDTH, STATES), (WIDTH,), seed=1)

    def ours(
        u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor
    ) -> tuple[Tensor, ...]:
        return (selective_scan.selective_scan(u, dt, a, b, c)[0] + skip * u,)

    def theirs(*inputs: Tensor) -> tuple[Tensor, ...]:
        block = library("mambapy.mamba").MambaBlock
        return (block.selective_scan(None, *inputs),)  # it uses nothing of the block

    return op_case([u, F.softplus(dt), -rates.exp(), b, c, skip], ours, theirs)


def _gla(length: int) -> Case:
    """A decay per key channel: every row of the state is such a recurrence."""
    heads = (BATCH, length, HEADS)
    q, k, g, v = draw(*[(*heads, STATES)] * 3, (*heads, HEAD))
    (state,) = draw((BATCH, HEADS, STATES, HEAD), seed=1)

    def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> Pair:
        return gated_linear.gated_linear_attention(q, k, v, g, scale=0.5, initial_state=state)

    def theirs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> Pair:
        written = torch.einsum("bthk,bthv->bthkv", k, v)
        decay = g.exp()[..., None].expand_as(written)
        states = pscan(decay.flatten(2, 3), written.flatten(2, 3), state.flatten(1, 2))
        states = states.unflatten(2, (HEADS, STATES))
        return 0.5 * torch.einsum("bthk,bthkv->bthv", q, states), states[:, -1]

    return op_case([q, k, v, F.logsigmoid(g), state], ours, theirs)


def _slstm_without_mixing(length: int) -> Case:
    """With recurrent weights of 0 cell and normaliser are two such recurrences."""
    (x,) = draw((BATCH, length, HEADS, 4, HEAD))
    recurrent = torch.zeros(HEADS, HEAD, 4 * HEAD, dtype=torch.float64)

    def ours(x: Tensor) -> tuple[Tensor, ...]:
        return (slstm.slstm(x, recurrent, forget="sigmoid")[0],)

    def theirs(x: Tensor) -> tuple[Tensor, ...]:
        z, i, f, o = x.unbind(3)
        empty = torch.zeros_like(z[:, 0])
        cell = pscan(f.sigmoid(), i.exp() * z.tanh(), empty)
        return (o.sigmoid() * cell / pscan(f.sigmoid(), i.exp(), empty),)

    return op_case([x], ours, theirs)


ORACLES = (
    layer_oracle("mamba", "MambaBlock", FLOAT32, mamba_block),
    layer_oracle(
        "mamba", "MambaBlock, other sizes", FLOAT32, mamba_block, state_size=3, expand=1, conv=2
    ),
    Oracle("mamba", "MambaBlock.selective_scan", FLOAT64, _selective_scan),
    Oracle("min_gru", "pscan", FLOAT64, _linear_scan),
    Oracle("gla", "pscan of every state", FLOAT64, _gla),
    Oracle("slstm", "pscan, without memory mixing", FLOAT64, _slstm_without_mixing),
)
