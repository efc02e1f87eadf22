"""What xLSTM's two cells must hold beyond the contract of every mixer: their forms agree with the
formula, written down a second time in numpy, with extreme gates too, and their gradients are those
of the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workloads import plugins, registry
from workloads.architectures.linear_attention import normalised_linear_attention
from workloads.mixer import Mixer, held_bytes
from workloads.ops.delta_rule import delta_rule
from workloads.ops.gated_linear import CHUNK, gated_linear_attention
from workloads.ops.mlstm import Memory, mlstm, mlstm_reference, mlstm_step
from workloads.ops.rwkv7 import wkv7
from workloads.ops.slstm import Cell, slstm, slstm_reference, slstm_step

Gate = Literal["exponential", "sigmoid"]
KINDS: tuple[dict[str, Gate], ...] = (
    {"forget": "exponential"},
    {"forget": "sigmoid"},
    {"forget": "exponential", "gate": "sigmoid"},
    {"forget": "sigmoid", "gate": "sigmoid"},
)
"""Of the sLSTM's forget and input gates; by default the latter is exponential."""
SETTINGS = [
    ("mlstm", {"gate": "exponential"}),
    ("mlstm", {"gate": "sigmoid"}),
    ("mlstm", {"gate": "sigmoid", "heads": 2}),
    ("slstm", {"forget": "exponential"}),
    ("slstm", {"forget": "sigmoid", "heads": 2}),
    ("slstm", {"gate": "sigmoid"}),
    ("slstm", {"gate": "sigmoid", "forget": "exponential"}),
]
WIDTH = 32


def _mixer(name: str, options: dict[str, Any]) -> tuple[Mixer, plugins.Architecture, Any]:
    architecture = registry.load("architectures", name)
    built = plugins.build_options(architecture.options, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        mixer = architecture.mixer(WIDTH, built)
        assert mixer is not None
        mixer.initialise(0.5)
        with torch.no_grad():
            for module in mixer.modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(5)
    return mixer.double(), architecture, built


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _memory_inputs(length: int, strength: float) -> tuple[list[Tensor], Memory]:
    inputs = [_draw(2, length, 3, 8, seed=n) for n in range(3)]
    gates = [strength * _draw(2, length, 3, seed=n) for n in (3, 4)]
    start = Memory(_draw(2, 3, 8, 8, seed=5), _draw(2, 3, 8, seed=6), _draw(2, 3, seed=7))
    return [*inputs, *gates], start


@pytest.mark.parametrize("strength", [1.0, 30.0, 500.0])
@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_the_chunked_mlstm_is_the_recurrence(length: int, strength: float) -> None:
    inputs, start = _memory_inputs(length, strength)
    output, state = mlstm(*inputs, scale=0.3, initial_state=start)
    expected, last = mlstm_reference(*inputs, scale=0.3, initial_state=start)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    for one, other in zip(state, last, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    single = [x.float() for x in inputs]
    output, _ = mlstm(*single, scale=0.3, initial_state=Memory(*(s.float() for s in start)))
    scale = expected.abs().max().item()
    if strength <= 30:  # sums of larger gates lose digits in float32, whatever the form
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-4 * scale)


def test_the_mlstm_has_the_gradients_of_the_recurrence() -> None:
    inputs, start = _memory_inputs(CHUNK + 9, 2.0)
    gradients = []
    for form in (mlstm, mlstm_reference):
        leaves = [x.clone().requires_grad_() for x in (*inputs, *start)]
        output, state = form(*leaves[:5], scale=0.3, initial_state=Memory(*leaves[5:]))
        loss = (output * _draw(*output.shape, seed=8)).sum()
        loss = loss + sum((s * _draw(*s.shape, seed=9)).sum() for s in state)
        gradients.append(torch.autograd.grad(loss, leaves))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * other.abs().max().item())


@pytest.mark.parametrize("input_gate, forget_gate", [(-300.0, -300.0), (300.0, 300.0), (0.0, -9.0)])
def test_extreme_gates_leave_the_mlstm_finite(input_gate: float, forget_gate: float) -> None:
    inputs, _ = _memory_inputs(2 * CHUNK, 1.0)
    leaves = [x.float().requires_grad_() for x in inputs]
    q, k, v, i, f = leaves
    output, _ = mlstm(q, k, v, i + input_gate, f + forget_gate, scale=0.3)
    torch.autograd.backward(output.abs().sum())
    assert output.isfinite().all()
    for leaf in leaves:
        assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_mlstm_steps_may_be_differentiated() -> None:
    inputs, start = _memory_inputs(1, 1.0)
    token = [x[:, 0, :1].clone().requires_grad_() for x in inputs]
    state = Memory(*(s[:, :1].clone().requires_grad_() for s in start))

    def run(*leaves: Tensor) -> Tensor:
        return mlstm_step(*leaves[:5], scale=0.3, state=Memory(*leaves[5:]))[0]

    assert torch.autograd.gradcheck(run, (*token, *state))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-x))
    return result


