"""An oracle: a library's function or layer that must give what one of ours gives.

Inputs are float64 on our side always. A library that computes in float32 whatever it is given is
held to FLOAT32, one that keeps float64 to FLOAT64.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from workloads import plugins, registry
from workloads.mixer import Mixer

FLOAT64, FLOAT32 = 1e-10, 1e-5
"""Largest difference of a tensor, relative to its largest value."""
BATCH, WIDTH, HEADS = 2, 32, 2
HEAD = WIDTH // HEADS
STATES = 8
"""Width of keys, where they may differ from values."""
CHUNK = 64
Pair = tuple[Tensor, Tensor]
"""Outputs and the last state."""
KERNELS = ("fla", "mamba_ssm", "causal_conv1d", "kernels")
"""Packages that transformers would take its functions from: they need a GPU, and are what our ops
call there."""
NOISE = 0.2
"""Added to all weights, so that no bias is 0 and no norm 1."""


@dataclass(frozen=True, slots=True)
class Case:
    """Two computations from the same leaves, which want gradients: outputs first, then last states
    where the library gives them."""

    leaves: Sequence[Tensor]
    ours: Callable[[], Sequence[Tensor]]
    theirs: Callable[[], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Oracle:
    """case(length) draws the numbers, the same at every call."""

    architecture: str
    name: str
    tolerance: float
    case: Callable[[int], Case]

    def __str__(self) -> str:
        return f"{self.architecture}, {self.name}"


@dataclass(frozen=True, slots=True)
class Twin:
    """A library's layer that computes what a mixer of ours does.

    parameters: all of the layer's, made of the mixer's, so that gradients go back to ours.
    forward(layer, x) calls it. unused: our parameters that it has no counterpart of; they are 0.
    """

    layer: nn.Module
    parameters: Mapping[str, Tensor]
    forward: Callable[[Any, Tensor], Tensor] = lambda layer, x: layer(x)
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {name for name, _ in self.layer.named_parameters()}
        assert known == set(self.parameters), known ^ set(self.parameters)

    def copied(self) -> nn.Module:
        """The layer with the parameters as its own."""
        with torch.no_grad():
            for name, parameter in self.layer.named_parameters():
                parameter.copy_(self.parameters[name])
        return self.layer

    def functional(self, x: Tensor) -> Tensor:
        """The layer of these very parameters."""

        def call(*arguments: Any, **more: Any) -> Any:
            return functional_call(self.layer, dict(self.parameters), arguments, more)

        return self.forward(call, x)


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def library(module: str) -> Any:
    """The module, imported late and without the GPU kernels it would rather use."""
    with _hidden(KERNELS):
        return importlib.import_module(module)


def op_case(
    leaves: Sequence[Tensor],
    ours: Callable[..., Sequence[Tensor]],
    theirs: Callable[..., Sequence[Tensor]],
) -> Case:
    """Two functions of the leaves."""
    wanted = [x.requires_grad_() for x in leaves]
    return Case(wanted, partial(ours, *wanted), partial(theirs, *wanted))


def layer_oracle(
    architecture: str,
    name: str,
    tolerance: float,
    twin: Callable[[Any, Any], Twin],
    **given: Any,
) -> Oracle:
    """Of a layer with our weights; twin(mixer, options) builds it. `given` are our options."""

    def case(length: int) -> Case:
        mixer, options = _mixer(architecture, given)
        theirs = twin(mixer, options)
        theirs.layer.double()
        named = dict(mixer.named_parameters())
        with torch.no_grad():
            for absent in theirs.unused:
                named.pop(absent).zero_()
        x = draw((BATCH, length, WIDTH))[0].requires_grad_()
        return Case([x, *named.values()], lambda: [mixer(x)], lambda: [theirs.functional(x)])

    return Oracle(architecture, name, tolerance, case)


def _mixer(name: str, given: Mapping[str, Any]) -> tuple[Mixer, Any]:
    architecture = registry.load("architectures", name)
    options = plugins.build_options(architecture.options, dict(given))
    torch.manual_seed(0)
    mixer = architecture.mixer(WIDTH, options)
    assert mixer is not None
    mixer.initialise(1.0)
    with torch.no_grad():
        for parameter in mixer.double().parameters():
            parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    return mixer, options


@contextmanager
def _hidden(packages: Sequence[str]) -> Iterator[None]:
    """Within it, importing one of them raises ImportError."""
    before = {name: sys.modules[name] for name in packages if name in sys.modules}
    sys.modules.update(dict.fromkeys(packages))
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(before)
