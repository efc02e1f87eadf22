"""The contract of a mixer, held against every architecture in the folder.

Laws run in float64, where what is left of a difference is a mistake; float32 is held to what its
rounding allows.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.workloads.decoding import decode
from tests.workloads.mixer_variants import (
    BATCH,
    LENGTH,
    NAMES,
    OTHER_CODE,
    chosen,
    mixer_of,
    random_input,
)
from workloads import plugins, registry
from workloads.architectures.transformer import Attention, Options
from workloads.mixer import held_bytes, repeated

LONG = 100
"""Longer than what the widest chunk or window of a default keeps to itself."""
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest difference over the largest output; in float32 1.6e-6 is the most that was measured."""
CHUNKED_TOLERANCES = TOLERANCES | {torch.float32: 1e-4}
"""Of mixers whose training form takes a chunk's sums by products."""


def tolerance(name: str, dtype: torch.dtype) -> float:
    architecture, options = chosen(name)
    chunked = architecture.kernel_class(options, "cpu") == "chunked"
    return (CHUNKED_TOLERANCES if chunked else TOLERANCES)[dtype]


def test_the_folder_holds_the_first_architectures() -> None:
    assert {"lstm", "gru", "transformer"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0, 1, 8, 31, 32, 63, 64, 95, LONG - 1])
