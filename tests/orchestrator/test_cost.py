"""Predictions: positive, growing with the work, and corrected by what earlier records took."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cost import (
    CHILD_SECONDS,
    CostModel,
    Rates,
    cost_model,
    read_probe,
    write_probe,
)
from orchestrator.provenance import Envelope
from tests.orchestrator.made_records import envelope
from tests.simulated_world import measure_cell, train_cell
from workloads import environment, registry
from workloads.cell import Cell
from workloads.environment import Environment

RATES = Rates(
    flops_per_second=4e10,
    bfloat16_flops_per_second=8e10,
    bytes_per_second=1e10,
    call_seconds=3e-6,
)
MODEL = CostModel(rates=RATES, probed=True)
HERE = environment.describe("cpu:1")
LABELS = st.sampled_from(registry.names("architectures"))


def cell_of(label: str, kind: str, **fields: object) -> Cell:
    metrics = tuple(registry.names("metrics"))
    if kind == "measure":
        return measure_cell(label=label, size=200_000, metrics=metrics, **fields)
    fields.pop("batch_size", None)
    return train_cell(label=label, size=200_000, tokens=100_000, **fields)


def took(cell: Cell, seconds: float, where: Environment = HERE) -> Envelope:
    made = envelope(cell, environment=where)
    return replace(made, record=replace(made.record, seconds=seconds))


@settings(deadline=None, max_examples=60)
@given(LABELS, st.sampled_from(["measure", "train"]), st.integers(1, 4096), st.integers(1, 64))
def test_predictions_are_positive(label: str, kind: str, seq_len: int, batch_size: int) -> None:
    prediction = MODEL.predict(cell_of(label, kind, seq_len=seq_len, batch_size=batch_size))
    assert prediction.seconds > 0
    assert prediction.peak_bytes > 0


@settings(deadline=None, max_examples=60)
@given(LABELS, st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 16))
def test_a_longer_context_never_costs_less(label: str, one: int, other: int, batch: int) -> None:
    short, long = sorted((one, other))
    less = MODEL.predict(cell_of(label, "measure", seq_len=short, batch_size=batch))
    more = MODEL.predict(cell_of(label, "measure", seq_len=long, batch_size=batch))
    assert less.seconds <= more.seconds
    assert less.peak_bytes <= more.peak_bytes


@pytest.mark.parametrize("cell", [measure_cell(), train_cell()], ids=["measure", "train"])
def test_records_correct_a_prediction(cell: Cell) -> None:
    raw = MODEL.predict(cell).seconds - CHILD_SECONDS
    seconds = [CHILD_SECONDS + factor * raw for factor in (2.9, 3.0, 40.0)]
    corrected = MODEL.corrected_by([took(cell, taken) for taken in seconds])
    assert corrected.predict(cell).seconds == pytest.approx(CHILD_SECONDS + 3.0 * raw)
    # Of an architecture that has no records yet, the same is expected.
    other = replace(cell, architecture="gru", label="gru")
    expected = CHILD_SECONDS + 3.0 * (MODEL.predict(other).seconds - CHILD_SECONDS)
    assert corrected.predict(other).seconds == pytest.approx(expected)


def test_the_other_kind_of_cell_is_not_corrected() -> None:
    corrected = MODEL.corrected_by([took(measure_cell(), 100.0)])
    assert corrected.predict(train_cell()) == MODEL.predict(train_cell())


def test_what_says_nothing_of_speed_corrects_nothing() -> None:
    free = measure_cell(metrics=("state_bytes", "parameters"))
    failed = envelope(measure_cell(), status="failed")
    assert MODEL.corrected_by([took(free, 5.0), failed]).factors == {}


def test_only_records_of_this_environment_count(tmp_path: Path) -> None:
    elsewhere = replace(HERE, device_name="another machine")
    model = cost_model("cpu:1", tmp_path, [took(measure_cell(), 9.0, elsewhere)])
    assert not model.factors
    assert not model.probed
    assert cost_model("cpu:1", tmp_path, [took(measure_cell(), 9.0)]).factors


def test_a_probe_is_kept_for_later(tmp_path: Path) -> None:
    write_probe(tmp_path, HERE.fingerprint, asdict(RATES))
    assert read_probe(tmp_path, HERE.fingerprint) == RATES
    model = cost_model("cpu:1", tmp_path)
    assert model.probed
    assert model.rates == RATES
    assert [path.name for path in (tmp_path / "probes").iterdir()] == [f"{HERE.fingerprint}.json"]


DAMAGED = ["", "[]", "{}", "null", '{"flops_per_second": 1}']
DAMAGED += [
    json.dumps(asdict(RATES) | {"flops_per_second": rate})
    for rate in (0, -1, float("nan"), float("inf"), "fast", None)
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_probe_is_as_none(tmp_path: Path, content: str) -> None:
    write_probe(tmp_path, "abc", asdict(RATES))
    (tmp_path / "probes" / "abc.json").write_text(content)
    assert read_probe(tmp_path, "abc") is None


def test_an_accelerator_is_predicted_without_one(tmp_path: Path) -> None:
    cell = measure_cell(device="nvidia-h100-80gb-hbm3", precision="bfloat16")
    assert cost_model(cell.device, tmp_path).predict(cell).seconds > 0


def test_the_nodes_own_rates_and_records_count(tmp_path: Path) -> None:
    there = replace(HERE, device_name="another processor")
    write_probe(tmp_path, there.fingerprint, asdict(RATES))
    records = [took(measure_cell(), 9.0, there)]
    assert not cost_model("cpu:1", tmp_path, records).factors
    model = cost_model("cpu:1", tmp_path, records, there)
    assert model.rates == RATES and model.factors
