"""The attention family against the formula written out, at the window's and blocks' edges."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.workloads.decoding import decode
from workloads import plugins, registry
from workloads.mixer import Mixer, held_bytes
from workloads.ops.attention import alibi_slopes, attend, attend_as_matrix
from workloads.ops.windowed_attention import attend_in_window, keys_per_query
from workloads.plugins import Unsupported

CPU = torch.device("cpu")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("transformer", {"kv_heads": kv_heads, "position": position, "attention": form})
        for kv_heads in (0, 1, 2)
        for position in ("rope", "alibi", "nope")
        for form in ("fused", "materialised")
    ),
    *(
        ("sliding_window", {"kv_heads": kv_heads, "position": position, "window": window})
        for kv_heads, position in ((0, "rope"), (2, "nope"), (1, "rope"))
        for window in (1, 5, 16, 24)
    ),
]
variants = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{name}-{options}" for name, options in VARIANTS]
)


def _mixer(name: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Mixer:
    architecture = registry.load("architectures", name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        mixer = architecture.mixer(32, plugins.build_options(architecture.options, options))
        assert mixer is not None
        mixer.initialise(0.5)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.mul_(20)
    return mixer.to(dtype)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _heads(
    batch: int, queries: int, keys: int, heads: int, kv_heads: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in the layout (B, T, H, D)."""
    kv = (batch, keys, kv_heads, width)
    return _normal(batch, queries, heads, width), _normal(*kv, seed=1), _normal(*kv, seed=2)


def _written_out(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None = None, window: int | None = None
) -> Tensor:
    """One query after another, in the layout (B, T, H, D)."""
    before, groups = k.shape[1] - q.shape[1], q.shape[2] // k.shape[2]
    output = torch.empty_like(q)
    for t, head in itertools.product(range(q.shape[1]), range(q.shape[2])):
        now = before + t
        first = 0 if window is None else max(0, now - window + 1)
        keys, values = (x[:, first : now + 1, head // groups] for x in (k, v))
        scores = torch.einsum("bd,bsd->bs", q[:, t, head], keys) * q.shape[-1] ** -0.5
        if slopes is not None:
            scores = scores + slopes[head] * (torch.arange(first, now + 1) - now)
        output[:, t, head] = torch.einsum("bs,bsd->bd", scores.softmax(-1), values)
    return output


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (19, 19), (1, 9), (13, 19)])
def test_attention_is_the_formula(queries: int, keys: int, biased: bool, kv_heads: int) -> None:
    q, k, v = _heads(2, queries, keys, 6, kv_heads, 8)
    slopes = alibi_slopes(6, CPU, q.dtype) if biased else None
    expected = _written_out(q, k, v, slopes=slopes)
    for form in (attend, attend_as_matrix):
        torch.testing.assert_close(form(q, k, v, slopes=slopes), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("biased", [False, True])
def test_a_continued_context_may_be_longer_than_a_block_of_masks(biased: bool) -> None:
    q, k, v = _heads(1, 600, 603, 2, 1, 4)
    slopes = alibi_slopes(2, CPU, q.dtype) if biased else None
    torch.testing.assert_close(
        attend(q, k, v, slopes=slopes), attend_as_matrix(q, k, v, slopes=slopes)
    )


@pytest.mark.parametrize("past", [0, 1, 40])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 60, 73])
@pytest.mark.parametrize("window", [1, 2, 15, 16, 20, 33, 100])
def test_windowed_attention_is_the_formula(window: int, length: int, past: int) -> None:
    past = min(past, window - 1)
    q, k, v = _heads(2, length, past + length, 4, 2, 4)
    actual = attend_in_window(q, k[:, past:], v[:, past:], k[:, :past], v[:, :past], window=window)
    seen = torch.arange(past, past + length)[:, None] - torch.arange(past + length)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) / 2
    outside = (seen < 0) | (seen >= window)
    weights = scores.masked_fill(outside, -torch.inf).softmax(-1)
    expected = torch.einsum("bhij,bjhd->bihd", weights, v.repeat_interleave(2, 2))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 16, 128])
@pytest.mark.parametrize("length", [1, 16, 17, 128, 300])
def test_a_window_never_costs_less_than_what_it_sees(length: int, window: int) -> None:
    needed = sum(min(t + 1, window) for t in range(length)) / length
    assert needed <= keys_per_query(length, window) <= length + max(window, 16)


def test_long_windowed_contexts_cost_the_same_for_a_token() -> None:
    assert keys_per_query(1 << 20, 128) == pytest.approx(256, rel=1e-3)


