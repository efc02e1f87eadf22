"""The targets are the group's own products; who misses one element knows nothing; training and test
share no word; a recurrent network learns parity and keeps it at longer lengths."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads.tiny_cells import train_cell
from workloads.check import check
from workloads.measurement import Measurement
from workloads.model import build
from workloads.plugins import Unsupported, build_options
from workloads.run import run
from workloads.tasks.data import TEST_SEED, generator_of
from workloads.tasks.generated import Examples, accuracy_at, held_out
from workloads.tasks.state_tracking import (
    TASK,
    Options,
    StateTracking,
    _test_set,
    elements,
    generate,
    states,
)
from workloads.train import TrainedModel

EVERY = [
    Options(),
    Options(problem="modular_counting", modulus=3),
    Options(problem="modular_counting"),
    Options(problem="s3"),
    Options(problem="s5"),
]
METRICS = ("accuracy", "solved", "accuracy_by_length")
options_of = st.sampled_from(EVERY)


@settings(max_examples=30, deadline=None)
@given(options=options_of, sequences=st.integers(1, 9), seq_len=st.integers(12, 70), data=st.data())
def test_a_batch_has_its_shape_and_is_drawn_from_its_number_alone(
    options: Options, sequences: int, seq_len: int, data: st.DataObject
) -> None:
    seed, update = data.draw(st.integers(0, 2**62)), data.draw(st.integers(0, 10**6))
    task_data = StateTracking(options=options)
    inputs, targets = task_data.batch(sequences, seq_len, seed=seed, update=update)
    assert inputs.shape == targets.shape == (sequences, seq_len)
    assert inputs.dtype == targets.dtype == np.int64
    for part in (inputs, targets):
        assert part.min() >= 0 and part.max() < elements(options)
    again = task_data.batch(sequences, seq_len, seed=seed, update=update)
    assert (again[0] == inputs).all() and (again[1] == targets).all()


def test_another_update_and_another_seed_draw_other_words() -> None:
    task_data = StateTracking(options=Options())
    first, *others = (
        task_data.batch(8, 32, seed=seed, update=update)[0]
        for seed, update in ((0, 1), (0, 2), (1, 1))
    )
    assert all((first != other).any() for other in others)


def test_parity_is_of_the_ones_so_far_and_counting_is_a_sum() -> None:
    assert states(Options(), np.array([[1, 0, 1, 1, 0, 1]])).tolist() == [[1, 1, 0, 1, 1, 0]]
    counting = Options(problem="modular_counting", modulus=5)
    words = generate(counting, 20, 40, generator_of(0, 0), test=False)
    assert (states(counting, words) == words.cumsum(axis=1) % 5).all()


@pytest.mark.parametrize(("problem", "things"), [("s3", "abc"), ("s5", "abcde")])
def test_permutations_are_done_one_after_another(problem: Any, things: str) -> None:
    options = Options(problem=problem)
    named = ["".join(row) for row in itertools.permutations(things)]
    words = generate(options, 5, 20, generator_of(0, 0), test=False)
    found = states(options, words)
    for word, targets in zip(words, found, strict=True):
        state = things
        for element, target in zip(word, targets, strict=True):
            state = state.translate(str.maketrans(things, named[element]))
            assert named[target] == state


def test_the_example_in_the_docstring_is_true() -> None:
    named = ["".join(row) for row in itertools.permutations("abc")]
    word = np.array([[named.index(name) for name in ("bac", "cab", "bac", "bca")]])
    assert [named[state] for state in states(Options(problem="s3"), word)[0]] == [
        "bac",
        "acb",
        "bca",
        "cab",
    ]


@pytest.mark.parametrize("problem", ["s3", "s5"])
def test_order_matters_among_permutations(problem: Any) -> None:
    options = Options(problem=problem)
    pairs = np.array(list(itertools.product(range(elements(options)), repeat=2)))
    there, back = states(options, pairs)[:, 1], states(options, pairs[:, ::-1])[:, 1]
    assert (there != back).any()


@pytest.mark.parametrize("options", EVERY, ids=lambda o: f"{o.problem} {o.modulus}")
def test_who_misses_one_element_knows_nothing(options: Options) -> None:
    """At whichever place an element is hidden: through all its values the last state goes through
    every element, once."""
    count = elements(options)
    (word,) = generate(options, 1, 12, generator_of(7, 0), test=False)
    for place in range(len(word)):
        words = np.repeat(word[None], count, axis=0)
        words[:, place] = np.arange(count)
        assert sorted(states(options, words)[:, -1]) == list(range(count))


@settings(max_examples=20, deadline=None)
@given(options=options_of, place=st.integers(1, 19), seed=st.integers(0, 1000))
def test_a_target_depends_on_nothing_after_it(options: Options, place: int, seed: int) -> None:
    words = generate(options, 4, 20, generator_of(seed, 0), test=False)
    others = words.copy()
    others[:, place:] = generator_of(seed, 1).integers(elements(options), size=(4, 20 - place))
    same = states(options, words)[:, :place] == states(options, others)[:, :place]
    assert same.all()


def test_the_guess_is_right_as_often_as_the_facts_say() -> None:
    for options in EVERY:
        facts = StateTracking(options=options).facts
        assert facts["baseline_accuracy"] == 1 / elements(options)
        assert {"data_source", "data_licence", "split"} <= set(facts)
        words = generate(options, 20_000, 16, generator_of(TEST_SEED, 16), test=True)
        last = np.bincount(states(options, words)[:, -1], minlength=elements(options))
        assert last.max() / len(words) < 1 / elements(options) + 0.02
    assert [elements(options) for options in EVERY] == [2, 3, 5, 6, 120]


@pytest.mark.parametrize("seq_len", [12, 13, 32])
def test_no_word_of_the_test_is_ever_trained_on(seq_len: int) -> None:
    """Of parity's 4,096 words of length 12 all can be looked at, and both parts must occur."""
    tested = generate(Options(), 1000, seq_len, generator_of(TEST_SEED, seq_len), test=True)
    trained = [
        StateTracking(options=Options()).batch(500, seq_len, seed=seed, update=update)[0]
        for seed in range(4)
        for update in range(10)
    ]
    words, trained_words = (
        set(map(bytes, part.astype(np.uint8))) for part in (tested, np.concatenate(trained))
    )
    assert words and trained_words and not words & trained_words
    everything = generator_of(0, 0).integers(2, size=(20_000, seq_len))
    assert held_out(everything).mean() == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize(("problem", "seq_len"), [("parity", 11), ("s3", 4), ("s5", 1)])
