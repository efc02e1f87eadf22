"""The contract of a mixer, held against every architecture in the folder.

Laws run in float64, where what is left of a difference is a mistake; float32 is held to what its
rounding allows.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workloads import plugins
from workloads.architectures.transformer import Attention, Options
from workloads.mixer import Mixer, held_bytes, state_tensors
from workloads.plugins import Architecture

BATCH, LENGTH = 3, 21
LONG = 100
"""Longer than what the widest chunk or window of a default keeps to itself."""
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


VARIANTS = [
    "transformer(kv_heads=2, position=alibi)",
    "transformer(attention=materialised)",
    "transformer(kv_heads=1, position=nope)",
    "sliding_window(window=24, kv_heads=2)",
    "min_gru(cell=lstm)",
    "mlstm(gate=sigmoid)",
    "slstm(forget=exponential)",
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


def _chosen(name: str) -> tuple[Architecture, Any]:
    """`name(option=value)` -> the architecture and its options."""
    name, options = plugins.parsed(name)
    architecture = plugins.load("architectures", name)
    return architecture, plugins.build_options(architecture.options, options)


def _has_mixer(name: str) -> bool:
    architecture, options = _chosen(name)
    if architecture.layers is not None:  # of other architectures, which are tested here themselves
        return False
    with torch.device("meta"):
        return architecture.mixer(_width(architecture, options), options) is not None


def _width(architecture: Architecture, options: Any) -> int:
    return math.lcm(32, architecture.width_multiple(options))


NAMES = [name for name in [*plugins.names("architectures"), *VARIANTS] if _has_mixer(name)]


def _mixer(name: str, dtype: torch.dtype = torch.float64) -> tuple[Mixer, int]:
    architecture, options = _chosen(name)
    width = _width(architecture, options)
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


def _input(width: int, dtype: torch.dtype = torch.float64, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(BATCH, length, width, dtype=torch.float64, generator=generator).to(dtype)


def _in_chunks(mixer: Mixer, x: Tensor, chunks: tuple[int, ...]) -> Tensor:
    """Prefill chunk after chunk, then step to the end."""
    state = mixer.empty_state(x.shape[0], x.shape[1], x.device, x.dtype)
    outputs, position = [], 0
    for chunk in chunks:
        output, state = mixer.prefill(x[:, position : position + chunk], state)
        outputs.append(output)
        position += chunk
    for token in x[:, position:].unbind(1):
        output, state = mixer.step(token, state)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1)


def test_the_folder_holds_the_first_architectures() -> None:
    assert {"lstm", "gru", "transformer"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0, 1, 8, LENGTH - 1])
@torch.no_grad()
def test_no_position_sees_a_later_one(name: str, position: int) -> None:
    mixer, width = _mixer(name)
    x = _input(width)
    changed = x.clone()
    changed[:, position] += 1
    before, after = mixer(x), mixer(changed)
    torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-12)
    assert (after[:, position] - before[:, position]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_last_position_remembers_the_first(name: str) -> None:
    mixer, width = _mixer(name)
    x = _input(width)
    changed = x.clone()
    changed[:, 0] += 1
    assert (mixer(changed)[:, -1] - mixer(x)[:, -1]).abs().max() > 1e-9


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "chunks", [(), (1,), (7,), (LENGTH,), (1, 1), (8, 5), (3, 1, 9), (5, LENGTH - 5)], ids=str
)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prefill_of_any_split_then_steps_equal_the_parallel_form(
    name: str, chunks: tuple[int, ...], dtype: torch.dtype
) -> None:
    mixer, width = _mixer(name, dtype)
    x = _input(width, dtype)
    expected = mixer(x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        _in_chunks(mixer, x, chunks), expected, rtol=0, atol=TOLERANCES[dtype] * scale
    )


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 131])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_length_splits_anywhere(name: str, length: int) -> None:
    """Lengths around those of chunks, split unevenly."""
    mixer, width = _mixer(name)
    x = _input(width, length=length)
    expected = mixer(x)
    tolerance = 1e-10 * max(1.0, expected.abs().max().item())
    for chunks in ((length,), (length // 3, length // 2), (max(0, length - 5),)):
        found = _in_chunks(mixer, x, tuple(chunk for chunk in chunks if chunk))
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    mixer, width = _mixer(name)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 7, width, dtype=torch.float64, generator=generator)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    weights = torch.randn(x.shape, dtype=torch.float64, generator=generator)

    def along(step: Tensor) -> Tensor:
        return (mixer(x + step * direction) * weights).sum()

    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (zero,), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_declared(name: str) -> None:
    architecture, options = _chosen(name)
    for width in (_width(architecture, options), 3 * _width(architecture, options)):
        with torch.device("meta"):
            mixer = architecture.mixer(width, options)
        assert mixer is not None
        built = sum(parameter.numel() for parameter in mixer.parameters())
        assert architecture.parameters(width, options) == built


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_rows_of_a_batch_are_independent(name: str) -> None:
    mixer, width = _mixer(name)
    x = _input(width)
    alone = torch.cat([mixer(row[None]) for row in x])
    torch.testing.assert_close(mixer(x), alone, rtol=0, atol=1e-12)
    stepped_alone = torch.cat([_in_chunks(mixer, row[None], (5,)) for row in x])
    torch.testing.assert_close(_in_chunks(mixer, x, (5,)), stepped_alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    mixer, width = _mixer(name)
    weights = torch.randn(LONG, width, dtype=torch.float64)
    (mixer(_input(width, length=LONG)) * weights).sum().backward()
    for label, parameter in mixer.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 2, 17, 64, 130])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_declared_state_bytes_are_the_bytes_held(
    name: str, length: int, dtype: torch.dtype
) -> None:
    architecture, options = _chosen(name)
    mixer, width = _mixer(name, dtype)
    x = _input(width, dtype, length)
    state = mixer.empty_state(BATCH, length, x.device, dtype)
    _, state = mixer.prefill(x[:, : length - 1], state) if length > 1 else (x, state)
    _, state = mixer.step(x[:, -1], state)
    declared = architecture.state_bytes(width, options, length, dtype.itemsize)
    assert held_bytes(state) == BATCH * declared
    assert all(tensor.shape[0] == BATCH for tensor in state_tensors(state))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_copied_state_goes_its_own_way(name: str) -> None:
    mixer, width = _mixer(name)
    x = _input(width)
    state = mixer.empty_state(BATCH, LENGTH + 2, x.device, x.dtype)
    _, state = mixer.prefill(x, state)
    twin = copy.deepcopy(state)
    first, state = mixer.step(x[:, 0], state)
    mixer.step(x[:, 1], state)
    again, _ = mixer.step(x[:, 0], twin)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_inference_comes_before_training_without_harm(name: str) -> None:
    """What a mixer keeps for itself in inference mode must not break a later backward."""
    mixer, width = _mixer(name)
    x = _input(width, length=40)
    with torch.inference_mode():
        mixer(x)
        mixer.step(x[:, 0], mixer.empty_state(BATCH, 300, x.device, x.dtype))
    mixer(x.requires_grad_()).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_stays_near(name: str, dtype: torch.dtype) -> None:
    mixer, width = _mixer(name)
    x = _input(width)
    expected = mixer(x)
    half = copy.deepcopy(mixer).to(dtype)
    actual = _in_chunks(half, x.to(dtype), (9,))
    assert actual.dtype == dtype
    difference = (actual.double() - expected).norm() / expected.norm()
    assert difference < 0.03


@pytest.mark.parametrize("name", NAMES)
def test_training_under_autocast_reaches_every_parameter(name: str) -> None:
    mixer, width = _mixer(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mixer(_input(width, torch.float32, LONG)).float().square().sum()
    loss.backward()
    for label, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label


def _counted_step_flops(mixer: Mixer, x: Tensor) -> float:
    """FLOPs of matrix products in decoding x, per token, with attention in its plain form."""
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        _in_chunks(mixer, x, ())
    return float(counter.get_total_flops()) / (x.shape[0] * x.shape[1])


@pytest.mark.parametrize("name", NAMES)
def test_declared_flops_cover_the_products_of_decoding(name: str) -> None:
    """A chunked parallel form may do more than the steps it replaces, and never less."""
    architecture, options = _chosen(name)
    mixer, width = _mixer(name)
    declared = architecture.flops_per_token(width, options, LENGTH)
    assert 0 < _counted_step_flops(mixer, _input(width)) <= declared * (1 + 1e-9)


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
@pytest.mark.parametrize("length", [1, 16, 21])
def test_declared_flops_are_exact_where_the_forms_do_the_same_work(name: str, length: int) -> None:
    architecture, options = _chosen(name)
    mixer, width = _mixer(name)
    declared = architecture.flops_per_token(width, options, length)
    assert _counted_step_flops(mixer, _input(width, length=length)) == pytest.approx(declared)


@pytest.mark.parametrize("name", NAMES)
def test_predicted_saved_activations_are_near_those_kept(name: str) -> None:
    """Within a fifth, and within a half for other options than the defaults: the prediction serves
    packing, and is graded in the report besides."""
    architecture, options = _chosen(name)
    mixer, width = _mixer(name, torch.float32)
    x = _input(width, torch.float32, 64).requires_grad_()
    weights = {p.untyped_storage().data_ptr() for p in mixer.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mixer(x)
    actual = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    declared = architecture.saved_elements_per_token(width, options, 64)
    assert actual / (4 * BATCH * 64) == pytest.approx(declared, rel=0.5 if "(" in name else 0.2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_an_implementation_is_named_or_refused(name: str, device_type: str) -> None:
    architecture, options = _chosen(name)
    try:
        assert architecture.implementation(options, device_type)
    except plugins.Unsupported as gap:
        assert str(gap)


def test_forget_gates_start_open() -> None:
    mixer, width = _mixer("lstm")
    assert isinstance(mixer.rnn, nn.LSTM)
    biases = mixer.rnn.all_weights[0][2] + mixer.rnn.all_weights[0][3]
    assert biases.tolist() == [0.0] * width + [1.0] * width + [0.0] * 2 * width


def test_heads_must_divide_the_width_evenly() -> None:
    with pytest.raises(ValueError, match="multiple of 24, not 32"):
        Attention(32, Options(heads=12))
    with pytest.raises(ValueError, match="heads must be at least 1"):
        plugins.build_options(plugins.load("architectures", "transformer").options, {"heads": 0})
