"""The scan family: the short convolution, the diagonal scan, the selective scan, and the mixers on
them where their options leave the defaults that the mixers' contract is held to."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workloads import plugins, registry
from workloads.mixer import Mixer, held_bytes
from workloads.ops import backends, scan, selective_scan
from workloads.ops.convolution import causal_conv, causal_conv_step

LENGTHS = [1, 2, 3, 15, 16, 17, 37, 64, 65]


def _randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_the_convolution_is_torchs_and_continues_from_any_token(width: int, biased: bool) -> None:
    x, weight = _randn(2, 9, 3), _randn(3, width, seed=1)
    bias = _randn(3, seed=2) if biased else None
    y, history = causal_conv(x, weight, bias)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    _close(y, F.conv1d(padded, weight[:, None], bias, groups=3).transpose(1, 2))
    for split in (1, 2, 7):
        first, between = causal_conv(x[:, :split], weight, bias)
        second, last = causal_conv(x[:, split:], weight, bias, between)
        _close(torch.cat((first, second), 1), y)
        _close(last, history)
    between = torch.zeros_like(history)
    for t, token in enumerate(x.unbind(1)):
        stepped, between = causal_conv_step(token, weight, bias, between)
        _close(stepped, y[:, t])
    _close(between, history)


def test_the_convolutions_gradients_are_right() -> None:
    inputs = [_randn(2, 5, 3), _randn(3, 4), _randn(3), _randn(2, 3, 3)]
    assert torch.autograd.gradcheck(causal_conv, [x.requires_grad_() for x in inputs])


def _scan_inputs(length: int) -> list[Tensor]:
    shapes = [(2, length, 3), (2, length, 3), (2, 3)]
    decay, added, initial = (_randn(*shape, seed=seed) for seed, shape in enumerate(shapes))
    return [x.requires_grad_() for x in (torch.sigmoid(decay), added, initial)]


def _selective_inputs(length: int) -> list[Tensor]:
    shapes = [(3, length, 5), (3, length, 5), (5, 2), (3, length, 2), (3, length, 2), (3, 2, 5)]
    u, dt, a, b, c, initial = (_randn(*shape, seed=seed) for seed, shape in enumerate(shapes))
    return [x.requires_grad_() for x in (u, dt.abs(), -a.abs(), b, c, initial)]


def _with_gradients(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    y, state = function(*inputs[:-1], initial_state=inputs[-1])
    loss = (y * _randn(*y.shape, seed=9)).sum() + state.square().sum()
    return [y, state, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("length", LENGTHS)
def test_the_blocked_scan_and_its_gradients_are_the_loops(length: int) -> None:
    inputs = _scan_inputs(length)
    found = _with_gradients(scan.linear_scan, inputs)
    expected = _with_gradients(scan.linear_scan_reference, inputs)
    for one, other in zip(found, expected, strict=True):
        _close(one, other)


@pytest.mark.parametrize("rows_fit", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_chunked_selective_scan_and_its_gradients_are_the_loops(
    length: int, rows_fit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rows_fit:  # the batch goes in groups of one row, and the last would not be full of two
        monkeypatch.setattr(selective_scan, "_BUFFER_ELEMENTS", 2 * min(length, 16) * 10)
    inputs = _selective_inputs(length)
    found = _with_gradients(selective_scan.selective_scan, inputs)
    expected = _with_gradients(selective_scan.selective_scan_reference, inputs)
    for one, other in zip(found, expected, strict=True):
        _close(one, other)


def test_finite_differences_agree_with_both_scans() -> None:
    for function, inputs in (
        (scan.linear_scan, _scan_inputs(6)),
        (selective_scan.selective_scan, _selective_inputs(3)),
    ):

        def from_list(*x: Tensor, function: Any = function) -> Any:
            return function(*x[:-1], initial_state=x[-1])

        assert torch.autograd.gradcheck(from_list, inputs)


def test_decays_of_zero_and_one_are_exact() -> None:
    added = _randn(2, 50, 3)
    forgetting, _ = scan.linear_scan(torch.zeros_like(added), added)
    keeping, last = scan.linear_scan(torch.ones_like(added), added)
    _close(forgetting, added)
    _close(keeping, added.cumsum(1))
    _close(last, added.sum(1))
    inputs = [x.detach() for x in _selective_inputs(20)[:-1]]
    inputs[2] = inputs[2] * 1e9
    y, state = selective_scan.selective_scan(*inputs)
    _close(y, (inputs[3] * inputs[4]).sum(-1, keepdim=True) * inputs[1] * inputs[0])
    assert state.isfinite().all()


VARIANTS: list[tuple[str, dict[str, Any], int]] = [
    ("min_gru", {"cell": "lstm"}, 12),
    ("min_gru", {"expand": 3}, 12),
    ("mamba", {"state_size": 3, "expand": 1, "conv": 1, "dt_rank": 5}, 12),
    ("mamba", {"conv": 2}, 33),
    ("mamba2", {"state_size": 5, "conv": 1, "head_dim": 24}, 12),
    ("mamba2", {"expand": 3, "head_dim": 16}, 48),
]


@pytest.mark.parametrize(("name", "options", "width"), VARIANTS, ids=str)
@torch.no_grad()
def test_other_options_keep_the_contract(name: str, options: dict[str, Any], width: int) -> None:
    architecture = registry.load("architectures", name)
    built = plugins.build_options(architecture.options, options)
    assert width % architecture.width_multiple(built) == 0
    mixer = _mixer(architecture, width, built)
    numbers = sum(parameter.numel() for parameter in mixer.parameters())
    assert numbers == architecture.parameters(width, built)
    x = _randn(2, 21, width)
    expected = mixer(x)
    state = mixer.empty_state(2, 21, x.device, x.dtype)
    first, state = mixer.prefill(x[:, :8], state)
    second, state = mixer.prefill(x[:, 8:13], state)
    outputs = [first, second]
    for token in x[:, 13:].unbind(1):
        output, state = mixer.step(token, state)
        outputs.append(output[:, None])
    _close(torch.cat(outputs, 1), expected)
    assert held_bytes(state) == 2 * architecture.state_bytes(width, built, 21, 8)


def _mixer(architecture: plugins.Architecture, width: int, options: Any) -> Mixer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mixer = architecture.mixer(width, options)
        assert mixer is not None
        mixer.initialise(0.5)
    return mixer.double()


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_step_sizes_start_within_the_papers_bounds(name: str) -> None:
    architecture = registry.load("architectures", name)
    mixer = _mixer(architecture, 64, architecture.options())
    bias = dict(mixer.named_parameters())["step_size.bias" if name == "mamba" else "step_bias"]
    steps = F.softplus(bias)
    assert steps.min() > 1e-3 * 0.999 and steps.max() < 1e-1 * 1.001


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("min_gru", {"cell": "gru2"}, "unknown cell 'gru2'. Did you mean 'gru'"),
        ("min_gru", {"expand": 0}, "expand must be at least 1, not 0"),
        ("mamba", {"state_size": 0}, "state_size must be at least 1, not 0"),
        ("mamba", {"dt_rank": -1}, "dt_rank must be at least 1"),
        ("mamba2", {"head_dim": 0}, "head_dim must be at least 1, not 0"),
    ],
)
def test_senseless_options_are_refused(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:
        plugins.build_options(registry.load("architectures", name).options, options)
    assert sentence in str(refusal.value)


def test_the_hgrn_kernel_is_called_as_fla_defines_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk_hgrn(
        x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        states, last = scan.linear_scan_reference(g.exp(), x, initial_state=initial_state)
        return states, last.detach() if output_final_state else None

    monkeypatch.setattr(backends, "kernel", lambda path: chunk_hgrn)
    monkeypatch.setattr(backends, "_checked", set())
    decay, added, initial = (x.detach() for x in _scan_inputs(37))
    expected = scan.linear_scan(decay, added, initial_state=initial)
    found = scan.linear_scan_fla(decay.log(), added, initial_state=initial)
    for one, other in zip(found, expected, strict=True):
        _close(one, other)
    with pytest.raises(ValueError, match="no gradient"):
        scan.linear_scan_fla(decay.log(), added, initial_state=initial.requires_grad_())


def test_the_selective_scan_kernel_is_called_as_mamba_ssm_defines_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def selective_scan_fn(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert D is None and z is None and delta_bias is None and not delta_softplus
        assert return_last_state
        u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
        y, last = selective_scan.selective_scan_reference(u, delta, A.to(u.dtype), B, C)
        return y.transpose(1, 2), last.transpose(1, 2)

    module: Any = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn
    for parent in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backends, "_checked", set())
    inputs = [x.detach().float() for x in _selective_inputs(37)[:-1]]
    expected = selective_scan.selective_scan(*inputs)
    found = selective_scan.selective_scan_kernel(*inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_mamba_says_what_its_kernel_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    architecture = registry.load("architectures", "mamba")
    with pytest.raises(plugins.Unsupported, match="must be built with nvcc"):
        architecture.implementation(architecture.options(), "cuda")


def test_saved_scan_states_are_one_for_a_chunk() -> None:
    inputs = [x.detach().requires_grad_() for x in _selective_inputs(65)[:-1]]
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        selective_scan.selective_scan(*inputs)
    states = 3 * math.ceil(65 / selective_scan.CHUNK) * 2 * 5
    assert sum(kept.values()) == sum(x.numel() for x in inputs) + states
