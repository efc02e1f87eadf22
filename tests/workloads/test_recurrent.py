"""The kernel of torch's recurrent modules is a choice: the same numbers, by other code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from workloads import plugins, recurrent, registry
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


def gru_and_gradients(
    by: Callable[..., tuple[Tensor, Tensor]], module: nn.GRU, *given: Tensor
) -> tuple[Tensor, ...]:
    """Outputs, last state, and gradients of all that goes in, of a sum of both with fixed
    weights."""
    inputs = [tensor.clone().requires_grad_() for tensor in given]
    output, last = by(module, inputs[0], *(state[None] for state in inputs[1:]))
    weighed = output * torch.linspace(-1, 1, output.numel()).view_as(output)
    loss = weighed.sum() + last.square().sum()
    return output, last, *torch.autograd.grad(loss, [*inputs, *module.parameters()])


@pytest.mark.parametrize("from_state", [False, True])
@pytest.mark.parametrize("length", [1, 2, LENGTH])
def test_a_gru_differentiated_by_hand_is_torchs_own(length: int, from_state: bool) -> None:
    """Of another width in than out, as nothing in it may take one for the other."""
    torch.manual_seed(0)
    module = nn.GRU(5, WIDTH, batch_first=True).double()
    given = [torch.randn(3, length, 5).double(), torch.randn(3, WIDTH).double()][: 1 + from_state]
    theirs = gru_and_gradients(lambda rnn, *x: rnn(*x), module, *given)
    ours = gru_and_gradients(recurrent.run, module, *given)
    assert torch.equal(ours[0], theirs[0])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-12)


def test_a_gru_by_hand_under_autocast_is_no_coarser_than_torchs_own() -> None:
    torch.manual_seed(0)
    module, x = nn.GRU(WIDTH, WIDTH, batch_first=True), torch.randn(3, LENGTH, WIDTH)
    exact = gru_and_gradients(lambda rnn, x: rnn(x), module, x)

    def autocast(by: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        def within(*given: Any) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                return by(*given)

        return gru_and_gradients(within, module, x)

    def errors(found: tuple[Tensor, ...]) -> list[float]:
        pairs = zip(found, exact, strict=True)
        return [float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs]

    ours, theirs = autocast(recurrent.run), autocast(lambda rnn, x: rnn(x))
    assert [a.dtype for a in ours] == [b.dtype for b in theirs]
    assert all(a <= 1.5 * b for a, b in zip(errors(ours), errors(theirs), strict=True))


def test_a_gru_by_hand_keeps_its_input_and_its_states_alone() -> None:
    module, kept = nn.GRU(WIDTH, WIDTH, batch_first=True), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(3, LENGTH, WIDTH, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        recurrent.run(module, x)
    assert [shape for shape in kept if LENGTH in shape] == [(3, LENGTH, WIDTH)] * 2