def _slstm_in_numpy(
    x: np.ndarray, recurrent: np.ndarray, forget: Gate, gate: Gate = "exponential"
) -> np.ndarray:
    """The paper's equations without a stabiliser, head by head. x: (B, T, H, 4, D), R:
    (H, D, 4 D)."""
    batch, length, heads, _, width = x.shape
    h = np.zeros((length, batch, heads, width))
    for b in range(batch):
        for head in range(heads):
            matrix = recurrent[head].reshape(width, 4, width)
            before, c, n = np.zeros(width), np.zeros(width), np.zeros(width)
            for t in range(length):
                z, i, f, o = (x[b, t, head, g] + before @ matrix[:, g] for g in range(4))
                kept = np.exp(f) if forget == "exponential" else _sigmoid(f)
                written = np.exp(i) if gate == "exponential" else _sigmoid(i)
                c = kept * c + written * np.tanh(z)
                n = kept * n + written
                before = h[t, b, head] = _sigmoid(o) * c / n
    return np.moveaxis(h, 0, 1)


def _cell_inputs(length: int, strength: float = 1.0) -> tuple[Tensor, Tensor, Cell]:
    hidden, cell, normaliser, scale = (_draw(2, 3, 5, seed=n) for n in range(4))
    start = Cell(hidden.tanh(), cell, normaliser.abs() + 1, scale)
    return strength * _draw(2, length, 3, 4, 5, seed=8), _draw(3, 5, 20, seed=9), start


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 30])
def test_every_form_of_the_slstm_is_the_formula(length: int, kinds: Any) -> None:
    x, recurrent, _ = _cell_inputs(length)
    expected = torch.from_numpy(_slstm_in_numpy(x.numpy(), recurrent.numpy(), **kinds))
    split = length // 2 or 1
    first, state = slstm(x[:, :split], recurrent, **kinds)
    outputs = list(first.unbind(1))
    for token in x[:, split:].unbind(1):
        output, state = slstm_step(token, recurrent, **kinds, state=state)
        outputs.append(output)
    for found in (
        slstm(x, recurrent, **kinds)[0],
        slstm(x.clone().requires_grad_(), recurrent, **kinds)[0].detach(),
        slstm_reference(x, recurrent, **kinds)[0],
        torch.stack(outputs, 1),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_the_slstm_has_the_gradients_of_the_recurrence(kinds: Any) -> None:
    """Of outputs and of the last state at its fixed scale, in everything but that scale."""
    x, recurrent, start = _cell_inputs(25)
    gradients = []
    for form in (slstm, slstm_reference):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, recurrent, *start[:3])]
        state = Cell(leaves[2], leaves[3], leaves[4], start.scale)
        output, last = form(leaves[0], leaves[1], **kinds, initial_state=state)
        loss = (output * _draw(*output.shape, seed=1)).sum()
        loss = loss + sum((s * _draw(*s.shape, seed=2)).sum() for s in last[:3])
        gradients.append(torch.autograd.grad(loss, leaves))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * other.abs().max().item())


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_the_backward_by_hand_is_right_by_differences(kinds: Any) -> None:
    leaves = [_draw(2, 4, 2, 4, 3, seed=1), _draw(2, 3, 12, seed=2)]
    leaves += [_draw(2, 2, 3, seed=n) for n in (3, 4)]
    leaves.append(_draw(2, 2, 3, seed=5).abs() + 1)
    scale = _draw(2, 2, 3, seed=6)

    def run(x: Tensor, recurrent: Tensor, h: Tensor, c: Tensor, n: Tensor) -> Tensor:
        return slstm(x, recurrent, **kinds, initial_state=Cell(h, c, n, scale))[0]

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_extreme_gates_leave_the_slstm_finite(kinds: Any) -> None:
    x, recurrent, _ = _cell_inputs(60, 300.0)
    leaves = [leaf.float().requires_grad_() for leaf in (x, recurrent)]
    output, _ = slstm(*leaves, **kinds)
    assert output.isfinite().all() and output.abs().max() <= 1
    torch.autograd.backward(output.sum())
    for leaf in leaves:
        assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_a_slstm_head_sees_no_other() -> None:
    x, recurrent, _ = _cell_inputs(12)
    changed = x.clone()
    changed[:, :, 1] += 1
    before, after = (slstm(inputs, recurrent, forget="sigmoid")[0] for inputs in (x, changed))
    torch.testing.assert_close(after[:, :, ::2], before[:, :, ::2], rtol=0, atol=0)
    assert (after - before)[:, :, 1].abs().min() > 0


