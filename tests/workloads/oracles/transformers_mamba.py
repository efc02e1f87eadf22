"""transformers' Mamba and Mamba-2: the layers with our weights, and their scans."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tests.workloads.oracles.mambapy_scans import mamba_parameters
from tests.workloads.oracles.oracle import (
    BATCH,
    CHUNK,
    FLOAT32,
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
from workloads.ops import gated_linear, selective_scan


def mamba(mixer: Any, options: Any) -> Twin:
    configuration = configured(
        "mamba",
        "Mamba",
        hidden_size=WIDTH,
        state_size=options.state_size,
        expand=options.expand,
        conv_kernel=options.conv,
        time_step_rank=mixer.rank,
    )
    return Twin(modeling("mamba").MambaMixer(configuration, 0), mamba_parameters(mixer))


def mamba2(mixer: Any, options: Any) -> Twin:
    configuration = configured(
        "mamba2",
        "Mamba2",
        hidden_size=WIDTH,
        num_heads=mixer.heads,
        head_dim=mixer.inner // mixer.heads,
        state_size=options.state_size,
        n_groups=1,
        expand=options.expand,
        conv_kernel=options.conv,
        chunk_size=CHUNK,
        layer_norm_epsilon=mixer.norm.eps,
    )
    parameters = {
        "in_proj.weight": mixer.into.weight,
        "conv1d.weight": mixer.conv_weight[:, None],
        "conv1d.bias": mixer.conv_bias,
        "dt_bias": mixer.step_bias,
        "A_log": mixer.log_rates,
        "D": mixer.skip,
        "norm.weight": mixer.norm.weight,
        "out_proj.weight": mixer.out.weight,
    }
    return Twin(modeling("mamba2").Mamba2Mixer(configuration, 0), parameters)


def _selective_scan(length: int) -> Case:
    u, dt, b, c = draw(*[(BATCH, length, HEAD)] * 2, *[(BATCH, length, STATES)] * 2)
    (rates,) = draw((HEAD, STATES), seed=1)

    def ours(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Pair:
        return selective_scan.selective_scan(u, dt, a, b, c)

    def theirs(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Pair:
        scan = function("mamba", "mamba_selective_scan")
        u, dt, b, c = (x.transpose(1, 2) for x in (u, dt, b, c))
        y, state = scan(u, dt, a, b, c, return_last_state=True)
        return y.transpose(1, 2), state.transpose(1, 2)

    return op_case([u, F.softplus(dt), -rates.exp(), b, c], ours, theirs)


def ssd(u: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor, state: Tensor) -> Pair:
    """Channels u (B, T, H, P), steps dt (B, T, H), rates (H,), b, c (B, T, groups, N), and the
    state as ours has it, (B, H, N, P)."""
    scan = function("mamba2", "mamba2_chunk_scan")
    y, state = scan(
        u,
        dt,
        rates,
        b,
        c,
        chunk_size=CHUNK,
        initial_states=state.transpose(2, 3),
        return_final_states=True,
    )
    return y, state.transpose(2, 3)


def _ssd(length: int) -> Case:
    shape = (BATCH, length, 1, STATES)
    u, dt, b, c = draw((BATCH, length, HEADS, HEAD), (BATCH, length, HEADS), shape, shape)
    rates, state = draw((HEADS,), (BATCH, HEADS, STATES, HEAD), seed=1)

    def ours(u: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor, state: Tensor) -> Pair:
        return gated_linear.gated_linear_attention(
            c, b, u * dt[..., None], dt * rates, scale=1.0, initial_state=state
        )

    return op_case([u, F.softplus(dt), -rates.exp(), b, c, state], ours, ssd)


ORACLES = (
    layer_oracle("mamba", "MambaMixer", FLOAT32, mamba, state_size=4),
    layer_oracle("mamba2", "Mamba2Mixer", FLOAT32, mamba2, state_size=8, head_dim=16),
    Oracle("mamba", "mamba_selective_scan", FLOAT32, _selective_scan),
    Oracle("mamba2", "mamba2_chunk_scan", FLOAT32, _ssd),
)
