"""Verdicts in a world whose crossings are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.analysis import tables
from orchestrator.plan import Primary
from tests.simulated_world import (
    Law,
    SimulatedWorld,
    enveloped,
    measure_cells,
    plan_of,
    train_cells,
)
from workloads.cell import Cell

LSTM = Law(constant=1e-3, linear=1e-5)
TRANSFORMER = Law(constant=1e-3, linear=2e-6, quadratic=1.5e-8)
LAWS = {"lstm": LSTM, "transformer": TRANSFORMER}
CONTEXTS = (64, 128, 256, 384, 512, 1024, 2048, 4096)
Row = dict[str, Any]


def analysed(
    world: SimulatedWorld, cells: Iterable[Cell], **plan: Any
) -> tuple[list[Row], tables.Tables]:
    cells = list(cells)
    found = tables.build(plan_of(cells, **plan), enveloped(world.execute(cells)))
    return found.crossovers.to_pylist(), found


def verdict(
    laws: Mapping[str, Law], metric: str = "train_step_time", rounds: int = 5, **options: Any
) -> Row:
    """The one row about `metric` in a world of these laws."""
    plan = {name: options.pop(name) for name in ("zone", "primary", "baseline") if name in options}
    cells = measure_cells(laws, CONTEXTS, rounds=rounds)
    rows, _ = analysed(SimulatedWorld(laws=laws, **options), cells, **plan)
    (row,) = [row for row in rows if row["metric"] == metric]
    return row


def test_two_power_laws_cross_where_algebra_says() -> None:
    world = SimulatedWorld(laws=LAWS)
    (truth,) = world.crossings("train_step_time", "lstm", "transformer", 64, 4096)
    assert truth == pytest.approx(8e-6 / 1.5e-8)
    row = verdict(LAWS)
    assert (row["verdict"], row["direction"], row["crossing"]) == ("crosses", "lstm", 0)
    assert row["low"] <= truth <= row["high"]
    assert row["seq_len"] == pytest.approx(truth, rel=0.1)
    assert row["indifferent_low"] < row["seq_len"] < row["indifferent_high"]


def test_deterministic_metrics_cross_exactly() -> None:
    row = verdict(LAWS, "peak_memory")
    assert row["verdict"] == "crosses"
    assert row["low"] == row["seq_len"] == row["high"]
    assert row["p_value"] is None and row["p_adjusted"] is None
    assert row["smallest_effect"] == 0


def test_swapping_baseline_and_challenger_mirrors_the_verdict() -> None:
    one, other = verdict(LAWS), verdict(LAWS, baseline="transformer")
    assert (one["challenger"], other["challenger"]) == ("transformer", "lstm")
    for name in ("verdict", "direction", "low_open", "high_open", "in_zone", "replicates"):
        assert one[name] == other[name]
    for name in ("seq_len", "low", "high", "indifferent_low", "indifferent_high", "p_value"):
        assert one[name] == pytest.approx(other[name])
    slow = {"lstm": LSTM, "slow": replace(LSTM, constant=2e-3, linear=2e-5)}
    assert verdict(slow)["verdict"] == "baseline_always"
    assert verdict(slow, baseline="slow")["verdict"] == "challenger_always"


def test_a_metric_of_which_more_is_better_has_the_same_winner() -> None:
    time, speed = verdict(LAWS), verdict(LAWS, "train_tokens_per_second")
    assert speed["direction"] == time["direction"] == "lstm"
    assert speed["seq_len"] == pytest.approx(time["seq_len"])
    slow = {"lstm": LSTM, "slow": replace(LSTM, constant=2e-3, linear=2e-5)}
    assert verdict(slow, "train_tokens_per_second")["verdict"] == "baseline_always"


@pytest.mark.parametrize("cut", [512, 1024, 2048])
def test_a_curve_that_is_cut_short_never_yields_a_point_beyond(cut: int) -> None:
    laws = {"lstm": LSTM, "transformer": replace(TRANSFORMER, out_of_memory_from=cut)}
    rows, found = analysed(SimulatedWorld(laws=laws), measure_cells(laws, CONTEXTS))
    places = ("seq_len", "low", "high", "indifferent_low", "indifferent_high")
    for row in rows:
        assert all(row[name] is None or row[name] < cut for name in places), row
        assert f"transformer stops at {cut}: out of memory" in row["note"]
    for row in found.contrasts.to_pylist():
        beyond = row["seq_len"] >= cut
        assert (row["estimate"] is None) == beyond
        assert row["reason"] == ("out_of_memory" if beyond else None)
    crossed = {row["verdict"] for row in rows if row["metric"] == "train_step_time"}
    assert crossed == ({"crosses"} if cut > 1024 else crossed - {"crosses"})


def test_a_number_beyond_a_cut_is_not_looked_at() -> None:
    cells = measure_cells(LAWS, CONTEXTS)
    answers = []
    hole = {"lstm": LSTM, "transformer": replace(TRANSFORMER, out_of_memory_from=1)}
    for cell, record in SimulatedWorld(laws=LAWS).execute(cells):
        failed = cell.label == "transformer" and cell.seq_len == 512
        answers.append((cell, SimulatedWorld(laws=hole).answer(cell) if failed else record))
    found = tables.build(plan_of(cells), enveloped(answers))
    assert all(r["seq_len"] is None for r in found.crossovers.to_pylist())
    assert all(
        (r["estimate"] is None) == (r["seq_len"] >= 512) for r in found.contrasts.to_pylist()
    )


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_fewer_than_five_replicates_are_always_uncertain(rounds: int) -> None:
    cells = measure_cells(LAWS, CONTEXTS, rounds=rounds)
    rows, _ = analysed(SimulatedWorld(laws=LAWS), cells)
    assert {row["verdict"] for row in rows} == {"uncertain"}
    assert {row["replicates"] for row in rows} == {rounds}
    assert {row["p_value"] for row in rows} == {row["seq_len"] for row in rows} == {None}
    assert all("fewer than 5 replicates" in row["note"] for row in rows)


def test_one_law_under_two_labels_is_uncertain_or_equivalent() -> None:
    laws = {"lstm": LSTM, "twin": LSTM}
    assert verdict(laws, process_noise=0.05)["verdict"] == "uncertain"
    close = verdict(laws, process_noise=0.003, sample_noise=0.001)
    assert (close["verdict"], close["indifferent_low"], close["indifferent_high"]) == (
        "equivalent",
        64,
        4096,
    )
    assert verdict(laws, "peak_memory")["verdict"] == "equivalent"


def test_pairing_removes_a_drift_that_hits_all_labels_of_a_round() -> None:
    calm, shaken = verdict(LAWS), verdict(LAWS, round_noise=0.5)
    assert shaken["seq_len"] == pytest.approx(calm["seq_len"])
    assert shaken["high"] == pytest.approx(calm["high"])
    drifting = verdict(LAWS, drift=0.1)
    assert drifting["low"] <= 8e-6 / 1.5e-8 <= drifting["high"]


def test_stairs_cross_where_their_lines_do() -> None:
    laws = {"lstm": replace(LSTM, stair=64), "transformer": replace(TRANSFORMER, stair=64)}
    row = verdict(laws)
    assert row["verdict"] == "crosses"
    assert 384 < row["low"] <= row["seq_len"] <= row["high"] < 1024


def test_in_zone_says_whether_the_interval_meets_the_zone() -> None:
    assert verdict(LAWS, zone=(512, 600))["in_zone"] is True
    assert verdict(LAWS, zone=(64, 128))["in_zone"] is False
    assert verdict({"lstm": LSTM, "twin": LSTM})["in_zone"] is None


def test_exactly_one_comparison_is_primary() -> None:
    laws = {**LAWS, "gru": LSTM}
    cells = measure_cells(laws, CONTEXTS, batch_sizes=(1, 8))
    wanted = Primary(challenger="transformer", metric="train_step_time", batch_size=8)
    rows, _ = analysed(SimulatedWorld(laws=laws), cells, primary=wanted)
    (row,) = [row for row in rows if row["primary"]]
    assert (row["challenger"], row["metric"], row["batch"]) == (
        "transformer",
        "train_step_time",
        "8",
    )


def test_p_values_are_adjusted_over_measured_comparisons_with_noise() -> None:
    laws = {**LAWS, "twin": LSTM}
    rows, _ = analysed(SimulatedWorld(laws=laws), measure_cells(laws, CONTEXTS))
    counted = {(r["metric"], r["challenger"]) for r in rows if r["p_adjusted"] is not None}
    noisy = ("train_step_time", "prefill_time")
    assert counted == {(m, c) for m in noisy for c in ("transformer", "twin")}
    assert all(r["p_adjusted"] >= r["p_value"] for r in rows if r["p_adjusted"] is not None)


def test_losses_pair_by_seed_and_undertrained_ones_give_no_verdict() -> None:
    laws = {"lstm": Law(loss=2.0, loss_per_octave=0.0), "gru": Law(loss=3.0, loss_per_octave=-0.12)}
    cells = train_cells(laws, (64, 128, 256, 512, 1024, 2048))
    world = SimulatedWorld(laws=laws, process_noise=0.01)
    ((row,), _) = analysed(world, cells)
    (truth,) = world.crossings("validation_loss", "lstm", "gru", 64, 2048)
    assert (row["verdict"], row["batch"], row["direction"]) == ("crosses", None, "gru")
    assert row["low"] <= truth <= row["high"]
    short = [
        (
            cell,
            replace(
                record,
                measurements=tuple(replace(m, reason="undertrained") for m in record.measurements),
            ),
        )
        for cell, record in world.execute(cells)
    ]
    found = tables.build(plan_of(cells), enveloped(short))
    (row,) = found.crossovers.to_pylist()
    assert (row["verdict"], row["seq_len"], row["note"]) == ("uncertain", None, "undertrained")
    assert all(r["median"] is not None for r in found.summary.to_pylist())
    assert {r["in_best_set"] for r in found.winners.to_pylist()} == {None}


def test_bounded_metrics_are_compared_by_difference() -> None:
    laws = {"lstm": Law(loss=2.0), "gru": Law(loss=1.0)}
    cells = train_cells(laws, (64, 128), metrics=("accuracy",))
    ((row,), found) = analysed(SimulatedWorld(laws=laws, process_noise=0.01), cells)
    assert row["verdict"] == "challenger_always"
    for contrast in found.contrasts.to_pylist():
        assert contrast["estimate"] == pytest.approx(1 / 2 - 1 / 3, abs=0.01)
        assert contrast["low"] < contrast["pointwise_low"] < contrast["estimate"]
        assert contrast["margin"] == pytest.approx(0.05 * 0.5, rel=0.05)
    assert not found.scaling.num_rows


def test_a_failed_cell_takes_its_context_out_and_leaves_the_rest_judged() -> None:
    cells = measure_cells(LAWS, CONTEXTS)
    lost = next(c for c in cells if c.label == "lstm" and c.seq_len == 128 and c.round == 2)
    answers = [a for a in SimulatedWorld(laws=LAWS).execute(cells) if a[0].id != lost.id]
    found = tables.build(plan_of(cells), enveloped(answers))
    (row,) = [r for r in found.crossovers.to_pylist() if r["metric"] == "train_step_time"]
    assert (row["verdict"], row["replicates"]) == ("crosses", 5)
    contrasts = [r for r in found.contrasts.to_pylist() if r["metric"] == "train_step_time"]
    counts = {r["seq_len"]: r["replicates"] for r in contrasts}
    assert counts == {context: 4 if context == 128 else 5 for context in CONTEXTS}


def test_labels_that_never_meet_are_uncertain_with_a_reason() -> None:
    laws = {"lstm": LSTM, "transformer": replace(TRANSFORMER, out_of_memory_from=64)}
    row = verdict(laws)
    assert (row["verdict"], row["replicates"]) == ("uncertain", 0)
    assert "transformer stops at 64" in row["note"]


def test_whole_sweeps_cover_the_true_crossing_as_often_as_they_say() -> None:
    covered = []
    for seed in range(60):
        world = SimulatedWorld(laws=LAWS, seed=seed, drift=0.05, round_noise=0.1)
        cells = measure_cells(LAWS, CONTEXTS, metrics=("train_step_time",), seed=seed)
        (row, *_), _ = analysed(world, cells)
        covered.append(row["verdict"] == "crosses" and row["low"] <= 8e-6 / 1.5e-8 <= row["high"])
    assert np.mean(covered) >= 0.88  # 0.95 less 2.5 standard errors of 60 draws
