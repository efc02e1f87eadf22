"""The kernel of torch's recurrent modules is a choice: the same numbers, by other code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workloads import plugins, registry
from workloads.mixer import Mixer

WIDTH, LENGTH = 16, 37


class Called(TorchDispatchMode):
    """The names of the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def mixer_of(name: str, library: bool) -> Mixer:
    architecture = registry.load("architectures", name)
    options = plugins.build_options(architecture.options, {"library": library})
    torch.manual_seed(0)
    mixer = architecture.mixer(WIDTH, options)
    assert mixer is not None
    mixer.initialise(1.0)
    return mixer


def computed(mixer: Mixer) -> list[Tensor]:
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    output = mixer(x)
    return [output, *torch.autograd.grad(output.square().sum(), list(mixer.parameters()))]


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_both_kernels_give_the_same(name: str) -> None:
    for one, other in zip(*(computed(mixer_of(name, kind)) for kind in (True, False)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("library", [True, False])
def test_the_lstm_takes_the_kernel_it_names(library: bool) -> None:
    options = plugins.build_options(
        registry.load("architectures", "lstm").options, {"library": library}
    )
    named = registry.load("architectures", "lstm").implementation(options, "cpu")
    enabled: Any = torch.backends.mkldnn
    before = enabled.enabled
    with Called() as called:
        mixer_of("lstm", library)(torch.randn(2, LENGTH, WIDTH))
    assert ("mkldnn_rnn_layer" in " ".join(called.names)) == ("oneDNN" in named)
    assert ("oneDNN" in named) == (library and torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch says no types
    assert enabled.enabled == before
