"""The shell around the mixers: its three forms agree, its numbers follow from the seed alone, and
it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from workloads import registry, sizing
from workloads.ends import next_token
from workloads.mixer import held_bytes
from workloads.model import (
    Backbone,
    ModelShape,
    build,
    dtype_of,
    non_embedding_parameters,
    total_parameters,
)

NAMES = registry.names("architectures")
BATCH, LENGTH, VOCABULARY = 2, 13, 11


def _shape(name: str) -> ModelShape:
    architecture = registry.load("architectures", name)
    return ModelShape(
        architecture=name,
        ends=next_token(VOCABULARY),
        d_model=math.lcm(32, architecture.width_multiple(architecture.options())),
        num_layers=2,
        mlp_width=48 if architecture.residual else 0,
    )


def _model(name: str, dtype: torch.dtype = torch.float64) -> Backbone:
    return build(_shape(name), seed=5, device="cpu", dtype=dtype)


def _tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", [(1,), (6,), (4, 5), (LENGTH,)], ids=str)
@torch.no_grad()
def test_prefill_then_steps_give_the_parallel_logits(name: str, split: tuple[int, ...]) -> None:
    model, tokens = _model(name), _tokens()
    expected = model(tokens)
    state, end = model.empty_state(BATCH, LENGTH), 0
    for chunk in split:
        logits, state = model.prefill(tokens[:, end : end + chunk], state)
        end += chunk
        torch.testing.assert_close(logits, expected[:, end - 1], rtol=0, atol=1e-10)
    for position in range(end, LENGTH):
        logits, state = model.step(tokens[:, position], state)
        torch.testing.assert_close(logits, expected[:, position], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_do_not_see_later_tokens(name: str) -> None:
    model, tokens = _model(name), _tokens()
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-12)
    assert (after[:, 7] - before[:, 7]).abs().max() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_the_numbers(name: str) -> None:
    untouched = torch.get_rng_state()
    one, two = _model(name), _model(name, torch.float32)
    assert torch.equal(torch.get_rng_state(), untouched)
    other = build(_shape(name), seed=6, device="cpu", dtype=torch.float64)
    for (label, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b.double()), label
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model, tokens = _model(name), _tokens(100)  # longer than any chunk or window of a default
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    torch.autograd.backward(loss)
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_near_chance_and_learns_a_repeated_text(name: str) -> None:
    model = _model(name, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    tokens = torch.arange(VOCABULARY).repeat(3)[None]
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.1)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_exactly(name: str) -> None:
    model, shape = _model(name), _shape(name)
    assert sizing.total_parameters(shape) == total_parameters(model)
    assert sizing.parameters(shape) == non_embedding_parameters(model)
    embedding_and_head = 2 * VOCABULARY * shape.d_model
    assert total_parameters(model) - non_embedding_parameters(model) == embedding_and_head


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_state_follows_the_model_and_holds_what_is_declared(name: str) -> None:
    model, tokens = _model(name, torch.bfloat16), _tokens()
    logits, state = model.prefill(tokens, model.empty_state(BATCH, LENGTH))
    assert logits.dtype == torch.bfloat16
    assert held_bytes(state) == BATCH * sizing.state_bytes(_shape(name), LENGTH, 2)


def test_flops_are_those_of_torchs_counter_where_every_product_is_a_product() -> None:
    shape = _shape("none")
    with FlopCounterMode(display=False) as counter:
        _model("none")(_tokens())
    assert counter.get_total_flops() == BATCH * LENGTH * sizing.flops_per_token(shape, LENGTH)


def test_attentions_parallel_form_multiplies_the_whole_square() -> None:
    """torch's counter sees T^2 products of q and k where half lie behind the causal mask."""
    shape = _shape("transformer")
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        _model("transformer")(_tokens())
    masked = shape.num_layers * 2 * shape.d_model * (LENGTH - 1)
    declared = sizing.flops_per_token(shape, LENGTH)
    assert counter.get_total_flops() == BATCH * LENGTH * (declared + masked)


def test_what_writes_to_the_residual_stream_starts_smaller() -> None:
    shape = ModelShape(
        architecture="transformer", ends=next_token(64), d_model=128, num_layers=8, mlp_width=512
    )
    model = build(shape, seed=0, device="cpu")
    deviations = {
        name: parameter.std().item()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
    }
    for name, deviation in deviations.items():
        scaled = name.endswith(("mixer.out.weight", "mlp.down.weight"))
        assert deviation == pytest.approx(0.02 / 4 if scaled else 0.02, rel=0.05), name


def test_the_shell_alone_has_no_mixer_and_no_norm_for_one() -> None:
    model = _model("none")
    norms = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == 2 + 1
    assert held_bytes(model.empty_state(4, 100)) == 0


def test_precisions_are_names_of_dtypes() -> None:
    assert dtype_of("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="Did you mean 'float32'"):
        dtype_of("float23")
