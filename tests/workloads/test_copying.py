"""Data tokens come back in order, and nothing but their order in the input says so; training and
test never copy the same; a perfect copier is perfect at every length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads.tiny_cells import train_cell
from workloads.measurement import Measurement
from workloads.objectives import IGNORED
from workloads.plugins import Unsupported, build_options
from workloads.run import run
from workloads.tasks.copying import NOISE, TASK, Copying, Options, _test_set, scatter
from workloads.tasks.data import generator_of
from workloads.tasks.generated import accuracy_at, held_out
from workloads.train import TrainedModel

SMALL = Options(vocab_size=10, data_tokens=4)
METRICS = ("accuracy", "solved", "accuracy_by_length")


def read(options: Options, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The data tokens of each sequence in order, by looking at its tokens."""
    data = (inputs != NOISE) & (inputs != options.vocab_size - 1)
    return inputs[data].reshape(len(inputs), options.data_tokens)


@settings(max_examples=30, deadline=None)
@given(
    options=st.sampled_from([SMALL, Options(), Options(vocab_size=4, data_tokens=13)]),
    sequences=st.integers(1, 9),
    more=st.integers(0, 60),
    data=st.data(),
)
def test_a_batch_has_its_shape_its_order_and_no_answer_in_its_input(
    options: Options, sequences: int, more: int, data: st.DataObject
) -> None:
    """Where answers are asked for, every input is the same token; before, the data tokens stand
    once each, with noise between."""
    seed, update = data.draw(st.integers(0, 2**62)), data.draw(st.integers(0, 10**6))
    count, seq_len = options.data_tokens, 2 * options.data_tokens + more
    task_data = Copying(options=options)
    inputs, targets = task_data.batch(sequences, seq_len, seed=seed, update=update)
    assert inputs.shape == targets.shape == (sequences, seq_len)
    assert inputs.dtype == targets.dtype == np.int64
    assert (inputs[:, -count:] == options.vocab_size - 1).all()
    assert (targets[:, :-count] == IGNORED).all()
    assert (read(options, inputs) == targets[:, -count:]).all()
    assert ((inputs[:, :-count] == NOISE).sum(axis=1) == more).all()
    again = task_data.batch(sequences, seq_len, seed=seed, update=update)
    assert (again[0] == inputs).all() and (again[1] == targets).all()


def test_another_update_and_another_seed_draw_other_sequences() -> None:
    task_data = Copying(options=SMALL)
    first, *others = (
        task_data.batch(8, 32, seed=seed, update=update)[0]
        for seed, update in ((0, 1), (0, 2), (1, 1))
    )
    assert all((first != other).any() for other in others)


def test_data_tokens_stand_at_every_place_alike_and_are_of_every_kind_alike() -> None:
    inputs, targets = Copying(options=SMALL).batch(20_000, 16, seed=0, update=0)
    taken = (inputs[:, :12] != NOISE).mean(axis=0)
    assert taken == pytest.approx(np.full(12, 4 / 12), abs=0.02)
    kinds = np.bincount(targets[targets != IGNORED], minlength=10) / (20_000 * 4)
    assert kinds[[0, 9]].tolist() == [0, 0]
    assert kinds[1:9] == pytest.approx(np.full(8, 1 / 8), abs=0.01)


def test_no_training_sequence_copies_what_a_test_sequence_does() -> None:
    """Of 8^4 = 4,096 words both parts are met often."""
    data = Copying(options=SMALL)
    trained = np.concatenate(
        [data.batch(1000, 16, seed=seed, update=u)[1][:, -4:] for seed in (0, 1) for u in range(9)]
    )
    tested = _test_set(copier(None, task_options={"vocab_size": 10, "data_tokens": 4}), 64)[1]
    words, trained_words = (
        set(map(bytes, part.astype(np.uint8))) for part in (tested[:, -4:], trained)
    )
    assert len(words) > 300 and len(trained_words) > 3000 and not words & trained_words


@pytest.mark.parametrize("seq_len", [1, 15])
def test_a_length_without_room_is_refused(seq_len: int) -> None:
    with pytest.raises(ValueError, match="seq_len: 8 data tokens and as many answers need at"):
        Copying(options=Options()).batch(1, seq_len, seed=0, update=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 3}, "vocab_size must be at least 4"),
        ({"data_tokens": 0}, "data_tokens and test_sequences positive"),
        ({"test_sequences": 0}, "data_tokens and test_sequences positive"),
        ({"vocab_size": 9, "data_tokens": 4}, "4 of 7 kinds make 2401 words, too few"),
        ({"tokens": 3}, "unknown option 'tokens'"),
    ],
)
def test_impossible_options_say_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)


