"""What stands beside the medians: curves over a coordinate, what needs no model (the least that a
verdict wants), and models that were not trained here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.lines import Line2D

from orchestrator.analysis import tables
from orchestrator.analysis.tables import Tables
from orchestrator.plots import plot
from orchestrator.plots.series import frames
from orchestrator.report import pivot
from tests.orchestrator.made_records import envelope
from tests.simulated_world import plan_of, train_cells
from workloads.cell import Scalar
from workloads.measurement import Measurement

SEEDS = 5
DISTANCES = (2.0, 16.0, 64.0)


def measured(metric: str, *samples: float, **fields: Any) -> Measurement:
    return Measurement(
        metric=metric,
        version=1,
        unit="1",
        title=metric.replace("_", " "),
        better="greater",
        scale="difference",
        samples=samples,
        **fields,
    )


def made(
    accuracy: Mapping[str, float],
    trivial: float | None,
    coordinate: str = "distance",
    as_metric: bool = False,
    **said: Scalar,
) -> Tables:
    """Tables of labels with these accuracies, nearly, beside this trivial baseline, which is a fact
    or a metric; `said` are further facts of every record."""
    cells = [
        replace(cell, metrics=("accuracy", "accuracy_by_distance"))
        for cell in train_cells(accuracy, (64, 128), seeds=SEEDS)
    ]
    envelopes = []
    for cell in cells:
        assert cell.seed is not None
        value = accuracy[cell.label] + 0.002 * cell.seed
        curve = [value, value - 0.1, value - 0.3]
        taken = [measured("baseline_accuracy", trivial)] if as_metric and trivial else []
        made = envelope(
            cell,
            *taken,
            measured("accuracy", value),
            measured("accuracy_by_distance", *curve, coordinate=coordinate, at=DISTANCES),
        )
        position = "rope" if cell.label == "transformer" else None
        facts = {**made.record.facts, "position_encoding": position, **said}
        if trivial is not None and not as_metric:
            facts["baseline_accuracy"] = trivial
        envelopes.append(replace(made, record=replace(made.record, facts=facts)))
    return tables.build(plan_of(cells), envelopes)


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def test_profiles_are_medians_over_seeds_at_each_point() -> None:
    found = made({"lstm": 0.5, "transformer": 0.9}, None).profiles.to_pylist()
    assert len(found) == 2 * 2 * len(DISTANCES)
    (row,) = [
        row
        for row in found
        if (row["label"], row["seq_len"], row["at"]) == ("transformer", 128, 16.0)
    ]
    assert row["median"] == pytest.approx(0.804) and row["replicates"] == SEEDS
    assert row["low"] < row["median"] < row["high"]
    assert (row["coordinate"], row["metric"]) == ("distance", "accuracy_by_distance")


def test_they_are_drawn_with_a_panel_a_length() -> None:
    built = made({"lstm": 0.5, "transformer": 0.9}, None)
    (drawing,) = plot.load("profile").draw(built)
    assert drawing.name == "profile-accuracy_by_distance"
    first, second = drawing.figure.axes
    assert first.get_xscale() == second.get_xscale() == "log"
    assert first.get_xlim() == second.get_xlim()
    assert [len(xs(line)) for line in first.lines[:2]] == [3, 3]


@pytest.mark.parametrize(
    ("trivial", "verdict"),
    [(None, "challenger_always"), (0.4, "challenger_always"), (0.7, "challenger_always")],
)
def test_a_verdict_stands_where_one_of_the_two_is_better_than_no_model(
    trivial: float | None, verdict: str
) -> None:
    built = made({"lstm": 0.5, "transformer": 0.9}, trivial)
    (row,) = built.crossovers.to_pylist()
    assert row["verdict"] == verdict
    assert {row["trivial"] for row in built.summary.to_pylist()} == {trivial}


def test_a_baseline_that_is_a_metric_is_that_of_another_and_no_comparison_of_its_own() -> None:
    built = made({"lstm": 0.5, "transformer": 0.9}, 0.4, as_metric=True)
    told = made({"lstm": 0.5, "transformer": 0.9}, 0.4)
    for name in ("summary", "crossovers", "contrasts", "winners", "scaling"):
        assert getattr(built, name).equals(getattr(told, name)), name
    assert set(built.cells["baseline_accuracy"].to_pylist()) == {0.4}


def test_where_neither_is_there_is_no_verdict_and_no_winner() -> None:
    built = made({"lstm": 0.5, "transformer": 0.9}, 0.95)
    (row,) = built.crossovers.to_pylist()
    assert row["verdict"] == "uncertain" and row["p_value"] is None
    assert row["note"].startswith("no verdict at this size: neither is better than what needs no")
    assert {(r["best"], r["in_best_set"]) for r in built.winners.to_pylist()} == {(None, None)}
    for drawing in plot.load("crossover").draw(built):
        texts = [text.get_text() for text in drawing.figure.axes[0].texts]
        assert "needs no model" in texts


def test_beyond_the_trained_length_the_caption_names_how_positions_are_told_apart() -> None:
    built = made({"lstm": 0.5, "transformer": 0.9}, None, coordinate="eval_seq_len")
    (drawing,) = plot.load("profile").draw(built)
    assert "beyond it positions are told apart transformer by rope." in drawing.caption


def test_what_was_not_trained_here_stands_beneath_and_is_not_compared() -> None:
    said: dict[str, Scalar] = {
        "reference_old": "old <1.0>",
        "reference_old_accuracy": 0.7,
        "reference_old_unheard_of": 3.0,
        "reference_other": "says nothing of this",
    }
    built = made({"lstm": 0.5, "transformer": 0.9}, 0.1, **said)
    rows = built.references.to_pylist()
    told = {(row["reference"], row["metric"], row["seq_len"], row["value"]) for row in rows}
    assert told == {("old", "accuracy", 64, 0.7), ("old", "accuracy", 128, 0.7)}
    (frame,) = frames(built)
    table = pivot(built, frame)
    assert table["others"] == {
        "needs no model": {64: 0.1, 128: 0.1},
        "reference: old <1.0>, not trained here": {64: 0.7, 128: 0.7},
    }
    assert {row["label"] for row in built.winners.to_pylist()} == {"lstm", "transformer"}
