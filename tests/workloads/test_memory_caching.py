"""Memory caching's own laws, over its options: what the rules become in their corners, that the
forms agree from any state, and that what is declared is what is held."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workloads import plugins, registry
from workloads.architectures import mamba2
from workloads.mixer import Mixer, held_bytes, state_tensors
from workloads.ops.gated_linear import gated_linear_attention
from workloads.ops.memory_caching.cache import MatrixCache, empty_cache
from workloads.ops.memory_caching.matrix import memory_caching, memory_caching_step
from workloads.ops.memory_caching.reference import memory_caching_reference
from workloads.ops.memory_caching.weights import RULES, Caching, weigh

BATCH, LENGTH, HEADS, DK, DV, WIDTH = 2, 21, 2, 6, 5, 32
DOUBLE = torch.float64
ARCHITECTURE = registry.load("architectures", "memory_caching")

STARTS = ("checkpoint", "independent")

MIXERS: list[dict[str, Any]] = [
    *({"rule": rule} for rule in RULES),
    {"rule": "sparse", "top_k": 1, "pool": "sum", "start": "checkpoint"},
    {"segment": 1},
    {"segment": 7, "start": "checkpoint"},
    {"decay": True},
    {"normalised": True, "rule": "soup"},
    {"segmentation": "logarithmic", "segment": 2},
    {"segmentation": "logarithmic", "segment": 3, "rule": "sparse", "pool": "sum"},
    {"output_norm": False, "gate_scale": 0.5},
    *({"base": "mamba2", "rule": rule} for rule in ("gated", "sparse", "residual")),
    {"base": "mamba2", "start": "independent"},
    *({"base": base, "start": start} for base in ("gru", "lstm") for start in STARTS),
    *(
        {"base": "lstm", "read": "gate", "rule": rule, "start": start}
        for rule in ("gated", "soup", "residual")
        for start in STARTS
    ),
    {"base": "gru", "rule": "sparse"},
    {"base": "gru", "rule": "average"},
]  # fmt: skip

MAMBA2_NAMES = {"into.weight": "inp.weight", "step_bias": "dt_bias", "log_rates": "log_a"}
"""The parameters of Mamba-2 that the cached block calls otherwise."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _options(given: dict[str, Any]) -> Any:
    return plugins.build_options(ARCHITECTURE.options, {"segment": 4, **given})


def _mixer(given: dict[str, Any], dtype: torch.dtype = DOUBLE) -> Mixer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mixer = ARCHITECTURE.mixer(WIDTH, _options(given))
        assert mixer is not None
        mixer.initialise(0.5)
        with torch.no_grad():
            for parameter in mixer.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
    return mixer.to(dtype)


