"""Gated linear attention: its forms agree at any length and decay, its costs are those declared,
and the kernels' calls say what they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workloads import plugins
from workloads.architectures import gla, linear_attention
from workloads.mixer import Mixer, held_bytes
from workloads.ops import backends
from workloads.ops.gated_linear import (
    gated_linear_attention,
    gated_linear_attention_reference,
    gated_linear_attention_step,
    products_per_token,
)

KINDS = ("none", "fixed", "scalar", "channel")
HEADS, DK, DV = 3, 4, 5
VARIANTS: list[tuple[Any, dict[str, Any]]] = [
    (linear_attention, {"feature_map": "relu"}),
    (linear_attention, {"feature_map": "identity", "normalised": False}),
    (linear_attention, {"feature_map": "elu", "normalised": False, "heads": 2}),
    (gla, {"decay": "fixed"}),
    (gla, {"decay": "scalar"}),
    (gla, {"decay": "channel", "heads": 2}),
]


def _inputs(
    kind: str, length: int, shared: bool = False, dtype: torch.dtype = torch.float64
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    q, k = (draw(2, length, 1 if shared else HEADS, DK) for _ in range(2))
    shapes = {
        "none": None,
        "fixed": (HEADS,),
        "scalar": (2, length, HEADS),
        "channel": (2, length, HEADS, DK),
    }
    shape = shapes[kind]
    return [q, k, draw(2, length, HEADS, DV), None if shape is None else -draw(*shape).abs()]


def _with_gradients(form: Any, inputs: list[Tensor | None], start: Tensor | None) -> list[Tensor]:
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    output, state = form(*leaves, scale=0.5, initial_state=start)
    given = [x for x in leaves if x is not None]
    gradients = torch.autograd.grad(
        output.sin().sum() + state.cos().sum(), given, allow_unused=True, materialize_grads=True
    )
    return [output, state, *gradients]


@pytest.mark.parametrize("start", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("shared", [False, True], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 65, 101])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_agree_with_the_loop(kind: str, length: int, shared: bool, start: bool) -> None:
    inputs = _inputs(kind, length, shared)
    state = torch.ones(2, HEADS, DK, DV, dtype=torch.float64) if start else None
    found = _with_gradients(gated_linear_attention, inputs, state)
    expected = _with_gradients(gated_linear_attention_reference, inputs, state)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_agree_with_the_loop_and_leave_the_state_alone(kind: str) -> None:
    q, k, v, decay = _inputs(kind, 7)
    assert q is not None and k is not None and v is not None
    expected, last = gated_linear_attention_reference(q, k, v, decay, scale=0.5)
    state = torch.zeros(2, HEADS, DK, DV, dtype=torch.float64)
    for t in range(7):
        before, untouched = state, state.clone()
        gate = decay[:, t] if decay is not None and decay.ndim > 1 else decay
        output, state = gated_linear_attention_step(
            q[:, t], k[:, t], v[:, t], gate, scale=0.5, state=state
        )
        torch.testing.assert_close(output, expected[:, t], rtol=1e-10, atol=1e-10)
        assert torch.equal(before, untouched)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strength", [50.0, 5000.0])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_strong_decays_do_not_overflow(kind: str, strength: float) -> None:
    """Some tokens forget all, their neighbours little."""
    *inputs, decay = _inputs(kind, 70)
    assert decay is not None
    decay = torch.where(decay < -1, -strength, decay / 1000)
    found = _with_gradients(
        gated_linear_attention, [x.float() for x in (*inputs, decay) if x is not None], None
    )
    expected = _with_gradients(gated_linear_attention_reference, [*inputs, decay], None)
    assert all(x.isfinite().all() for x in found)
    for one, other in zip(found[:2], expected[:2], strict=True):
        # float32 sums of decays per head are exact to the strongest's last digits
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < (1e-5 if kind == "channel" else 1e-6 * strength)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.ops.gated_linear_chunks.CHUNK", 4)
    inputs = [None if x is None else x[:1] if x.ndim > 1 else x for x in _inputs(kind, 6)]
    start = torch.ones(1, HEADS, DK, DV, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (*inputs, start) if x is not None]

    def function(*given: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, *decay, state = given
        gate = decay[0] if decay else None
        return gated_linear_attention(q, k, v, gate, scale=0.5, initial_state=state)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("length", [1, 20, 32, 77, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_declared_products_are_those_done(kind: str, length: int) -> None:
    inputs = _inputs(kind, length)
    with FlopCounterMode(display=False) as counter:
        gated_linear_attention(*inputs, scale=1.0)  # type: ignore[arg-type]
    declared = products_per_token(length, HEADS, DK, DV, kind == "channel")
    assert counter.get_total_flops() / (2 * length) == pytest.approx(declared)


def _mixer(module: Any, options: Any) -> Mixer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mixer = module.ARCHITECTURE.mixer(32, options)
        mixer.initialise(0.5)
        with torch.no_grad():
            for parameter in mixer.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
    assert isinstance(mixer, Mixer)
    return mixer.double()


@pytest.mark.parametrize(("module", "given"), VARIANTS, ids=lambda x: str(x).rsplit("/", 1)[-1])
def test_every_option_keeps_the_laws_of_a_mixer(module: Any, given: dict[str, Any]) -> None:
    architecture = module.ARCHITECTURE
    options = plugins.build_options(architecture.options, given)
    mixer = _mixer(module, options)
    assert sum(p.numel() for p in mixer.parameters()) == architecture.parameters(32, options)
    x = torch.randn(2, 43, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = mixer(x)
    expected.sin().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mixer.parameters())

    state = mixer.empty_state(2, 43, x.device, x.dtype)
    first, state = mixer.prefill(x[:, :35], state)
    outputs = [first]
    for token in x[:, 35:].unbind(1):
        output, state = mixer.step(token, state)
        outputs.append(output[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-10)
    assert held_bytes(state) == 2 * architecture.state_bytes(32, options, 43, 8)


def test_normalised_outputs_are_weighted_means() -> None:
    q, k = (torch.rand(2, 40, HEADS, DK, dtype=torch.float64) for _ in range(2))
    output, _ = linear_attention.normalised_linear_attention(
        q, k, torch.full((2, 40, HEADS, DV), 3.0, dtype=torch.float64)
    )
    torch.testing.assert_close(output, torch.full_like(output, 3.0))


def test_fixed_decays_are_retnets() -> None:
    kept = gla.fixed_log_decays(3, torch.device("cpu"), torch.float64).exp()
    torch.testing.assert_close(kept, torch.tensor([31 / 32, 63 / 64, 127 / 128]).double())


def test_options_name_what_they_allow() -> None:
    with pytest.raises(ValueError, match="Did you mean 'scalar'"):
        gla.Options(decay="scaler")
    with pytest.raises(ValueError, match="Known: identity, elu, relu"):
        linear_attention.Options(feature_map="gelu")
    with pytest.raises(ValueError, match="cannot be normalised"):
        linear_attention.Options(feature_map="identity")
    with pytest.raises(ValueError, match="multiple of 8, not 36"):
        gla.ARCHITECTURE.mixer(36, gla.Options())


class _Kernel:
    """Stands for fla's: takes its arguments, computes by the loop, and may refuse backward."""

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        g_gamma: Tensor | None = None,
        *,
        scale: float,
        initial_state: Tensor | None,
        output_final_state: bool,
    ) -> tuple[Tensor, Tensor]:
        assert q.shape == k.shape and q.is_contiguous() and v.is_contiguous()
        assert output_final_state
        if self.refuse:
            raise RuntimeError("Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs")
        decay = g if g_gamma is None else g_gamma
        return gated_linear_attention_reference(
            q, k, v, decay, scale=scale, initial_state=initial_state
        )


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_checked", set())
    monkeypatch.setattr(backends, "refused", {})


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("shared", [False, True], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_are_called_as_they_want(
    kind: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "kernel", lambda path: _Kernel())
    inputs: Any = _inputs(kind, 9, shared, torch.float32)
    found, state = gated_linear_attention(*inputs, scale=0.5, backend="fla")
    expected, last = gated_linear_attention(*inputs, scale=0.5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(state, last)


@pytest.mark.usefixtures("_fresh")
def test_normalised_by_the_kernel_agrees_with_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "kernel", lambda path: _Kernel())
    q, k, v = (torch.rand(2, 9, HEADS, DK) for _ in range(3))
    start = torch.rand(2, HEADS, DK, DK + 1)
    for state in (None, start):
        found = linear_attention.normalised_linear_attention(q, k, v, state, "fla")
        expected = linear_attention.normalised_linear_attention(q, k, v, state)
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("_fresh")
def test_a_kernel_that_refuses_is_unsupported_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "kernel", lambda path: _Kernel(refuse=True))
    inputs: Any = _inputs("scalar", 9, dtype=torch.float32)
    for _ in range(2):
        with pytest.raises(plugins.Unsupported, match=r"3\.7\.1 on Hopper"):
            gated_linear_attention(*inputs, scale=0.5, backend="fla")
