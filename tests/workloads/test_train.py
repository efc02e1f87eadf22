"""The recipe is the same for every architecture and length, and repeats bit for bit."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.workloads.tiny_cells import train_cell
from workloads import registry, run
from workloads.cell import Cell
from workloads.check import check
from workloads.events import Event, Facts
from workloads.measurement import Measurement
from workloads.model import Backbone, build
from workloads.objectives import IGNORED
from workloads.tasks.data import TaskData
from workloads.train import (
    Diverged,
    LossCurve,
    accumulate,
    adamw,
    next_token_losses,
    schedule_of,
    train,
)

CPU = torch.device("cpu")
Returned = TypeVar("Returned")


def made_data(length: int = 5000) -> TaskData:
    """Words in a fixed order with random gaps: something to learn, and nothing to download."""
    generator = np.random.default_rng(0)
    alphabet = np.frombuffer(b"context length decides. ", dtype=np.uint8)
    tokens = alphabet[(np.arange(length) + generator.integers(0, 2, length)) % len(alphabet)]
    none = np.zeros(1, dtype=np.int64)
    return TaskData(
        train=tokens,
        validation=tokens[:600],
        train_documents=none,
        validation_documents=none,
        token_bytes=np.ones(256, dtype=np.int32),
        facts={},
    )


DATA = made_data()


def model_of(cell: Cell) -> Backbone:
    return build(check(cell).shape, seed=cell.replicate, device=CPU)


def finished(
    generator: Generator[Event, None, Returned],
) -> tuple[list[Event], Returned]:
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as stop:
            return events, stop.value


def curve_of(cell: Cell, model: Backbone | None = None) -> Measurement:
    events, _ = finished(train(cell, model or model_of(cell), DATA, CPU))
    return next(e for e in reversed(events) if isinstance(e, Measurement))


def seen_tokens(cell: Cell) -> list[Tensor]:
    model, seen = model_of(cell), []
    model.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    curve_of(cell, model)
    return seen


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_the_same_seed_gives_the_same_losses_bit_for_bit(architecture: str) -> None:
    cell = train_cell(architecture=architecture)
    assert curve_of(cell).samples == curve_of(cell).samples
    assert curve_of(cell).samples != curve_of(replace(cell, seed=1)).samples


def test_at_one_seed_every_architecture_sees_the_same_text() -> None:
    lstm, none = (seen_tokens(train_cell(architecture=a)) for a in ("lstm", "none"))
    assert all(map(torch.equal, lstm, none)) and len(lstm) == len(none) == 20


def test_the_text_of_an_update_does_not_depend_on_the_updates_before() -> None:
    drawn = [DATA.batch(2, 32, seed=3, update=u)[0] for u in (1, 2, 3)]
    assert (drawn[2] == DATA.batch(2, 32, seed=3, update=3)[0]).all()
    assert (drawn[0] != drawn[1]).any()


def test_windows_are_stretches_of_the_text() -> None:
    text = DATA.train.tobytes()
    inputs, targets = DATA.batch(10, 32, seed=0, update=1)
    assert inputs.shape == targets.shape == (10, 32)
    for row, following in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert bytes([row[0], *following]) in text and row[1:] == following[:-1]


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    cell = train_cell(architecture="transformer")
    inputs, targets = map(torch.from_numpy, DATA.batch(7, 32, seed=0, update=1))
    targets[::2, 5:20] = IGNORED  # as many in no two micro-batches
    found = []
    for micro_batch in (7, 3, 1):
        model = model_of(cell)
        loss = accumulate(model, inputs, targets, micro_batch, "float32")
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((loss, torch.cat([g.flatten() for g in gradients])))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scored", [1, 9, 7 * 32])  # of one, most micro-batches have none
def test_outputs_that_no_target_asks_for_are_left_out_and_change_nothing(scored: int) -> None:
    inputs, targets = map(torch.from_numpy, DATA.batch(7, 32, seed=0, update=1))
    kept = torch.randperm(targets.numel(), generator=torch.Generator().manual_seed(0))[:scored]
    asked = torch.full_like(targets, IGNORED).flatten().index_copy(0, kept, targets.flatten()[kept])
    asked = asked.view_as(targets)
    model, whole = (model_of(train_cell(architecture="gru")) for _ in range(2))
    said = []
    model.head.register_forward_hook(lambda module, given, output: said.append(output.numel()))
    loss = accumulate(model, inputs, asked, 3, "float32")
    expected = next_token_losses(whole, inputs, asked, "float32").sum() / scored
    torch.autograd.backward(expected)
    assert sum(said) == scored * whole.head.out_features
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seq_len", [16, 64, 100, 256, 1000])
def test_updates_and_tokens_agree_at_every_length(seq_len: int) -> None:
    schedule = schedule_of(train_cell(seq_len=seq_len, tokens=100_000, tokens_per_update=512))
    assert schedule.tokens_per_update % seq_len == 0 and schedule.sequences >= 1
    assert abs(schedule.tokens_per_update - 512) <= seq_len / 2 or schedule.sequences == 1
    assert 0 <= schedule.updates * schedule.tokens_per_update - 100_000 < schedule.tokens_per_update


def test_a_pass_is_bounded_and_never_empty() -> None:
    many = schedule_of(train_cell(seq_len=1024, tokens_per_update=2**20, tokens=2**22))
    assert many.micro_batch * 1024 == 32_768 and many.sequences == 1024
    assert schedule_of(train_cell(seq_len=2**17)).micro_batch == 1


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    schedule = schedule_of(train_cell(tokens=64 * 1000, learning_rate=1.0))
    rates = [schedule.learning_rate(update) for update in range(1, 1001)]
    assert max(rates) == rates[49] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert all(a > b for a, b in pairwise(rates[49:]))


def test_weights_decay_and_biases_and_norms_do_not() -> None:
    decayed, free = adamw(model_of(train_cell()), 1e-3).param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.ndim >= 2 for p in decayed["params"])
    assert free["weight_decay"] == 0.0 and all(p.ndim < 2 for p in free["params"])
    assert decayed["params"] and free["params"]


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_every_parameter_is_in_one_group_and_rates_do_not_decay(architecture: str) -> None:
    model = model_of(train_cell(architecture=architecture, size=60_000))
    decayed, free = (set(map(id, group["params"])) for group in adamw(model, 1e-3).param_groups)
    assert not decayed & free and decayed | free == set(map(id, model.parameters()))
    for module in model.modules():
        for name in getattr(module, "undecayed", ()):
            assert id(getattr(module, name)) in free or getattr(module, name) is None


def test_training_learns_and_says_what_it_did() -> None:
    cell = train_cell(tokens=64 * 150, learning_rate=1e-2)
    events, trained = finished(train(cell, model_of(cell), DATA, CPU))
    first, *_, curve, last = events
    assert isinstance(first, Facts) and isinstance(curve, Measurement)
    assert first.values == {"updates": 150, "tokens_per_update": 64, "micro_batch": 2}
    assert curve.steps is not None and curve.steps[-1] == 150 and len(curve.samples) == 75
    assert curve.samples[0] > 5.0 and curve.samples[-1] < 3.0
    assert not trained.model.training
    assert isinstance(last, Facts) and set(last.values) == {"data_order"}


@pytest.mark.parametrize("architecture", ["transformer", "stacked_rnn", "none"])
def test_what_is_dropped_in_training_is_there_in_evaluation(architecture: str) -> None:
    cell = train_cell(architecture=architecture, optimiser={"dropout": 0.5})
    model = model_of(cell).train()
    tokens = torch.arange(24).reshape(2, 12)
    whole = model(tokens)
    model.drop(cell.recipe.dropout)
    one, other = model(tokens), model(tokens)
    assert not torch.equal(one, other) and not torch.equal(one, whole)
    torch.testing.assert_close(model.eval()(tokens), whole, rtol=0, atol=0)


def test_dropping_a_share_of_nothing_changes_nothing() -> None:
    cell = train_cell(optimiser={"dropout": 0.0})
    assert curve_of(cell).samples == curve_of(train_cell()).samples
    assert curve_of(train_cell(optimiser={"dropout": 0.3})).samples != curve_of(cell).samples


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="dropout must be at least 0 and under 1"):
        run.verify(train_cell(optimiser={"dropout": share}))


def test_the_forget_gate_starts_as_asked() -> None:
    model = model_of(train_cell(architecture="lstm", options={"forget_bias": 2.5}))
    biases = [p for name, p in model.named_parameters() if name.endswith("bias_ih_l0")]
    width = len(biases[0]) // 4
    for bias in biases:
        assert set(bias[width : 2 * width].tolist()) == {2.5}
        assert set(bias[:width].tolist()) == {0.0}


@pytest.mark.parametrize("architecture", ["gru", "transformer", "none"])
def test_the_order_of_the_data_is_the_seeds_alone(architecture: str) -> None:
    said = []
    for name, seed in ((architecture, 0), ("lstm", 0), ("lstm", 1)):
        cell = train_cell(architecture=name, seed=seed)
        events, _ = finished(train(cell, model_of(cell), DATA, CPU))
        said.append(next(e.values for e in reversed(events) if isinstance(e, Facts)))
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("learning_rate", [float("inf"), 1e30])
def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_curve(learning_rate: float) -> None:
    cell = train_cell(learning_rate=learning_rate)
    events: list[Event] = []
    with pytest.raises(Diverged, match=r"the loss of update \d+ is not finite, the last finite"):
        for event in train(cell, model_of(cell), DATA, CPU):
            events.append(event)
    curve = events[-1]
    assert isinstance(curve, Measurement) and curve.steps is not None
    assert 1 <= curve.steps[-1] < 20


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="seq_len: 32 is longer than the text, 20 tokens"):
        finished(train(train_cell(), model_of(train_cell()), made_data(20), CPU))


def test_a_long_curve_is_thinned_to_means_over_its_intervals() -> None:
    curve = LossCurve(250, "nats per token")
    curve.extend([float(i) for i in range(1, 251)])
    found = curve.measurement()
    assert found.steps is not None and len(found.steps) == 84
    assert (found.steps[0], found.samples[0]) == (3, 2.0)
    assert (found.steps[-1], found.samples[-1]) == (250, 250.0)


def test_bfloat16_trains_beside_float32() -> None:
    low, high = (curve_of(train_cell(precision=p)) for p in ("bfloat16", "float32"))
    assert low.samples != high.samples
    assert low.samples[-1] == pytest.approx(high.samples[-1], rel=0.02)