@torch.no_grad()
def test_no_position_sees_a_later_one(name: str, position: int) -> None:
    mixer, width = mixer_of(name)
    x = random_input(width, length=LONG)
    changed = x.clone()
    changed[:, position] += 1
    before, after = mixer(x), mixer(changed)
    torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-12)
    assert (after[:, position] - before[:, position]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_last_position_remembers_the_first(name: str) -> None:
    mixer, width = mixer_of(name)
    x = random_input(width)
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
    mixer, width = mixer_of(name, dtype)
    x = random_input(width, dtype)
    expected = mixer(x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        decode(mixer, x, chunks)[0], expected, rtol=0, atol=tolerance(name, dtype) * scale
    )


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        *((length, torch.float64) for length in (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65)),
        *((length, torch.float64) for length in (127, 128, 129, 131)),
        (131, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_length_splits_anywhere(name: str, length: int, dtype: torch.dtype) -> None:
    """Lengths around those of chunks, segments and windows, split unevenly."""
    mixer, width = mixer_of(name, dtype)
    x = random_input(width, dtype, length)
    expected = mixer(x)
    atol = tolerance(name, dtype) * max(1.0, expected.abs().max().item())
    for chunks in ((length,), (length // 3, length // 2), (max(0, length - 5),)):
        found = decode(mixer, x, tuple(chunk for chunk in chunks if chunk))[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [7, LONG])
def test_gradients_are_those_of_finite_differences(name: str, length: int) -> None:
    """Along a random direction of the input and of each parameter, within the first chunk and over
    several."""
    mixer, width = mixer_of(name)
    generator = torch.Generator().manual_seed(2)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator)

    x = drawn(torch.empty(1, length, width))
    weights = drawn(x)
    values = {"x": x, **{name: p.detach() for name, p in mixer.named_parameters()}}
    directions = {name: drawn(value) / value.numel() ** 0.5 for name, value in values.items()}

    def along(steps: Tensor) -> Tensor:
        moved = {
            name: value + step * directions[name]
            for step, (name, value) in zip(steps, values.items(), strict=True)
        }
        given = moved.pop("x")
        return (torch.func.functional_call(mixer, moved, (given,)) * weights).sum()

    zero = torch.zeros(len(values), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (zero,), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OTHER_CODE)
def test_options_that_choose_the_code_leave_the_numbers(name: str) -> None:
    one, width = mixer_of(name)
    other, _ = mixer_of(name.partition("(")[0])
    found = []
    for mixer in (one, other):
        x = random_input(width).requires_grad_()
        output = mixer(x)
        leaves = [x, *mixer.parameters()]
        found.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_attention_never_falls_back_on_the_matrix(name: str, dtype: torch.dtype) -> None:
    """In no form: torch would take the slow kernel without a word."""
    mixer, width = mixer_of(name, dtype)
    x = random_input(width, dtype, LONG).requires_grad_()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        mixer(x).sum().backward()
        with torch.no_grad():
            decode(mixer, x.detach(), (20, LONG // 2))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_rows_of_a_batch_are_independent(name: str) -> None:
    mixer, width = mixer_of(name)
    x = random_input(width, length=LONG)
    alone = torch.cat([mixer(row[None]) for row in x])
    torch.testing.assert_close(mixer(x), alone, rtol=0, atol=1e-11)
    x = random_input(width)
    stepped_alone = torch.cat([decode(mixer, row[None], (5,))[0] for row in x])
    torch.testing.assert_close(decode(mixer, x, (5,))[0], stepped_alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    mixer, width = mixer_of(name)
    weights = torch.randn(LONG, width, dtype=torch.float64)
    (mixer(random_input(width, length=LONG)) * weights).sum().backward()
    for label, parameter in mixer.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_copied_state_goes_its_own_way(name: str) -> None:
    mixer, width = mixer_of(name)
    x = random_input(width)
    state = mixer.empty_state(BATCH, LENGTH + 2, x.device, x.dtype)
    _, state = mixer.prefill(x, state)
    twin = copy.deepcopy(state)
    first, state = mixer.step(x[:, 0], state)
    mixer.step(x[:, 1], state)
    again, _ = mixer.step(x[:, 0], twin)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_repeated_state_is_a_batch_of_the_same_sequence(name: str) -> None:
    mixer, width = mixer_of(name)
    x = random_input(width)
    state = mixer.empty_state(1, LENGTH + 2, x.device, x.dtype)
    _, state = mixer.prefill(x[:1], state)
    batch = repeated(state, BATCH)
    assert held_bytes(batch) == BATCH * held_bytes(state)
    alone = [mixer.step(row[None], copy.deepcopy(state))[0] for row in x[:, 0]]
    together, _ = mixer.step(x[:, 0], batch)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_inference_comes_before_training_without_harm(name: str) -> None:
    """What a mixer keeps for itself in inference mode must not break a later backward."""
    mixer, width = mixer_of(name)
    x = random_input(width, length=40)
    with torch.inference_mode():
        mixer(x)
        mixer.step(x[:, 0], mixer.empty_state(BATCH, 300, x.device, x.dtype))
    mixer(x.requires_grad_()).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_stays_near(name: str, dtype: torch.dtype) -> None:
    mixer, width = mixer_of(name)
    x = random_input(width)
    expected = mixer(x)
    half = copy.deepcopy(mixer).to(dtype)
    actual = decode(half, x.to(dtype), (9,))[0]
    assert actual.dtype == dtype
    difference = (actual.double() - expected).norm() / expected.norm()
    assert difference < 0.03


@pytest.mark.parametrize("name", NAMES)
def test_training_under_autocast_reaches_every_parameter(name: str) -> None:
    mixer, width = mixer_of(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mixer(random_input(width, torch.float32, LONG)).float().square().sum()
    loss.backward()
    for label, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label


def test_forget_gates_start_open() -> None:
    mixer, width = mixer_of("lstm")
    assert isinstance(mixer.rnn, nn.LSTM)
    biases = mixer.rnn.all_weights[0][2] + mixer.rnn.all_weights[0][3]
    assert biases.tolist() == [0.0] * width + [1.0] * width + [0.0] * 2 * width


def test_heads_must_divide_the_width_evenly() -> None:
    with pytest.raises(ValueError, match="multiple of 24, not 32"):
        Attention(32, Options(heads=12))
    with pytest.raises(ValueError, match="heads must be at least 1"):
        plugins.build_options(registry.load("architectures", "transformer").options, {"heads": 0})
