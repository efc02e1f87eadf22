"""Several mixers in one stack, layer by layer, as a repeated pattern.

Idea: a few layers of attention among recurrent ones recall exactly. The recurrent ones carry the
rest at a constant state. So the cost in memory is that of the attention layers alone. Papers:
Lieber et al. 2024, "Jamba"; Waleffe et al. 2024, "An Empirical Study of Mamba-based Language
Models", who find one attention layer in eight enough.

Cost: time and memory of a token are the sums of its layers', in training as in decoding; their
files say them.

`pattern` names the architecture of each layer from the bottom up and is repeated to the model's
depth; a member's options stand in brackets, as in `sliding_window(window=64)`. All members share
one d_model, so the parameters are matched for the stack as a whole. Kernels: those of its members.

Left out: Jamba's mixtures of experts, as the shell's MLP is the same for all; and members that
cross layers (a shared attention block, as in Zamba), which a stack of mixers cannot express.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from workloads import plugins, registry
from workloads.cell import Scalar
from workloads.choice import parsed
from workloads.plugins import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """pattern: the architecture of each layer, from the bottom up, repeated to the depth."""

    pattern: tuple[str, ...] = ("mamba2", "transformer")

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ValueError("pattern is empty; name the architecture of at least one layer")
        for member in self.pattern:
            name, options = parsed(member)
            architecture = registry.load("architectures", name)
            if architecture.layers is not None or not (architecture.residual and _mixes(name)):
                raise ValueError(f"pattern: {name!r} is no mixer that can be one layer of a stack")
            plugins.build_options(architecture.options, options)


def _mixes(name: str) -> bool:
    return registry.load("architectures", name).matched


def _width_multiple(options: Options) -> int:
    multiples = []
    for name, given in map(parsed, options.pattern):
        architecture = registry.load("architectures", name)
        built = plugins.build_options(architecture.options, given)
        multiples.append(architecture.width_multiple(built))
    return math.lcm(*multiples)


def _layers(options: Options, num_layers: int) -> Sequence[tuple[str, Mapping[str, Scalar]]]:
    """Raises ValueError where the model is not deep enough for the whole pattern."""
    if num_layers < len(options.pattern):
        raise ValueError(
            f"pattern: {len(options.pattern)} layers do not fit into a model of {num_layers}; "
            "shorten the pattern, or raise num_layers"
        )
    return [parsed(options.pattern[i % len(options.pattern)]) for i in range(num_layers)]


def _members(options: Options) -> Iterator[tuple[plugins.Architecture, Any]]:
    """The architectures of the pattern, with their options."""
    for member in options.pattern:
        name, given = parsed(member)
        architecture = registry.load("architectures", name)
        yield architecture, plugins.build_options(architecture.options, given)


def _implementation(options: Options, device_type: str) -> str:
    said = (one.implementation(own, device_type) for one, own in _members(options))
    return " + ".join(dict.fromkeys(said))


def _kernel_class(options: Options, device_type: str) -> str:
    said = (one.kernel_class(own, device_type) or "unknown" for one, own in _members(options))
    return " + ".join(dict.fromkeys(said))


def _arithmetic(options: Options, precision: str, device_type: str) -> str:
    said = (one.arithmetic(own, precision, device_type) for one, own in _members(options))
    return " + ".join(dict.fromkeys(said))


def _of_its_layers(*arguments: Any) -> NoReturn:
    raise TypeError("a hybrid has no mixer of its own; ask its layers")


ARCHITECTURE = Architecture(
    title="hybrid",
    version=2,
    options=Options,
    mixer=_of_its_layers,
    parameters=_of_its_layers,
    state_bytes=_of_its_layers,
    flops_per_token=_of_its_layers,
    saved_elements_per_token=_of_its_layers,
    implementation=_implementation,
    kernel_class=_kernel_class,
    arithmetic=_arithmetic,
    width_multiple=_width_multiple,
    layers=_layers,
    family="hybrid",
)