class Copier(torch.nn.Module):
    """Copies the data tokens, and knows of the last `memory` inputs before the answers only; of
    what it has not seen it says 1. `last_alone`: says the last one at every place."""

    def __init__(self, options: Options, memory: int = 10**6, last_alone: bool = False) -> None:
        super().__init__()
        self.options, self.memory, self.last_alone = options, memory, last_alone

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        count = self.options.data_tokens
        said = torch.zeros_like(inputs)
        for row, line in enumerate(inputs):
            seen = line[:-count][-self.memory :]
            found = seen[seen != NOISE]
            if self.last_alone:
                found = found[-1:].repeat(count)
            said[row, -count:] = 1
            said[row, inputs.shape[1] - len(found) :] = found
        return torch.nn.functional.one_hot(said, self.options.vocab_size).float()


def copier(model: Any, **fields: Any) -> TrainedModel:
    cell = train_cell(task="copying", **{"task_options": {}, "seq_len": 32} | fields)
    return TrainedModel(cell=cell, model=model, data=None, device=torch.device("cpu"))


def test_who_copies_perfectly_is_perfect_at_every_length() -> None:
    subject = copier(Copier(Options()), eval_seq_len=(16, 100))
    evaluated = {name: TASK.metrics[name].evaluate for name in METRICS}
    found = {name: of(subject) for name, of in evaluated.items() if of is not None}
    assert found["accuracy"].samples == found["solved"].samples == (1.0,)
    curve = found["accuracy_by_length"]
    assert (curve.coordinate, curve.at) == ("eval_seq_len", (16.0, 32.0, 100.0))
    assert curve.samples == (1.0, 1.0, 1.0)


def test_who_remembers_24_inputs_is_perfect_up_to_32_and_no_further() -> None:
    subject = copier(Copier(Options(), memory=24))
    at_32, at_64 = (accuracy_at(subject, length, _test_set) for length in (32, 64))
    # 24 of 56 places are seen; a data token that was not is said as 1, which one in 14 is.
    seen = 24 / 56
    assert at_32 == 1 and at_64 == pytest.approx(seen + (1 - seen) / 14, abs=0.02)


def test_every_model_and_length_is_asked_the_same_words() -> None:
    one, other = copier(None), copier(None, seed=5, architecture="transformer")
    (inputs, targets), (others, _) = _test_set(one, 32), _test_set(other, 32)
    assert (inputs == others).all() and held_out(targets[:, -8:]).all()
    longer, their_targets = _test_set(one, 256)
    assert longer.shape == (1000, 256) and (their_targets[:, -8:] == targets[:, -8:]).all()


def test_the_baseline_is_the_most_frequent_token_of_each_test_sequence() -> None:
    facts = Copying(options=Options()).facts
    assert {"data_source", "data_licence", "split"} <= set(facts)
    _, targets = _test_set(copier(None), 64)
    by_hand = [np.bincount(word[word != IGNORED]).max() / 8 for word in targets]
    assert facts["baseline_accuracy"] == pytest.approx(np.mean(by_hand))
    # To say the last one everywhere is a worse guess: itself, and one in 14 of the others.
    said_last = accuracy_at(copier(Copier(Options(), last_alone=True)), 64, _test_set)
    assert said_last == pytest.approx(1 / 8 + 7 / 8 / 14, abs=0.02)
    assert said_last < float(str(facts["baseline_accuracy"])) < 0.3


def test_a_length_without_room_is_a_reason_and_no_crash() -> None:
    with pytest.raises(Unsupported, match="need at least 16, not 8"):
        accuracy_at(copier(None), 8, _test_set)


def test_the_example_in_the_docstring_is_true() -> None:
    inputs, targets = scatter(Options(), np.array([[3, 1, 1, 6]]), 16, generator_of(0, 0))
    assert [token for token in inputs[0].tolist() if token] == [3, 1, 1, 6, 15, 15, 15, 15]
    assert targets[0].tolist() == [IGNORED] * 12 + [3, 1, 1, 6]


def test_attention_learns_a_small_case_and_its_metrics_are_of_one_test_set() -> None:
    cell = train_cell(
        architecture="transformer",
        task="copying",
        task_options={"vocab_size": 10, "data_tokens": 4, "test_sequences": 200},
        shell={"short_conv": True, "mlp": False, "d_model": 32},
        size=0,
        num_layers=2,
        seq_len=12,
        eval_seq_len=(24,),
        tokens=12 * 32 * 300,
        tokens_per_update=12 * 32,
        learning_rate=1e-2,
        metrics=METRICS,
    )
    found = {e.metric: e for e in run(cell) if isinstance(e, Measurement)}
    (accuracy,) = found["accuracy"].samples
    assert accuracy > 0.6  # the baseline reaches 0.38
    assert found["solved"].samples == (float(accuracy >= 0.95),)
    curve = found["accuracy_by_length"]
    assert curve.at == (12.0, 24.0) and curve.samples[0] == accuracy
