"""The mixers that the contract tests run over: all in the folder, with their defaults and with the
options that change what is computed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workloads import plugins, registry
from workloads.choice import parsed
from workloads.mixer import Mixer
from workloads.plugins import Architecture

BATCH, LENGTH = 3, 21

VARIANTS = [
    "transformer(kv_heads=2, position=alibi)",
    "transformer(attention=materialised)",
    "transformer(kv_heads=1, position=nope)",
    "sliding_window(window=24, kv_heads=2)",
    "lstm(library=false)",
    "gru(library=false)",
    "min_gru(cell=lstm)",
    "mlstm(gate=sigmoid)",
    "slstm(forget=exponential)",
    "slstm(gate=sigmoid)",
    "linear_attention(feature_map=identity, normalised=false)",
    "gla(decay=fixed)",
    "gla(decay=scalar)",
    "delta_net(negative_eigenvalues=true)",
    "gated_delta_net(decay=channel)",
    "kvm(state=sqrt)",
    "kvm(state=saturating, chunk=8)",
    "kvm(state=all, append_gate=true, token_shift=true)",
    "kvm(value_radius=false, merge_gate=false, temperatures=false, sink=0, chunk=8)",
    "memory_caching(rule=residual)",
    "memory_caching(rule=soup, segment=8)",
    "memory_caching(rule=sparse, segment=8, start=checkpoint)",
    "memory_caching(rule=average, decay=true, segment=8)",
    "memory_caching(segmentation=logarithmic, segment=8)",
    "memory_caching(base=gru, segment=8)",
    "memory_caching(base=lstm, segment=8, read=gate)",
    "memory_caching(base=mamba2, segment=8)",
]
"""Options beside the defaults that change what is computed."""


def chosen(name: str) -> tuple[Architecture, Any]:
    """`name(option=value)` -> the architecture and its options."""
    name, options = parsed(name)
    architecture = registry.load("architectures", name)
    return architecture, plugins.build_options(architecture.options, options)


def _is_other_code(name: str) -> bool:
    architecture, options = parsed(name)
    return options.keys() <= set(registry.load("architectures", architecture).code_options)


OTHER_CODE = [name for name in VARIANTS if _is_other_code(name)]
"""Those that compute the same numbers as the default."""


def _has_mixer(name: str) -> bool:
    architecture, options = chosen(name)
    if architecture.layers is not None:  # of other architectures, which are tested here themselves
        return False
    with torch.device("meta"):
        return architecture.mixer(width_of(architecture, options), options) is not None


def width_of(architecture: Architecture, options: Any) -> int:
    return math.lcm(32, architecture.width_multiple(options))


NAMES = [name for name in [*registry.names("architectures"), *VARIANTS] if _has_mixer(name)]


def mixer_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[Mixer, int]:
    architecture, options = chosen(name)
    width = width_of(architecture, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mixer = architecture.mixer(width, options)
        assert mixer is not None
        mixer.initialise(0.5)
        with torch.no_grad():  # N(0, 0.02) maps small inputs to nothing: make mistakes visible
            for parameter in mixer.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
    return mixer.to(dtype), width


def random_input(width: int, dtype: torch.dtype = torch.float64, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(BATCH, length, width, dtype=torch.float64, generator=generator).to(dtype)
