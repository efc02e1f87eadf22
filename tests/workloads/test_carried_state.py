"""Truncated backpropagation through time: the state goes on from update to update, gradients do
not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.workloads.mixer_variants import NAMES, chosen, width_of
from tests.workloads.test_train import DATA, finished, model_of
from tests.workloads.tiny_cells import train_cell
from workloads import plugins
from workloads.choice import parsed
from workloads.ends import next_token
from workloads.mixer import state_tensors
from workloads.model import Backbone, ModelShape, build
from workloads.run import run
from workloads.train import CarriedState, accumulate, train

CPU = torch.device("cpu")
SEGMENT, SEQUENCES = 80, 3
"""Three segments reach beyond every default window and chunk."""


def constant(name: str) -> bool:
    """Whether the state holds as much after a long context as after a short one."""
    architecture, options = chosen(name)
    width = width_of(architecture, options)
    held = {architecture.state_bytes(width, options, length, 4) for length in (1 << 16, 1 << 17)}
    return len(held) == 1


CONSTANT = [name for name in NAMES if constant(name)]


def model(name: str) -> Backbone:
    architecture, options = chosen(name)
    shape = ModelShape(
        architecture=parsed(name)[0],
        options=dict(parsed(name)[1]),
        ends=next_token(16),
        d_model=width_of(architecture, options),
        num_layers=1,
        mlp_width=32,
    )
    return build(shape, seed=0, device=CPU).train()


def segments(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(16, (count, SEQUENCES, SEGMENT), generator=generator))


@pytest.mark.parametrize("name", CONSTANT)
def test_segments_in_a_row_are_read_as_one_text(name: str) -> None:
    made, parts = model(name), segments(3)
    carried = CarriedState(3 * SEGMENT)
    said = [carried.outputs_of(made, part, "float32", 0).detach() for part in parts]
    with torch.no_grad():
        whole = made(torch.cat(parts, 1))
    torch.testing.assert_close(torch.cat(said, 1), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONSTANT)
def test_each_segment_teaches_every_parameter_and_nothing_reaches_back(name: str) -> None:
    made, carried = model(name), CarriedState(3 * SEGMENT)
    for part in segments(3):
        made.zero_grad()
        loss = accumulate(made, part, part.roll(-1, 1), 2, "float32", carried=carried)
        assert loss.isfinite()
        states = [t for state in carried._states.values() for t in state_tensors(state)]
        assert states and not any(tensor.requires_grad for tensor in states)
    for parameter in made.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_windows_follow_each_other_through_the_text_and_around_its_end() -> None:
    first, second = (DATA.following(4, 32, seed=1, update=update)[0] for update in (3, 4))
    text = np.concatenate([DATA.train, DATA.train])
    for before, after in zip(first, second, strict=True):
        assert bytes(np.concatenate([before, after]).astype(np.uint8)) in bytes(text)
    far = DATA.following(4, 32, seed=1, update=10_000)
    assert far[0].shape == far[1].shape == (4, 32)
    assert (far[0][:, 1:] == far[1][:, :-1]).all()


def test_learning_with_a_carried_state_is_another_cell_and_learns() -> None:
    cell = train_cell(architecture="gru", tokens=64 * 60, carry_state=True)
    assert cell.id != train_cell(architecture="gru", tokens=64 * 60).id
    events, trained = finished(train(cell, model_of(cell), DATA, CPU))
    curve = next(e for e in reversed(events) if getattr(e, "metric", "") == "training_loss")
    assert curve.samples[-1] < 0.8 * curve.samples[0]  # type: ignore[union-attr]
    assert not trained.model.training


@pytest.mark.parametrize("architecture", ["transformer", "memory_caching"])
def test_a_state_that_grows_cannot_be_carried(architecture: str) -> None:
    cell = train_cell(architecture=architecture, carry_state=True)
    with pytest.raises(plugins.Unsupported, match="grows with the context"):
        finished(train(cell, model_of(cell), DATA, CPU))


def test_sequences_that_do_not_go_on_are_refused() -> None:
    cell = train_cell(
        architecture="gru",
        task="recall",
        task_options={},
        seq_len=64,
        carry_state=True,
        metrics=("accuracy",),
    )
    with pytest.raises(ValueError, match="carry_state: the sequences of recall"):
        list(run(cell))