@pytest.mark.parametrize("name, options", SETTINGS, ids=str)
@pytest.mark.parametrize("length", [1, 21, CHUNK + 1])
def test_every_setting_has_forms_that_agree_and_declares_its_costs(
    name: str, options: dict[str, Any], length: int
) -> None:
    mixer, architecture, built = _mixer(name, options)
    x = _draw(2, length, WIDTH)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected = mixer(x)
    declared = architecture.flops_per_token(WIDTH, built, length)
    assert counter.get_total_flops() / (2 * length) == pytest.approx(declared, rel=0.02)
    assert sum(p.numel() for p in mixer.parameters()) == architecture.parameters(WIDTH, built)
    for split in {0, 1, length // 2, length}:
        state = mixer.empty_state(2, length, x.device, x.dtype)
        outputs = []
        if split:
            output, state = mixer.prefill(x[:, :split], state)
            outputs.append(output)
        for token in x[:, split:].unbind(1):
            output, state = mixer.step(token, state)
            outputs.append(output[:, None])
        torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-10)
        # float64 here: twice what is held in float32
        assert held_bytes(state) == 2 * architecture.state_bytes(WIDTH, built, length, 8)


@pytest.mark.parametrize("name, options", SETTINGS, ids=str)
def test_gradients_are_right_by_differences(name: str, options: dict[str, Any]) -> None:
    mixer, _, _ = _mixer(name, options)
    x = _draw(1, 3, WIDTH, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(mixer, x, fast_mode=True)


@pytest.mark.parametrize("name, options", SETTINGS, ids=str)
def test_a_dry_build_needs_no_memory(name: str, options: dict[str, Any]) -> None:
    architecture = registry.load("architectures", name)
    with torch.device("meta"):
        mixer = architecture.mixer(WIDTH, plugins.build_options(architecture.options, options))
        assert mixer is not None
        assert mixer(torch.empty(2, 8, WIDTH)).shape == (2, 8, WIDTH)


@pytest.mark.parametrize("name, options", [SETTINGS[0], SETTINGS[3]], ids=str)
def test_no_slow_form_stands_in_on_a_gpu(name: str, options: dict[str, Any]) -> None:
    architecture = registry.load("architectures", name)
    with pytest.raises(plugins.Unsupported, match=r"no (verified )?fast kernel"):
        architecture.implementation(plugins.build_options(architecture.options, options), "cuda")


_X = torch.ones(1, 2, 1, 8)
_BY_BACKEND: dict[str, Callable[[Any], Any]] = {
    "gated_linear": lambda b: gated_linear_attention(_X, _X, _X, None, scale=1.0, backend=b),
    "linear": lambda b: normalised_linear_attention(_X, _X, _X, backend=b),
    "delta_rule": lambda b: delta_rule(_X, _X, _X, None, _X[..., 0], scale=1.0, backend=b),
    "rwkv7": lambda b: wkv7(_X, -_X, _X, _X, -_X, _X, backend=b),
}


@pytest.mark.parametrize("op", _BY_BACKEND)
@pytest.mark.parametrize(
    "backend, message",
    [
        ("reference", "is for tests and is never timed.*Known backends: torch, fla"),
        ("flaa", "unknown backend 'flaa'. Did you mean 'fla'.*Known: torch, fla"),
        ("triton", "unknown backend 'triton'.*Known: torch, fla"),
    ],
)
def test_no_other_backend_means_torch(op: str, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _BY_BACKEND[op](backend)
    assert len(_BY_BACKEND[op]("torch")) == 2


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mlstm", {"gate": "sigmoidal"}, "Did you mean 'sigmoid'"),
        ("slstm", {"forget": "exponentail"}, "forget gate 'exponentail'.*mean 'exponential'"),
        ("slstm", {"gate": "sigmoidal"}, "gate 'sigmoidal'.*mean 'sigmoid'"),
        ("mlstm", {"heads": 0}, "at least 1"),
        ("slstm", {"heads": 0}, "at least 1"),
    ],
)
def test_a_wrong_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plugins.build_options(registry.load("architectures", name).options, options)


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
def test_heads_must_divide_the_width(name: str) -> None:
    architecture = registry.load("architectures", name)
    with pytest.raises(ValueError, match="multiple of 3 heads, not 32"):
        architecture.mixer(WIDTH, architecture.options(heads=3))


def test_both_forget_gates_begin_with_the_same_decay() -> None:
    decays: dict[str, Tensor] = {}
    squash: dict[str, Callable[[Tensor], Tensor]] = {
        "exponential": torch.exp,
        "sigmoid": torch.sigmoid,
    }
    for forget, function in squash.items():
        mixer, _, _ = _mixer("slstm", {"forget": forget})
        assert isinstance(mixer.gates, nn.Linear)
        decays[forget] = function(mixer.gates.bias.view(4, 4, -1)[:, 2])
    torch.testing.assert_close(decays["exponential"], decays["sigmoid"], rtol=1e-6, atol=0)
    assert math.isclose(decays["sigmoid"].min().item(), 1 / (1 + math.exp(-3)), rel_tol=1e-6)