def test_a_device_without_a_fused_kernel_is_unsupported() -> None:
    q, k, v = _heads(1, 8, 8, 2, 2, 16)
    with (
        sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
        pytest.raises(Unsupported, match=r"heads of width 16 in torch.float64 on cpu"),
    ):
        attend(q, k, v)


def test_slopes_are_those_of_the_paper() -> None:
    eight = alibi_slopes(8, CPU, torch.float32)
    assert eight.tolist() == [2.0**-i for i in range(1, 9)]
    sixteen = alibi_slopes(16, CPU, torch.float64)
    twelve = torch.cat((eight.double(), sixteen[:8:2]))
    torch.testing.assert_close(alibi_slopes(12, CPU, torch.float64), twelve)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("heads", [4, 6])
def test_biases_without_a_mask_keep_their_precision(
    heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Far into the context, where a position has more digits than bfloat16 holds."""
    q, k, v = (x.to(dtype) for x in _heads(1, 1500, 1500, heads, heads, 32))
    actual = attend(q, k, v, slopes=alibi_slopes(heads, CPU, dtype))
    exact = alibi_slopes(heads, CPU, torch.float64)
    expected = attend_as_matrix(q.double(), k.double(), v.double(), slopes=exact)
    assert (actual - expected).norm() < tolerance * expected.norm()


@variants
@pytest.mark.parametrize("chunks", [(), (1, 30), (7, 1, 24), (40,), (16, 17), (70,)], ids=str)
@torch.no_grad()
def test_prefill_of_any_split_then_steps_equal_the_parallel_form(
    name: str, options: dict[str, Any], chunks: tuple[int, ...]
) -> None:
    mixer, x = _mixer(name, options), _normal(2, 70, 32)
    expected = mixer(x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(decode(mixer, x, chunks)[0], expected, rtol=0, atol=1e-10 * scale)


@variants
@pytest.mark.parametrize("length", [1, 16, 70])
@torch.inference_mode()
def test_declared_costs_are_the_real_ones(name: str, options: dict[str, Any], length: int) -> None:
    architecture = registry.load("architectures", name)
    chosen = plugins.build_options(architecture.options, options)
    mixer = _mixer(name, options, torch.float32)
    assert architecture.parameters(32, chosen) == sum(p.numel() for p in mixer.parameters())
    x = _normal(3, length, 32).float()
    _, state = mixer.prefill(x, mixer.empty_state(3, length, CPU, x.dtype))
    assert held_bytes(state) == 3 * architecture.state_bytes(32, chosen, length, 4)


@variants
def test_gradients_agree_with_finite_differences(name: str, options: dict[str, Any]) -> None:
    mixer, x = _mixer(name, options), _normal(1, 35, 32)
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(mixer, (x,), fast_mode=True)
    mixer(x).square().sum().backward()
    for parameter in mixer.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@variants
def test_half_precision_and_autocast_stay_near(name: str, options: dict[str, Any]) -> None:
    mixer, x = _mixer(name, options, torch.float32), _normal(2, 70, 32).float()
    expected = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mixer(x)
    half = mixer.to(torch.bfloat16)(x.bfloat16())
    for actual in (cast.float(), half.float()):
        assert (actual - expected).norm() < 0.05 * expected.norm()


def test_a_windowed_state_is_bounded_by_the_window() -> None:
    architecture = registry.load("architectures", "sliding_window")
    options = architecture.options(window=32)
    held = [architecture.state_bytes(64, options, n, 4) for n in (8, 32, 33, 100_000)]
    assert held == [8 * 512, 32 * 512, 32 * 512, 32 * 512]


def test_a_ring_made_for_fewer_tokens_than_the_window_refuses_more() -> None:
    mixer, x = _mixer("sliding_window", {"window": 9}), _normal(1, 5, 32)
    _, state = mixer.prefill(x, mixer.empty_state(1, 5, CPU, x.dtype))
    with pytest.raises(IndexError, match="6 tokens in a state made for 5"):
        mixer.step(x[:, 0], state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer", {"kv_heads": 3}, r"kv_heads must divide heads \(4\)"),
        ("transformer", {"position": "rop"}, "Did you mean 'rope'?"),
        ("transformer", {"attention": "materialized"}, "Did you mean 'materialised'?"),
        ("sliding_window", {"position": "alibi"}, "Known: rope, nope"),
        ("sliding_window", {"window": 0}, "window must be at least 1"),
        ("sliding_window", {"heads": 0}, "heads must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plugins.build_options(registry.load("architectures", name).options, options)
