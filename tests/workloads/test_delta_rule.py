"""The delta rule's and WKV-7's forms agree at any length, width, decay and split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workloads import plugins, registry
from workloads.architectures import delta_net, gated_delta_net
from workloads.architectures.gated_delta_net import GatedDeltaNet
from workloads.delta_mixer import DeltaMixer
from workloads.ops import backends, rwkv7
from workloads.ops import delta_rule as rule
from workloads.ops.delta_rule_chunks import CHUNK

BATCH, HEADS, KEY, VALUE = 2, 3, 8, 5
LENGTHS = [1, 2, 3, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7]
KINDS = ["none", "head", "channel", "wkv7"]
Form = Callable[..., tuple[Tensor, Tensor]]


def _inputs(
    kind: str, length: int, *, strength: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(
            BATCH, length, HEADS, *shape, dtype=torch.float64, generator=generator
        ).to(dtype)

    q, k, v = draw(KEY), F.normalize(draw(KEY), dim=-1), draw(VALUE)
    if kind == "wkv7":
        w = rwkv7.STRONGEST_DECAY * (strength * draw(KEY)).sigmoid()
        return q, w, draw(KEY), v, -k, k * draw(KEY).sigmoid()
    gate = () if kind == "none" else (strength * draw(*([KEY] if kind == "channel" else [])),)
    return q, k, v, *(-F.softplus(g) for g in gate), 2 * draw().sigmoid()


def _forms(kind: str) -> tuple[Form, Form, Form]:
    """Chunked, one step, and the loop, of the same arguments."""
    if kind == "wkv7":
        return rwkv7.wkv7, rwkv7.wkv7_step, rwkv7.wkv7_reference

    def called(form: Form) -> Form:
        def call(q: Tensor, k: Tensor, v: Tensor, *more: Tensor, **switches: Any) -> Any:
            decay = more[0] if len(more) == 2 else None
            return form(q, k, v, decay, more[-1], scale=0.5, **switches)

        return call

    return called(rule.delta_rule), called(rule.delta_rule_step), called(rule.delta_rule_reference)


def _state() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("start", [None, _state()], ids=["zero", "state"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_forms_agree(kind: str, length: int, start: Tensor | None) -> None:
    inputs = _inputs(kind, length)
    chunked, step, reference = _forms(kind)
    expected, last = reference(*inputs, initial_state=start)
    output, state = chunked(*inputs, initial_state=start)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-10)
    state = torch.zeros_like(_state()) if start is None else start
    for t, token in enumerate(zip(*(x.unbind(1) for x in inputs), strict=True)):
        output, state = step(*token, state=state)
        torch.testing.assert_close(output, expected[:, t], rtol=0, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_float32_is_as_near_as_its_rounding(kind: str) -> None:
    inputs = _inputs(kind, 150)
    chunked, _, reference = _forms(kind)
    expected, last = reference(*inputs)
    output, state = chunked(*(x.float() for x in inputs))
    assert output.dtype == state.dtype == torch.float32
    assert (output.double() - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (state.double() - last).abs().max() < 1e-4 * last.abs().max()


@pytest.mark.parametrize("strength", [50.0, 2000.0])
@pytest.mark.parametrize("kind", ["head", "channel", "wkv7"])
def test_strong_decays_stay_finite_and_right_in_float32(kind: str, strength: float) -> None:
    inputs = [x.float().requires_grad_() for x in _inputs(kind, 2 * CHUNK + 1, strength=strength)]
    chunked, _, reference = _forms(kind)
    output, state = chunked(*inputs)
    gradients = torch.autograd.grad(output.square().sum() + state.square().sum(), inputs)
    expected, _ = reference(*(x.double() for x in inputs))
    assert (output - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("length", [5, CHUNK + 3])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop(kind: str, length: int) -> None:
    leaves = [x.requires_grad_() for x in (*_inputs(kind, length), _state())]
    chunked, _, reference = _forms(kind)

    def gradients(form: Form) -> tuple[Tensor, ...]:
        output, state = form(*leaves[:-1], initial_state=leaves[-1])
        weights = (torch.linspace(-1, 1, x.numel()).view(x.shape) for x in (output, state))
        loss = (output * next(weights)).sum() + (state * next(weights)).sum()
        return torch.autograd.grad(loss, leaves)

    found, expected = gradients(chunked), gradients(reference)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    leaves = [x[:1, :, :1].clone().requires_grad_() for x in _inputs(kind, 3)]
    assert torch.autograd.gradcheck(_forms(kind)[0], leaves)


@torch.no_grad()
def test_a_decay_per_head_is_one_for_all_its_channels() -> None:
    q, k, v, gate, beta = _inputs("head", 40)
    by_channel = gate[..., None].expand(*gate.shape, KEY)
    one, other = (rule.delta_rule(q, k, v, g, beta, scale=1.0) for g in (gate, by_channel))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_whole_step_replaces_what_a_key_holds() -> None:
    """With beta 1 the state then answers that key with just the value written."""
    _, k, v, _ = _inputs("none", 10)
    _, state = rule.delta_rule(k, k, v, None, torch.ones(BATCH, 10, HEADS).double(), scale=1.0)
    answer = torch.einsum("bhkv,bhk->bhv", state, k[:, -1])
    torch.testing.assert_close(answer, v[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("decay", ["scalar", "channel"])
def test_declared_parameters_are_those_of_every_variant(decay: str) -> None:
    architecture = registry.load("architectures", "gated_delta_net")
    options = architecture.options(heads=2, decay=decay, negative_eigenvalues=True)
    mixer = architecture.mixer(48, options)
    assert mixer is not None
    assert sum(p.numel() for p in mixer.parameters()) == architecture.parameters(48, options)


@pytest.mark.parametrize("doubled", [False, True])
@torch.no_grad()
def test_negative_eigenvalues_double_the_step(doubled: bool) -> None:
    for mixer in (
        DeltaMixer(32, delta_net.Options(negative_eigenvalues=doubled)),
        GatedDeltaNet(32, gated_delta_net.Options(negative_eigenvalues=doubled)),
    ):
        mixer.initialise(1.0)
        mixer.beta.weight.fill_(1.0)
        beta = mixer._project(torch.ones(1, 1, 32))[-1]
        torch.testing.assert_close(beta, torch.full_like(beta, 2.0 if doubled else 1.0))


@pytest.mark.parametrize("decay", ["scalar", "channel"])
@torch.no_grad()
def test_a_gated_memory_starts_as_mamba_2_does(decay: str) -> None:
    mixer = GatedDeltaNet(64, gated_delta_net.Options(heads=8, decay=decay))
    mixer.initialise(1.0)
    assert ((mixer.A_log.exp() >= 1) & (mixer.A_log.exp() <= 16)).all()
    time = F.softplus(mixer.dt_bias)
    assert ((time > 0.9e-3) & (time < 1.1e-1)).all()


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net", "rwkv7"])
def test_a_shape_can_be_tried_without_memory(name: str) -> None:
    architecture = registry.load("architectures", name)
    with torch.device("meta"):
        mixer = architecture.mixer(32, architecture.options())
        assert mixer is not None
        x = torch.empty(2, 8, 32)
        assert mixer(x).shape == x.shape
        state = mixer.empty_state(2, 8, x.device, x.dtype)
        assert mixer.step(x[:, 0], state)[0].shape == (2, 32)


def test_options_say_what_is_wrong() -> None:
    for name in ("delta_net", "gated_delta_net", "rwkv7"):
        architecture = registry.load("architectures", name)
        with pytest.raises(ValueError, match="heads must be at least 1, not 0"):
            plugins.build_options(architecture.options, {"heads": 0})
        with pytest.raises(ValueError, match="a multiple of 24, not 32"):
            architecture.mixer(32, architecture.options(heads=3))
    with pytest.raises(ValueError, match="Did you mean 'channel'"):
        plugins.build_options(
            registry.load("architectures", "gated_delta_net").options, {"decay": "channels"}
        )


def test_kernels_refuse_what_they_cannot_do() -> None:
    wide = torch.zeros(1, 2, 1, 264)
    with pytest.raises(plugins.Unsupported, match="at most 256 channels"):
        rule.delta_rule(wide, wide, wide, None, wide[..., 0], scale=1.0, backend="fla")
    with pytest.raises(plugins.Unsupported, match="refuses float32"):
        narrow = wide[..., :8]
        rule.delta_rule(narrow, narrow, narrow, None, narrow[..., 0], scale=1.0, backend="fla")
    with pytest.raises(plugins.Unsupported, match="at most 256 channels"):
        rwkv7.wkv7(*[wide] * 6, backend="fla")
    with pytest.raises(plugins.Unsupported):
        backends.kernel("fla.ops.delta_rule:no_such_kernel")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(backends, "_checked", set())
    monkeypatch.setattr(backends, "refused", {})
    return monkeypatch


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_kernel_gets_gates_and_state_in_float32_and_the_rest_in_half(
    kind: str, unchecked: pytest.MonkeyPatch
) -> None:
    """With a stand-in for fla's kernel, of its argument names: fla itself needs a GPU."""
    calls: list[dict[str, Any]] = []

    def stand_in(**given: Any) -> tuple[Tensor, Tensor]:
        calls.append(dict(given))
        assert given.pop("output_final_state")
        assert (given.pop("lower_bound", None) is not None) == (kind == "wkv7")
        if kind != "wkv7":
            given["log_decay"] = given.pop("g", None)
        reference = rwkv7.wkv7_reference if kind == "wkv7" else rule.delta_rule_reference
        half = given["v"].dtype
        for name, x in given.items():
            given[name] = x.float() if isinstance(x, Tensor) else x
        output, state = reference(**given)
        return output.to(half), state

    unchecked.setattr(backends, "kernel", lambda path: stand_in)
    inputs = [x.bfloat16() for x in _inputs(kind, 40)]
    own, _, _ = _forms(kind)
    output, state = own(*inputs, initial_state=_state(), backend="fla")
    expected, last = own(*(x.double() for x in inputs), initial_state=_state())
    assert output.dtype == torch.bfloat16
    assert (output.double() - expected).norm() < 1e-2 * expected.norm()
    assert (state.double() - last).norm() < 1e-4 * last.norm()
    for name, x in calls[-1].items():
        if isinstance(x, Tensor):
            whole = name in {"g", "w", "initial_state"}
            assert x.dtype == (torch.float32 if whole else torch.bfloat16), name


@torch.no_grad()
def test_a_kernel_that_refuses_this_triton_is_unsupported_every_time(
    unchecked: pytest.MonkeyPatch,
) -> None:
    def refusing(**given: Any) -> tuple[Tensor, Tensor]:
        raise RuntimeError("Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs produces incorrect results")

    unchecked.setattr(backends, "kernel", lambda path: refusing)
    q, k, v, gate, beta = (x.bfloat16() for x in _inputs("head", 4))
    for _ in range(2):
        with pytest.raises(plugins.Unsupported, match=r"chunk_gated_delta_rule: Triton >= 3\.4\.0"):
            rule.delta_rule(q, k, v, gate, beta, scale=1.0, backend="fla")
