"""Exponents and parts of known laws come back."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.analysis import scaling, tables
from tests.orchestrator.made_records import envelope
from tests.simulated_world import Law, SimulatedWorld, enveloped, measure_cells, plan_of
from workloads.measurement import Measurement

CONTEXTS = np.array([64.0, 128, 256, 512, 1024, 2048])


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_power_law_has_its_exponent(power: float) -> None:
    found = scaling.exponent(np.tile(3 * CONTEXTS**power, (5, 1)), CONTEXTS)
    assert found["local_exponent"] == pytest.approx(power)
    assert found["low"] == pytest.approx(power) == found["high"]
    assert found["replicates"] == 5


def test_state_has_an_exponent_too_though_it_is_compared_by_difference() -> None:
    cells = measure_cells(("lstm", "transformer"), (256, 512, 1024), metrics=("state_bytes",))
    held = {"lstm": lambda n: 1024.0, "transformer": lambda n: 16.0 * n}
    envelopes = [
        envelope(
            cell,
            Measurement(
                metric="state_bytes",
                version=1,
                unit="bytes",
                title="state per sequence",
                scale="difference",
                deterministic=True,
                samples=(held[cell.label](cell.seq_len),),
            ),
        )
        for cell in cells
        if cell.metrics
    ]
    found = tables.build(plan_of(cells), envelopes).scaling.to_pylist()
    assert {row["label"]: round(row["local_exponent"], 9) for row in found} == {
        "lstm": 0.0,
        "transformer": 1.0,
    }


def test_the_exponent_is_of_the_top_octave_alone() -> None:
    curve = np.where(CONTEXTS < 1024, 1.0, CONTEXTS / 1024)
    assert scaling.exponent(curve[None], CONTEXTS)["local_exponent"] == pytest.approx(1)


def test_sparse_contexts_use_the_last_two() -> None:
    sparse = np.array([64.0, 256, 1024])
    assert scaling.exponent(sparse[None] ** 2, sparse)["local_exponent"] == pytest.approx(2)


def test_the_parts_of_a_polynomial_come_back_and_none_is_negative() -> None:
    curve = 1e-3 + 2e-6 * CONTEXTS + 3e-9 * CONTEXTS**2
    found = scaling.parts(np.tile(curve, (5, 1)), CONTEXTS)
    assert found["constant"] == pytest.approx(1e-3)
    assert found["linear"] == pytest.approx(2e-6)
    assert found["quadratic"] == pytest.approx(3e-9)
    falling = scaling.parts(2 - CONTEXTS[None] / 4096, CONTEXTS)
    assert min(float(str(falling[part])) for part in scaling.PARTS) >= 0


def test_two_contexts_have_an_exponent_and_no_parts() -> None:
    assert scaling.parts(np.ones((5, 2)), CONTEXTS[:2]) == {}


def test_noisy_replicates_give_intervals_that_hold_the_truth() -> None:
    laws = {
        "lstm": Law(constant=1e-3, linear=1e-5),
        "big": Law(quadratic=1e-8, out_of_memory_from=2048),
    }
    cells = measure_cells(laws, CONTEXTS.astype(int).tolist(), batch_sizes=(1,))
    built = tables.build(plan_of(cells), enveloped(SimulatedWorld(laws=laws).execute(cells)))
    rows = {r["label"]: r for r in built.scaling.to_pylist() if r["metric"] == "train_step_time"}
    assert rows["lstm"]["linear_low"] <= 1e-5 <= rows["lstm"]["linear_high"]
    assert rows["lstm"]["low"] <= rows["lstm"]["local_exponent"] <= rows["lstm"]["high"]
    assert rows["big"]["quadratic_low"] <= 1e-8 <= rows["big"]["quadratic_high"]
    assert rows["big"]["local_exponent"] > 1.5