def test_a_length_of_few_words_is_refused(problem: Any, seq_len: int) -> None:
    task_data = StateTracking(options=Options(problem=problem))
    with pytest.raises(ValueError, match=f"seq_len: {problem} has .* words of length {seq_len}"):
        task_data.batch(1, seq_len, seed=0, update=0)
    task_data.batch(1, seq_len + 1, seed=0, update=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "s4"}, "unknown problem 's4'. Known: parity, modular_counting, s3, s5"),
        ({"modulus": 7}, "modulus belongs to `problem: modular_counting`, not parity"),
        ({"problem": "modular_counting", "modulus": 1}, "must lie between 2 and 1000, not 1"),
        ({"test_sequences": 0}, "must be positive"),
        ({"modulo": 3}, "Did you mean 'modulus'"),
    ],
)
def test_impossible_options_say_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)


class Tracker(torch.nn.Module):
    """Says the parity of the last `memory` bits."""

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        ones = inputs.cumsum(1)
        forgotten = torch.nn.functional.pad(ones, (self.memory, 0))[:, : inputs.shape[1]]
        return torch.nn.functional.one_hot((ones - forgotten) % 2, 2).float()


def trained(model: Any, **fields: Any) -> TrainedModel:
    cell = train_cell(task="state_tracking", **{"task_options": {}} | fields)
    return TrainedModel(cell=cell, model=model, data=None, device=torch.device("cpu"))


def test_who_remembers_32_elements_is_perfect_up_to_32_and_guesses_beyond() -> None:
    subject = trained(Tracker(memory=32), seq_len=32, eval_seq_len=(20, 33, 64))
    evaluated = {name: TASK.metrics[name].evaluate for name in METRICS}
    found = {name: of(subject) for name, of in evaluated.items() if of is not None}
    assert found["accuracy"].samples == found["solved"].samples == (1.0,)
    curve = found["accuracy_by_length"]
    assert (curve.coordinate, curve.at) == ("eval_seq_len", (20.0, 32.0, 33.0, 64.0))
    assert curve.samples[:2] == (1.0, 1.0)
    assert all(0.45 < value < 0.55 for value in curve.samples[2:])


def test_every_model_is_asked_the_same_and_scored_at_the_last_position_alone() -> None:
    subjects = [
        trained(None, seq_len=32, seed=seed, architecture=architecture)
        for seed, architecture in ((0, "lstm"), (3, "transformer"))
    ]
    (words, targets), other = (_test_set(subject, 64) for subject in subjects)
    assert (words == other[0]).all() and (targets == other[1]).all()
    assert words.shape == (1000, 64) and held_out(words).all()
    assert (targets[:, :-1] == -100).all() and (targets[:, -1] == words.sum(1) % 2).all()


def test_a_length_without_examples_is_a_reason_and_no_crash() -> None:
    subject = trained(Tracker(memory=9), seq_len=32, eval_seq_len=(8,))
    with pytest.raises(Unsupported, match="too few to keep some"):
        accuracy_at(subject, 8, _test_set)


def test_a_length_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(subject: TrainedModel, seq_len: int) -> Examples:
        asked.append(seq_len)
        return _test_set(subject, seq_len)

    subject = trained(Tracker(memory=9), seq_len=32)
    assert accuracy_at(subject, 32, counted) == accuracy_at(subject, 32, counted)
    assert asked == [32]


def test_long_test_sequences_go_through_a_model_in_parts() -> None:
    cell = train_cell(task="state_tracking", task_options={"test_sequences": 40}, seq_len=2048)
    model = build(check(cell).shape, seed=0, device="cpu").eval()
    subject = TrainedModel(cell=cell, model=model, data=None, device=torch.device("cpu"))
    words, targets = _test_set(subject, 2048)
    with torch.inference_mode():
        whole = model(torch.from_numpy(words))[:, -1].argmax(-1).numpy()
    assert accuracy_at(subject, 2048, _test_set) == (whole == targets[:, -1]).mean()


def test_a_gru_learns_parity_and_keeps_it_at_longer_lengths() -> None:
    cell = train_cell(
        architecture="gru",
        task="state_tracking",
        task_options={"test_sequences": 200},
        size=0,
        shell={"mlp": False, "d_model": 32},
        num_layers=1,
        seq_len=16,
        eval_seq_len=(64,),
        tokens=16 * 32 * 300,
        tokens_per_update=16 * 32,
        learning_rate=1e-2,
        metrics=METRICS,
    )
    found = {e.metric: e for e in run(cell) if isinstance(e, Measurement)}
    assert found["accuracy"].samples == found["solved"].samples == (1.0,)
    assert found["accuracy_by_length"].at == (16.0, 64.0)
    assert min(found["accuracy_by_length"].samples) > 0.95
