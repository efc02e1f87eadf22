"""transformers' attention with our weights: Llama's, and Mistral's with its window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.workloads.oracles.oracle import (
    FLOAT32,
    HEADS,
    WIDTH,
    Twin,
    layer_oracle,
    library,
)
from tests.workloads.oracles.transformers_library import configured, modeling


def attention(name: str, mixer: Any, width: int = WIDTH) -> tuple[Any, Any, Mapping[str, Tensor]]:
    """Llama's or Mistral's layer, its rotary embedding, and the parameters from ours. The layer's
    `config` is what its masks and caches are made from."""
    family = name.lower()
    configuration = configured(
        family,
        name,
        hidden_size=width,
        num_attention_heads=mixer.heads,
        num_key_value_heads=mixer.kv_heads,
        attn_implementation="sdpa",
        **({"sliding_window": mixer.window} if name == "Mistral" else {}),
    )
    layer = getattr(modeling(family), f"{name}Attention")(configuration, 0)
    rotary = getattr(modeling(family), f"{name}RotaryEmbedding")(configuration)
    kv = mixer.kv_heads * mixer.head_dim
    q, k, v = mixer.qkv.weight.split((width, kv, kv))
    parameters = {
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "o_proj.weight": mixer.out.weight,
    }
    return layer, rotary, parameters


def llama(mixer: Any, options: Any) -> Twin:
    layer, rotary, parameters = attention("Llama", mixer)

    def forward(layer: Any, x: Tensor) -> Tensor:
        output: Tensor = layer(x, rotary(x, torch.arange(x.shape[1])[None]))[0]
        return output

    return Twin(layer, parameters, forward)


def mistral(mixer: Any, options: Any) -> Twin:
    layer, rotary, parameters = attention("Mistral", mixer)
    masks, configuration = library("transformers.masking_utils"), layer.config

    def forward(layer: Any, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])[None]
        mask = masks.create_sliding_window_causal_mask(configuration, x, None, None, positions)
        output: Tensor = layer(x, rotary(x, positions), mask)[0]
        return output

    return Twin(layer, parameters, forward)


ORACLES = (
    layer_oracle("transformer", "LlamaAttention", FLOAT32, llama, heads=HEADS),
    layer_oracle("transformer", "LlamaAttention, grouped", FLOAT32, llama, heads=4, kv_heads=2),
    layer_oracle("sliding_window", "MistralAttention", FLOAT32, mistral, heads=HEADS, window=16),
    layer_oracle(
        "sliding_window",
        "MistralAttention, grouped",
        FLOAT32,
        mistral,
        heads=4,
        kv_heads=1,
        window=5,
    ),
)