def _input(dtype: torch.dtype = DOUBLE, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(BATCH, length, WIDTH, dtype=DOUBLE, generator=generator).to(dtype)


def _inputs(positive: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = (DK, DK, DV, DK)
    q, k, v, u = (
        torch.randn(BATCH, LENGTH, HEADS, n, dtype=DOUBLE, generator=generator) for n in shapes
    )
    return (F.elu(q) + 1, F.elu(k) + 1, v, u) if positive else (q, k, v, u)


def _read(caching: Caching, decay: Tensor | None = None, lengths: Any = None) -> Tensor:
    inputs = _inputs(caching.normalised)
    return memory_caching(*inputs, decay, caching, scale=1.0, lengths=lengths)[0]


def _near(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * scale)


def _ids(given: dict[str, Any]) -> str:
    return "-".join(f"{value}" for value in given.values()) or "default"


@pytest.mark.parametrize("rule", RULES)
def test_one_segment_is_the_plain_recurrence(rule: Any) -> None:
    q, k, v, _ = _inputs()
    plain, _ = gated_linear_attention(q, k, v, None, scale=1.0)
    _near(_read(Caching(rule=rule, segment=LENGTH)), plain)
    x = _input()
    for base, read in (("lstm", "hidden"), ("lstm", "gate"), ("gru", "hidden")):
        mixer = _mixer({"base": base, "read": read, "rule": rule, "segment": 64})
        recurrent: Any = mixer.get_submodule("rnn")
        _near(mixer(x), recurrent(x)[0])


def _plain_mamba2() -> mamba2.Mamba2:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        plain = mamba2.Mamba2(WIDTH, mamba2.Options(head_dim=2 * WIDTH // 4))
        plain.initialise(0.5)
    return plain


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_one_segment_of_mamba2_is_mamba2(rule: Any) -> None:
    """With the same weights; the connector, where there is one, comes after them."""
    cached, plain = (
        _mixer({"base": "mamba2", "rule": rule, "segment": 64}),
        _plain_mamba2().double(),
    )
    weights = dict(cached.named_parameters())
    for name, parameter in plain.named_parameters():
        parameter.copy_(weights[MAMBA2_NAMES.get(name, name)][: len(parameter)])
    x = _input()
    _near(cached(x), plain(x))
    _near(cached(1e-4 * x), plain(1e-4 * x))  # where the norm's epsilon tells


def test_the_cached_mamba2_starts_as_mamba2() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        cached = ARCHITECTURE.mixer(WIDTH, _options({"base": "mamba2", "rule": "residual"}))
        assert cached is not None
        cached.initialise(0.5)
    weights = dict(cached.named_parameters())
    for name, parameter in _plain_mamba2().named_parameters():
        torch.testing.assert_close(weights[MAMBA2_NAMES.get(name, name)], parameter, rtol=0, atol=0)


def test_rules_become_one_another_in_their_corners() -> None:
    q, k, v, _ = _inputs()
    plain, _ = gated_linear_attention(q, k, v, None, scale=1.0)
    _near(_read(Caching(rule="residual", segment=4)), plain)
    gated = _read(Caching(segment=4))
    _near(_read(Caching(rule="soup", segment=4)), gated)
    _near(_read(Caching(rule="sparse", top_k=5, segment=4)), gated)
    assert (_read(Caching(rule="sparse", top_k=1, segment=4)) - gated).abs().max() > 1e-2
    _near(_read(Caching(gate_scale=1e-300, segment=4)), _read(Caching(rule="average", segment=4)))


def test_segments_of_one_token_are_softmax_attention_over_keys() -> None:
    q, k, v, u = (x.transpose(1, 2) for x in _inputs())
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    gates = (u @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)
    expected = ((gates * (q @ k.mT)) @ v).transpose(1, 2)
    _near(_read(Caching(segment=1)), expected)


@pytest.mark.parametrize("start", ["independent", "checkpoint"])
def test_gated_reads_are_a_masked_product(start: Any) -> None:
    caching = Caching(segment=4, start=start)
    inputs = _inputs()
    _, gates = memory_caching_reference(*inputs, None, caching, scale=1.0)
    q, k, v, _ = (x.transpose(1, 2) for x in inputs)
    gamma = torch.zeros(BATCH, HEADS, LENGTH, 6, dtype=DOUBLE)
    for t, weights in enumerate(gates):
        gamma[:, :, t, : len(weights)] = torch.stack(weights, -1)
    assert (gamma >= 0).all()
    _near(gamma.sum(-1), torch.ones_like(gamma[..., 0]))
    _near(gamma[:, :, :4, 0], torch.ones_like(gamma[:, :, :4, 0]))
    if start == "checkpoint":
        gamma = gamma.flip(-1).cumsum(-1).flip(-1)
    factors = gamma[..., torch.arange(LENGTH) // 4]
    _near(_read(caching), (((q @ k.mT) * factors).tril() @ v).transpose(1, 2))


@pytest.mark.parametrize("start", ["independent", "checkpoint"])
@pytest.mark.parametrize("rule", RULES)
def test_every_form_is_the_formula(rule: Any, start: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    decay = F.logsigmoid(torch.randn(BATCH, LENGTH, HEADS, dtype=DOUBLE, generator=generator) + 1)
    made: list[dict[str, Any]] = [
        {"segment": 3}, {"segment": 8, "pool": "sum"}, {"segment": 4, "normalised": True},
    ]  # fmt: skip
    if start == "independent":
        made += [{"segment": 2, "logarithmic": True}]
        made += [{"segment": 1, "logarithmic": True, "normalised": True, "pool": "sum"}]
    for switches in made:
        caching = Caching(rule=rule, start=start, gate_scale=0.7, **switches)
        decays = None if caching.normalised or caching.logarithmic else decay
        inputs = (*_inputs(caching.normalised), decays)
        expected, _ = memory_caching_reference(*inputs, caching, scale=0.5)
        _near(memory_caching(*inputs, caching, scale=0.5)[0], expected)
        for chunks in ((), (5,), (8, 1, 9)):
            _near(_in_parts(inputs, caching, chunks), expected)


def _in_parts(inputs: Any, caching: Caching, chunks: tuple[int, ...]) -> Tensor:
    cpu = torch.device("cpu")
    state = empty_cache(caching, BATCH, HEADS, HEADS, (DK, DV), LENGTH, cpu, DOUBLE)
    position = 0
    outputs: list[Tensor] = []
    for chunk in chunks:
        part: list[Any] = [
            *(x if x is None else x[:, position : position + chunk] for x in inputs),
            caching,
        ]
        output, after = memory_caching(*part, scale=0.5, cache=state)
        assert isinstance(after, MatrixCache)
        outputs, position, state = [*outputs, output], position + chunk, after
    for t in range(position, LENGTH):
        token: list[Any] = [*(x if x is None else x[:, t] for x in inputs), caching]
        output, state = memory_caching_step(*token, scale=0.5, cache=state)
        outputs.append(output[:, None])
    assert state.length == LENGTH
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("rule", RULES)
def test_uneven_segments_are_the_formula(rule: Any) -> None:
    for start, normalised in itertools.product(("independent", "checkpoint"), (False, True)):
        caching = Caching(rule=rule, start=start, normalised=normalised)  # type: ignore[arg-type]
        lengths = [9, 1, 7, 4]
        expected, _ = memory_caching_reference(
            *_inputs(normalised), None, caching, scale=1.0, lengths=lengths
        )
        _near(_read(caching, lengths=lengths), expected)
    with pytest.raises(ValueError, match="sum to the 21 tokens"):
        _read(Caching(), lengths=[9, 9])


def test_starts_differ_from_the_second_segment_on() -> None:
    one, other = (_read(Caching(segment=8, start=s)) for s in ("independent", "checkpoint"))
    _near(one[:, :8], other[:, :8])
    assert (one[:, 8:] - other[:, 8:]).abs().amin(1).max() > 0
    assert (one[:, 8] - other[:, 8]).abs().max() > 1e-2


def test_weights_never_divide_by_nothing() -> None:
    visible = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    logits, scales = torch.zeros(2, 2), torch.zeros(2, 2)
    for rule in RULES:
        cached, online = weigh(
            Caching(rule=rule), visible, logits, logits[:, :1], scales, scales[:, :1]
        )
        assert cached.isfinite().all() and online.isfinite().all()


@pytest.mark.parametrize("given", MIXERS, ids=_ids)
@torch.no_grad()
def test_the_three_forms_agree_and_see_nothing_later(given: dict[str, Any]) -> None:
    mixer, x = _mixer(given), _input()
    expected = mixer(x)
    for chunks in ((), (1, 7, 4), (6, 9), (LENGTH,)):
        state = mixer.empty_state(BATCH, LENGTH, x.device, x.dtype)
        position = 0
        outputs: list[Tensor] = []
        for chunk in chunks:
            output, state = mixer.prefill(x[:, position : position + chunk], state)
            outputs, position = [*outputs, output], position + chunk
        for token in x[:, position:].unbind(1):
            output, state = mixer.step(token, state)
            outputs.append(output[:, None])
        _near(torch.cat(outputs, 1), expected)
    for position in (0, 5, LENGTH - 1):
        changed = x.clone()
        changed[:, position] += 1
        torch.testing.assert_close(
            mixer(changed)[:, :position], expected[:, :position], rtol=0, atol=1e-12
        )
        assert (mixer(changed)[:, position] - expected[:, position]).abs().max() > 1e-4


@pytest.mark.parametrize("given", MIXERS, ids=_ids)
def test_gradients_reach_every_parameter_and_earlier_segments(given: dict[str, Any]) -> None:
    mixer, x = _mixer(given), _input().requires_grad_()
    (mixer(x)[:, -1] * torch.randn(WIDTH, dtype=DOUBLE)).sum().backward()
    assert x.grad is not None
    if given.get("rule") != "sparse":
        assert x.grad.abs().amax((0, 2)).min() > 0
    for label, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label
    if given.get("rule", "gated") in ("gated", "soup", "sparse"):
        _connector_gets_a_gradient(mixer)


def _connector_gets_a_gradient(mixer: Mixer) -> None:
    weights = dict(mixer.named_parameters())
    name = next(n for n in ("qkvu.weight", "gate.weight", "inp.weight") if n in weights)
    gradient = weights[name].grad
    assert gradient is not None and gradient[-WIDTH:].abs().max() > 0


@pytest.mark.parametrize("start", ["independent", "checkpoint"])
@pytest.mark.parametrize("rule", ["gated", "soup", "sparse"])
def test_numeric_gradients(rule: Any, start: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    leaves = [
        torch.rand(1, 7, 2, n, dtype=DOUBLE, generator=generator).requires_grad_()
        for n in (2, 2, 3, 2)
    ]
    decay = (-torch.rand(1, 7, 2, dtype=DOUBLE, generator=generator)).requires_grad_()
    for switches in ({}, {"normalised": True}, {"logarithmic": start == "independent"}):
        caching = Caching(rule=rule, start=start, segment=2, **switches)

        def read(*given: Tensor, caching: Caching = caching) -> Tensor:
            q, k, v, u, g = given
            decays = None if caching.logarithmic else g
            return memory_caching(q, k, v, u, decays, caching, scale=1.0)[0]

        assert torch.autograd.gradcheck(read, (*leaves, decay), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", MIXERS, ids=_ids)
@torch.inference_mode()
def test_what_is_declared_is_what_is_held(given: dict[str, Any], dtype: torch.dtype) -> None:
    mixer, options = _mixer(given, dtype), _options(given)
    assert sum(p.numel() for p in mixer.parameters()) == ARCHITECTURE.parameters(WIDTH, options)
    for length in (1, 3, 4, 17, 32):
        state = mixer.empty_state(BATCH, length, torch.device("cpu"), dtype)
        output, state = mixer.prefill(_input(dtype, length), state)
        assert output.dtype == dtype
        declared = ARCHITECTURE.state_bytes(WIDTH, options, length, dtype.itemsize)
        assert held_bytes(state) == BATCH * declared, length
        assert all(tensor.shape[0] == BATCH for tensor in state_tensors(state))


@pytest.mark.parametrize("given", MIXERS, ids=_ids)
@torch.no_grad()
def test_declared_flops_cover_both_forms(given: dict[str, Any]) -> None:
    """The steps' products always; the parallel form's nearly, where segments are not ragged."""
    mixer, length = _mixer(given), 16 - 16 % _options(given).segment
    x = _input(length=length)
    declared = ARCHITECTURE.flops_per_token(WIDTH, _options(given), length)
    with FlopCounterMode(display=False) as steps:
        state = mixer.empty_state(BATCH, length, x.device, x.dtype)
        for token in x.unbind(1):
            _, state = mixer.step(token, state)
    assert 0 < steps.get_total_flops() / (BATCH * length) <= declared
    with FlopCounterMode(display=False) as parallel:
        mixer(x)
    if _options(given).base in ("linear", "mamba2"):
        assert parallel.get_total_flops() / (BATCH * length) == pytest.approx(declared, rel=0.1)


@pytest.mark.parametrize("given", MIXERS, ids=_ids)
def test_a_dry_build_and_autocast_run(given: dict[str, Any]) -> None:
    with torch.device("meta"):
        mixer = ARCHITECTURE.mixer(WIDTH, _options(given))
        assert mixer is not None
        assert mixer(torch.empty(1, 8, WIDTH)).shape == (1, 8, WIDTH)
    real = _mixer(given, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = real(_input(torch.float32)).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in real.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "gate"}, "unknown rule 'gate'. Did you mean 'gated'"),
        ({"segment": 0}, "segment must be at least 1"),
        ({"gate_scale": -1.0}, "gate_scale must be above 0"),
        ({"base": "gru", "decay": True}, "options of base linear, not gru"),
        ({"base": "gru", "read": "gate"}, "needs the output gate"),
        ({"segmentation": "logarithmic", "start": "checkpoint"}, "merges memories by adding"),
        ({"segmentation": "logarithmic", "decay": True}, "merges memories by adding"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ARCHITECTURE.options(**given)
    assert dataclasses.is_dataclass(ARCHITECTURE.options)
