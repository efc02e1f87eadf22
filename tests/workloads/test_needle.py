"""Needles in real text: where they lie, what is scored, and that the answer is not given away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads.tiny_cells import train_cell
from workloads.measurement import Measurement
from workloads.objectives import IGNORED
from workloads.run import run
from workloads.tasks.data import generator_of
from workloads.tasks.needle import CITIES, Needles, Options, generate, prepare

TEXT = np.frombuffer(b"lorem ipsum dolor sit amet " * 200, dtype=np.uint8)


@settings(deadline=None, max_examples=40)
@given(
    facts=st.integers(1, 5), digits=st.integers(1, 4), extra=st.integers(0, 300), seed=st.integers()
)
def test_every_answer_was_said_once_before_and_only_it_is_scored(
    facts: int, digits: int, extra: int, seed: int
) -> None:
    options, seq_len = Options(facts=facts, digits=digits), (facts + 1) * 30 + extra
    drawn = [generate(options, TEXT, 3, seq_len, generator_of(abs(seed), 1)) for _ in range(2)]
    for first, again in zip(*drawn, strict=True):
        assert (first == again).all()
    inputs, targets, distances = drawn[0]
    assert inputs.shape == targets.shape == (3, seq_len)
    assert ((targets != IGNORED).sum(1) == digits).all()
    for row, goal, distance in zip(inputs, targets, distances, strict=True):
        code = bytes(goal[goal != IGNORED].astype(np.uint8)).decode()
        text = bytes(row.astype(np.uint8)).decode()
        question = text[text.rindex("The code of") :]
        city = question.split()[3]
        assert city in CITIES
        # In the question stands all of the code but its last digit, each after it was asked for.
        assert question == f"The code of {city} is {code[:-1]}"
        statement = f"The code of {city} is {code}.\n"
        assert text.count(f"The code of {city} is {code}.") == 1
        assert (text + code[-1]).index(statement) + len(statement) - 2 == seq_len + 1 - distance


def test_the_splits_are_those_of_the_text(tmp_path: Path) -> None:
    data = prepare(Options(), tmp_path)
    assert isinstance(data, Needles)
    assert data.facts["baseline_accuracy"] == pytest.approx(0.01)
    assert "State of the Union" in str(data.facts["data_source"])
    train, validation = bytes(data.text.train), bytes(data.text.validation)
    for start in range(0, len(validation) - 500, len(validation) // 20):
        assert validation[start : start + 200] not in train


@pytest.mark.parametrize(
    ("options", "message"),
    [({"facts": 0}, "facts"), ({"facts": 99}, "facts"), ({"digits": 0}, "digits")],
)
def test_impossible_options_say_why(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_too_short_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="seq_len: 3 facts and a question need"):
        generate(Options(facts=3), TEXT, 1, 64, generator_of(0, 0))


def test_its_metrics_are_of_one_test_set() -> None:
    cell = train_cell(
        task="needle",
        task_options={"digits": 1, "test_sequences": 64},
        seq_len=160,
        tokens=160 * 8,
        tokens_per_update=160 * 4,
        metrics=("accuracy", "accuracy_by_distance", "accuracy_by_facts"),
    )
    found = {e.metric: e for e in run(cell) if isinstance(e, Measurement)}
    assert found["accuracy_by_facts"].at == (1.0, 2.0, 4.0)
    assert found["accuracy_by_facts"].samples[0] == found["accuracy"].samples[0]
    distances = found["accuracy_by_distance"].at
    assert distances is not None and max(distances) < 160
