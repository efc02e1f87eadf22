"""transformers' delta rules: gated DeltaNet's layers with our weights, and the chunked forms."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
from workloads.ops import delta_rule, rwkv7


def _gated_delta(family: str, name: str, mixer: Any, **settings: Any) -> Any:
    """The layer; a convolution of one token stands for none."""
    configuration = configured(
        family,
        name,
        "linear_attention",
        "full_attention",  # OLMo Hybrid wants one
        hidden_size=WIDTH,
        linear_num_key_heads=mixer.heads,
        linear_num_value_heads=mixer.heads,
        linear_key_head_dim=mixer.head_dim,
        linear_value_head_dim=mixer.head_dim,
        linear_conv_kernel_dim=1,
        rms_norm_eps=mixer.norm.eps,
        **settings,
    )
    return getattr(modeling(family), f"{name}GatedDeltaNet")(configuration, 0)


def _gates(mixer: Any) -> dict[str, Tensor]:
    return {
        "conv1d.weight": torch.ones(3 * WIDTH, 1, 1, dtype=torch.float64),
        "A_log": mixer.A_log,
        "dt_bias": mixer.dt_bias,
    }


def qwen3_next(mixer: Any, options: Any) -> Twin:
    """Its rows are sorted by heads."""
    maps = torch.cat((mixer.qkv.weight, mixer.gate.weight)).view(4, mixer.heads, -1, WIDTH)
    parameters = {
        **_gates(mixer),
        "in_proj_qkvz.weight": maps.transpose(0, 1).reshape(-1, WIDTH),
        "in_proj_ba.weight": torch.stack((mixer.beta.weight, mixer.decay.weight), 1).flatten(0, 1),
        "norm.weight": mixer.norm.weight,
        "out_proj.weight": mixer.out.weight,
    }
    return Twin(_gated_delta("qwen3_next", "Qwen3Next", mixer), parameters)


def olmo_hybrid(mixer: Any, options: Any) -> Twin:
    layer = _gated_delta(
        "olmo_hybrid",
        "OlmoHybrid",
        mixer,
        linear_allow_neg_eigval=options.negative_eigenvalues,
    )
    q, k, v = mixer.qkv.weight.chunk(3)
    parameters = {
        **_gates(mixer),
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "a_proj.weight": mixer.decay.weight,
        "b_proj.weight": mixer.beta.weight,
        "g_proj.weight": mixer.gate.weight,
        "o_norm.weight": mixer.norm.weight,
        "o_proj.weight": mixer.out.weight,
    }
    return Twin(layer, parameters)


def _delta_inputs(length: int, *, per_channel: bool) -> list[Tensor]:
    """q, unit k, v, log decay, beta in (0, 2), and the state before."""
    heads = (BATCH, length, HEADS)
    q, k, v, g = draw(
        *[(*heads, STATES)] * 2, (*heads, HEAD), (*heads, STATES) if per_channel else heads
    )
    beta, state = draw(heads, (BATCH, HEADS, STATES, HEAD), seed=1)
    return [q, F.normalize(k, dim=-1), v, F.logsigmoid(g + 2), 2 * beta.sigmoid(), state]


def _chunked_delta(name: str, family: str, *inputs: Tensor) -> Pair:
    """Both scale queries by 1 / sqrt(width)."""
    q, k, v, g, beta, state = inputs
    rule = function(family, name)
    output, last = rule(
        q, k, v, g=g, beta=beta, chunk_size=CHUNK, initial_state=state, output_final_state=True
    )
    return output, last


_gated_rule = partial(_chunked_delta, "torch_chunk_gated_delta_rule", "qwen3_next")
_kimi_rule = partial(_chunked_delta, "chunk_kimi_delta_attention", "kimi_linear")


def _delta_rule(length: int) -> Case:
    q, k, v, _, beta, state = _delta_inputs(length, per_channel=False)

    def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> Pair:
        return delta_rule.delta_rule(q, k, v, None, beta, scale=STATES**-0.5, initial_state=state)

    def theirs(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> Pair:
        return _gated_rule(q, k, v, torch.zeros_like(beta), beta, state)

    return op_case([q, k, v, beta, state], ours, theirs)


def _gated_delta_rule(per_channel: bool, length: int) -> Case:
    def ours(*inputs: Tensor) -> Pair:
        *rest, state = inputs
        return delta_rule.delta_rule(*rest, scale=STATES**-0.5, initial_state=state)

    theirs = _kimi_rule if per_channel else _gated_rule
    return op_case(_delta_inputs(length, per_channel=per_channel), ours, theirs)


def _wkv7(length: int) -> Case:
    """KDA is the corner of WKV-7 where a = -exp(w) k, b = beta k, and beta k is what is written."""
    q, k, v, w, beta, state = _delta_inputs(length, per_channel=True)
    w = rwkv7.STRONGEST_DECAY * w.exp()

    def ours(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, state: Tensor) -> Pair:
        written = beta[..., None] * k
        return rwkv7.wkv7(
            q, w, written, v, -w.exp() * k, written, scale=STATES**-0.5, initial_state=state
        )

    return op_case([q, k, v, w, beta, state], ours, _kimi_rule)


ORACLES = (
    layer_oracle("gated_delta_net", "Qwen3NextGatedDeltaNet", FLOAT32, qwen3_next, heads=HEADS),
    layer_oracle(
        "gated_delta_net",
        "OlmoHybridGatedDeltaNet, negative eigenvalues",
        FLOAT32,
        olmo_hybrid,
        heads=HEADS,
        negative_eigenvalues=True,
    ),
    Oracle("delta_net", "torch_chunk_gated_delta_rule without decay", FLOAT32, _delta_rule),
    Oracle(
        "gated_delta_net",
        "torch_chunk_gated_delta_rule",
        FLOAT32,
        partial(_gated_delta_rule, False),
    ),
    Oracle(
        "gated_delta_net", "chunk_kimi_delta_attention", FLOAT32, partial(_gated_delta_rule, True)
    ),
    Oracle("rwkv7", "chunk_kimi_delta_attention", FLOAT32, _wkv7),
)
