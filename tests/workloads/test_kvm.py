"""Laws of key-value means: what a state may and may not do, whatever the weights.

Sizes are small and chunks of four tokens, so that 37 tokens fill, grow and merge a
state many times.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from workloads import plugins
from workloads.architectures.kvm import ARCHITECTURE, Kvm, Options
from workloads.mixer import held_bytes, state_tensors
from workloads.ops import kvm

BATCH, LENGTH, WIDTH = 2, 37, 32
SMALL = {"heads": 2, "chunk": 4}
VARIANTS: list[dict[str, object]] = [
    {},
    {"state": "sqrt"},
    {"state": "saturating"},
    {"state": "all"},
    {"state": "sqrt", "factor": 3.0, "round": 3, "max_rows": 14, "state_min": 6},
    {"sink": 0},
    {"value_radius": False, "state": "sqrt"},
    {"merge_gate": False},
    {"temperatures": False},
    {"append_gate": True, "state": "sqrt"},
    {"token_shift": True},
    {"window": 1, "rotary": 4},
    {"window": 3, "state": "saturating", "limit": 30},
]


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> Kvm:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        mixer = Kvm(WIDTH, plugins.build_options(Options, {**SMALL, **options}))
        mixer.initialise(1.0)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer.to(dtype)


def _input(length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(BATCH, length, WIDTH, dtype=torch.float64, generator=generator).to(dtype)


def _decoded(mixer: Kvm, x: Tensor, split: tuple[int, ...]) -> tuple[Tensor, kvm.Cache]:
    state = mixer.empty_state(x.shape[0], x.shape[1], x.device, x.dtype)
    outputs, at = [], 0
    for length in split:
        output, state = mixer.prefill(x[:, at : at + length], state)
        outputs.append(output)
        at += length
    for token in x[:, at:].unbind(1):
        output, state = mixer.step(token, state)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def _states(mixer: Kvm, x: Tensor) -> tuple[kvm.Memory, Tensor, Tensor, Tensor]:
    """The states of all whole chunks of x, and the memory keys, values and weights that went in."""
    _, k, v, gate = mixer._tokens(x, None)
    covered = x.shape[1] // mixer.options.chunk * mixer.options.chunk
    k, v = k[:, :, :covered], v[:, :, :covered]
    gate = torch.ones_like(k[..., 0]) if gate is None else gate[:, :, :covered]
    memory = kvm.remember(k, v, gate, method=mixer.method, learned=mixer.learned)
    return memory, kvm.memory_keys(k, mixer.method, mixer.learned), v, gate


def _softmax(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    logits = (q @ keys.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return logits.softmax(-1) @ values


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_every_form_and_split_is_the_formula(options: dict[str, object]) -> None:
    mixer, x = _mixer(**options), _input()
    mixed, _ = kvm.attend_reference(
        *mixer._tokens(x, None), method=mixer.method, learned=mixer.learned
    )
    expected = mixer.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-10)
    for split in [(), (LENGTH,), (7, 9, 3, 1, 10, 5), (20, 4, 4, 8), (5, 30), (12, 12, 12)]:
        actual, _ = _decoded(mixer, x, split)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_any_length_and_the_future_is_unseen(options: dict[str, object]) -> None:
    mixer, x = _mixer(**options), _input()
    whole = mixer(x)
    for length in (1, 2, 4, 5, 8, 9, 12, 13, 25):
        torch.testing.assert_close(mixer(x[:, :length]), whole[:, :length], rtol=0, atol=1e-12)


@torch.no_grad()
def test_within_the_window_it_is_causal_attention() -> None:
    mixer, x = _mixer(), _input(8)
    assert mixer.window_temperature is not None
    q, k, v, _ = mixer._tokens(x, None)
    seen = torch.ones(8, 8, dtype=torch.bool).tril()
    mixed = _softmax(q, k * mixer.window_temperature[:, None, None], v, seen)
    expected = mixer.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_row_for_every_token_is_dense_attention_to_rows_and_window() -> None:
    """Not ordinary attention: what has left the window has no position and is normalised twice."""
    mixer, x = _mixer(state="all"), _input()
    assert mixer.window_temperature is not None and mixer.state_temperature is not None
    q, k, v, _ = mixer._tokens(x, None)
    rows = mixer.norm_state(kvm.memory_keys(k, mixer.method, mixer.learned))
    at = torch.arange(LENGTH)
    begin = ((at // 4 + 1) * 4 - 8).clamp_min(0)[:, None]
    near = (at >= begin) & (at <= at[:, None])
    keys = torch.cat(
        (
            rows * mixer.state_temperature[:, None, None],
            k * mixer.window_temperature[:, None, None],
        ),
        2,
    )
    mixed = _softmax(q, keys, torch.cat((v, v), 2), torch.cat((at < begin, near), 1))
    expected = mixer.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_rows_follow_the_law(options: dict[str, object]) -> None:
    growth = plugins.build_options(Options, {**SMALL, **options}).growth
    rows = [growth.rows(chunks * 4) for chunks in range(200)]
    assert rows[:2] == [0, 4]
    for chunks, (before, after) in enumerate(pairwise(rows[1:]), 2):
        assert before <= after <= min(before + 4, chunks * 4)
        assert not growth.maximum or after <= max(growth.maximum, 4)
    if growth.law == "fixed":
        assert set(rows[1:]) == {4}
    if options == {"state": "sqrt"}:
        assert rows[-1] == int(2 * (199 * 4 + 4) ** 0.5)
    if options.get("state") == "all":
        assert rows == list(range(0, 800, 4))


CONTEXTS = (256, 512, 1024, 2048, 4096)


def _slope(rows: list[int]) -> float:
    """Least squares of log rows over log context."""
    x, y = ([math.log(n) for n in numbers] for numbers in (CONTEXTS, rows))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


@pytest.mark.parametrize(
    ("state", "least", "most"), [("sqrt", 0.45, 0.55), ("all", 0.95, 1.05), ("fixed", 0.0, 0.0)]
)
@torch.no_grad()
def test_rows_grow_with_the_context_by_the_exponent_of_the_law(
    state: str, least: float, most: float
) -> None:
    """Of the default options, the window aside; and a state that is filled has as many."""
    options = Options(state=state)
    growth = options.growth
    rows = [growth.rows(growth.covered(length)) for length in CONTEXTS]
    assert least <= _slope(rows) <= most
    if state == "all":  # a row for every token that has left the window
        assert rows == [length - growth.span for length in CONTEXTS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        mixer = Kvm(WIDTH, options)
        mixer.initialise(1.0)
    for length in (256, 1024):
        x = _input(length, torch.float32)[:1]
        _, held = mixer.prefill(x, mixer.empty_state(1, max(CONTEXTS), x.device, x.dtype))
        filled = held.row_scales.ne(0).sum(-1)
        assert (filled == rows[CONTEXTS.index(length)]).all()
        _, held = mixer.prefill(x, mixer.empty_state(1, length, x.device, x.dtype))
        assert held.row_keys.shape[2] == rows[CONTEXTS.index(length)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_sinks_stay_and_rows_keep_the_length_they_began_with(options: dict[str, object]) -> None:
    mixer = _mixer(**options)
    memory, _, _, _ = _states(mixer, _input())
    sink = mixer.options.sink
    for held in (memory.keys, memory.values):
        first = held[:, :, :1, :sink].expand_as(held[:, :, :, :sink])
        torch.testing.assert_close(held[:, :, :, :sink], first, rtol=0, atol=0)
    if mixer.options.value_radius:
        for i in range(1, memory.scales.shape[2]):
            rows = slice(0, memory.rows[i - 1])
            before, after = memory.scales[:, :, i - 1, rows], memory.scales[:, :, i, rows]
            torch.testing.assert_close(after, before, rtol=0, atol=0)
        _, values = kvm.read(memory.keys, memory.values, memory.scales, mixer.method, mixer.learned)
        torch.testing.assert_close(values.norm(dim=-1), memory.scales, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_what_enters_a_state_is_conserved(options: dict[str, object]) -> None:
    mixer = _mixer(**options)
    memory, keys, values, gate = _states(mixer, _input())
    makes = memory.makes.flatten(2)
    weights = gate if mixer.options.append_gate else gate.masked_fill(makes, 1.0)
    weights = torch.cat((torch.ones_like(weights[..., :4]), weights[..., 4:]), -1)[..., None]
    last = (memory.keys[:, :, -1], memory.values[:, :, -1])
    for held, tokens in zip(last, (keys, values), strict=True):
        expected = (weights * tokens).sum(2)
        torch.testing.assert_close(held.sum(2), expected, rtol=0, atol=1e-10)
    if not mixer.options.value_radius:
        assert (memory.scales[:, :, -1].sum(-1) == keys.shape[2]).all()


@torch.no_grad()
def test_rows_have_no_order_and_values_no_scale() -> None:
    mixer, x = _mixer(state="sqrt"), _input()
    state = mixer.empty_state(BATCH, LENGTH, x.device, x.dtype)
    _, state = mixer.prefill(x[:, :30], state)
    rows = mixer.method.growth.rows(mixer.method.growth.covered(30))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    changed = copy.deepcopy(state)
    for held in (changed.row_keys, changed.row_values, changed.row_scales):
        held[:, :, :rows] = held[:, :, order]
    changed.row_values.mul_(3)
    kvm.note_factors(changed, slice(0, rows), mixer.method)
    expected, _ = mixer.step(x[:, 30], state)
    actual, _ = mixer.step(x[:, 30], changed)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gradients_are_the_formulas(options: dict[str, object]) -> None:
    """Every parameter gets one, and it is that of the token loop: routing is a constant."""
    mixer, x = _mixer(**options), _input().requires_grad_()
    weights = torch.randn(LENGTH, WIDTH, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    wanted = [x, *mixer.parameters()]
    fast = torch.autograd.grad((mixer(x) * weights).sum(), wanted, allow_unused=True)
    mixed, _ = kvm.attend_reference(
        *mixer._tokens(x, None), method=mixer.method, learned=mixer.learned
    )
    y = mixer.out(mixed.transpose(1, 2).flatten(2))
    slow = torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True)
    names = ["x", *(name for name, _ in mixer.named_parameters())]
    for name, one, other in zip(names, fast, slow, strict=True):
        if options.get("state") == "all" and name == "gate.weight":  # nothing is ever merged
            assert one is None or not one.any()
            continue
        assert one is not None and other is not None, name
        assert one.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * other.abs().max().item())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_declared_bytes_and_parameters_are_exact(
    options: dict[str, object], dtype: torch.dtype
) -> None:
    mixer = _mixer(dtype, **options)
    for length in (1, 8, 9, 17, 50):
        output, state = _decoded(mixer, _input(length, dtype), (length - 1,) if length > 1 else ())
        declared = ARCHITECTURE.state_bytes(WIDTH, mixer.options, length, dtype.itemsize)
        assert held_bytes(state) == BATCH * declared
        assert output.dtype == dtype and output.isfinite().all()
    counted = sum(parameter.numel() for parameter in mixer.parameters())
    assert ARCHITECTURE.parameters(WIDTH, mixer.options) == counted


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_declared_flops_are_those_of_the_batched_form(options: dict[str, object]) -> None:
    mixer, x = _mixer(**options), _input(36)
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with math, FlopCounterMode(display=False) as counter:
        mixer(x)
    early = 8 if mixer.options.window == 2 else 4 * mixer.options.window
    unseen = 4 * WIDTH * early**2 - 2 * WIDTH * early * (early + 1)  # counted as if seen
    actual = counter.get_total_flops() / BATCH - unseen
    declared = 36 * ARCHITECTURE.flops_per_token(WIDTH, mixer.options, 36)
    assert actual == pytest.approx(declared, rel=1e-9)


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that is made within, views of `held` aside."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.held = {tensor.untyped_storage().data_ptr() for tensor in held}
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in state_tensors(made):
            if tensor.untyped_storage().data_ptr() not in self.held:
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize(
    "options",
    [
        {"state_min": 24},
        {"state": "sqrt"},
        {"state": "all"},
        {"state": "sqrt", "value_radius": False, "temperatures": False},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_step_within_a_chunk_neither_copies_rows_nor_changes_them(
    options: dict[str, object],
) -> None:
    """What it makes is smaller than the rows of one head of one sequence."""
    mixer, x = _mixer(**options), _input(149)
    state = mixer.empty_state(BATCH, 149, x.device, x.dtype)
    _, state = mixer.prefill(x[:, :145], state)
    rows = state.row_keys[0, 0].numel()
    for token in range(145, 149):
        before = [held.clone() for held in _held_rows(state)]
        with _Largest([*state_tensors(state), *mixer.parameters()]) as largest:
            _, state = mixer.step(x[:, token], state)
        same = [torch.equal(*pair) for pair in zip(before, _held_rows(state), strict=True)]
        if token < 148:
            assert largest.elements < rows
            assert all(same)
        else:  # which opens a chunk
            assert not all(same)


def _held_rows(state: kvm.Cache) -> tuple[Tensor, ...]:
    return (
        state.row_keys,
        state.row_values,
        state.row_scales,
        state.key_factors,
        state.value_factors,
    )


@torch.no_grad()
def test_a_state_refuses_more_tokens_than_it_was_made_for() -> None:
    mixer, x = _mixer(state="sqrt"), _input()
    with pytest.raises(ValueError, match="made for fewer than 37 tokens"):
        mixer.prefill(x, mixer.empty_state(BATCH, 12, x.device, x.dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "sqr"}, "Did you mean 'sqrt'"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"sink": 16}, "sink must be less than chunk"),
        ({"factor": -1.0}, "factor must be 0 or more"),
        ({"rotary": 3}, "in pairs"),
        ({"append_gate": True, "merge_gate": False}, "append_gate needs merge_gate"),
    ],
    ids=str,
)
def test_options_are_refused_with_a_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plugins.build_options(Options, options)  # type: ignore[arg-type]


def test_a_head_keeps_channels_without_position() -> None:
    with pytest.raises(ValueError, match="less than the head width 8, not 8"):
        Kvm(32, Options(rotary=8))
    with pytest.raises(ValueError, match="multiple of 16, not 40"):
        Kvm(40, Options())


def test_gradcheck() -> None:
    mixer = _mixer(state="sqrt")
    x = _input(18)[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mixer(x), (x,), fast_mode=True)
