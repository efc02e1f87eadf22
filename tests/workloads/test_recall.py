"""The recall task is the one of the paper: its shape exactly, its distances in distribution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.workloads.tiny_cells import train_cell
from workloads.events import Started
from workloads.measurement import Measurement
from workloads.objectives import IGNORED
from workloads.run import run
from workloads.tasks.data import generator_of
from workloads.tasks.recall import Options, Recall, generate

STATISTICS = json.loads(
    (Path(__file__).parents[1] / "golden/mixers/mqar_stats.json").read_text(encoding="utf-8")
)
CASES = [(8192, 64, 4, 0.01), (8192, 256, 16, 0.01), (256, 64, 8, 0.01), (256, 64, 8, 1.0)]


@pytest.mark.parametrize(("vocab_size", "seq_len", "facts", "power"), CASES)
def test_its_statistics_are_those_of_the_reference(
    vocab_size: int, seq_len: int, facts: int, power: float
) -> None:
    expected = STATISTICS[f"V{vocab_size}_T{seq_len}_kv{facts}_a{power}"]
    options = Options(vocab_size=vocab_size, facts=facts, power=power)
    inputs, targets = generate(options, 4000, seq_len, generator_of(0, 1))
    row, position = np.nonzero(targets != IGNORED)
    slots = (position - 2 * facts) // 2
    assert len(row) == 4000 * facts
    assert (inputs == 0).mean() == pytest.approx(expected["zero_filler_frac"])
    assert slots.mean() == pytest.approx(expected["gap_mean_slot"], rel=0.03)
    assert (slots == 0).mean() == pytest.approx(expected["frac_slot0"], rel=0.05)
    assert (slots < 8).mean() == pytest.approx(expected["frac_first_8_slots"], rel=0.03)
    keys, values = inputs[:, 0 : 2 * facts : 2], inputs[:, 1 : 2 * facts : 2]
    which = np.argmax(keys[row] == inputs[row, position][:, None], axis=1)
    distance = position - 2 * which
    assert distance.mean() == pytest.approx(expected["key_query_distance"]["mean"], rel=0.03)
    assert (values[row, which] == targets[row, position]).all()
    assert keys.min() >= 1 and keys.max() < vocab_size // 2 <= values.min()
    for part in (keys, values):
        assert all(len(set(line)) == facts for line in part.tolist())


def test_an_update_is_drawn_from_its_number_alone_and_noise_fills_what_is_empty() -> None:
    data = Recall(options=Options(noise=True))
    first, again, other = (data.batch(3, 64, seed=1, update=u) for u in (5, 5, 6))
    assert (first[0] == again[0]).all() and (first[0] != other[0]).any()
    assert (first[0] == 0).mean() < 0.1


@pytest.mark.parametrize("seq_len", [31, 30, 65])
def test_a_length_without_room_for_the_facts_is_refused(seq_len: int) -> None:
    with pytest.raises(ValueError, match="8 facts need an even length of at least 32"):
        Recall(options=Options()).batch(1, seq_len, seed=0, update=0)


@pytest.mark.parametrize("options", [{"facts": 0}, {"facts": 128}, {"power": 0.0}])
def test_impossible_options_say_why(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"facts"):
        Options(**options)  # type: ignore[arg-type]


def test_attention_learns_a_small_case_and_its_metrics_are_of_one_test_set() -> None:
    cell = train_cell(
        architecture="transformer",
        options={"heads": 1},
        task="recall",
        task_options={"vocab_size": 32, "facts": 2, "test_sequences": 200},
        shell={"short_conv": True, "mlp": False, "tied_head": True, "d_model": 32},
        size=0,
        num_layers=2,
        seq_len=16,
        tokens=16 * 32 * 300,
        tokens_per_update=16 * 32,
        learning_rate=1e-2,
        metrics=("accuracy", "solved", "accuracy_by_distance"),
    )
    events = list(run(cell))
    found = {e.metric: e for e in events if isinstance(e, Measurement)}
    assert [e.metric for e in events if isinstance(e, Started)][-3:] == list(cell.metrics)
    accuracy = found["accuracy"].samples[0]
    assert accuracy > 0.9
    assert found["solved"].samples == (float(accuracy >= 0.95),)
    curve = found["accuracy_by_distance"]
    assert curve.at is not None and max(curve.at) <= 14 and len(curve.samples) == len(curve.at)
