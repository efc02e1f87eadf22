"""Modes of execution are compared like with like, and each label's best with the others' best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.analysis import tables
from orchestrator.analysis.tables import Tables
from orchestrator.conclusion import answer
from orchestrator.plots import plot
from orchestrator.report import render
from tests.simulated_world import (
    Law,
    SimulatedWorld,
    enveloped,
    measure_cells,
    plan_of,
)

CONTEXTS = (256, 512, 1024)
LAWS = {
    "eager": {"lstm": Law(linear=2e-5), "transformer": Law(linear=3e-5)},
    # Compiling makes one of them twice as fast, and the other a little slower.
    "compiled": {"lstm": Law(linear=2.2e-5), "transformer": Law(linear=1.5e-5)},
}


@pytest.fixture(scope="module")
def built() -> Tables:
    cells, envelopes = [], []
    for number, (mode, laws) in enumerate(LAWS.items()):
        mine = [
            replace(cell, execution=mode)
            for cell in measure_cells(laws, CONTEXTS, metrics=("train_step_time",))
        ]
        world = SimulatedWorld(laws=laws, process_noise=0.01)
        cells += mine
        envelopes += enveloped(world.execute(mine), attempt=number + 1)
    return tables.build(plan_of(cells), envelopes)


def of(table: Any, **where: object) -> list[dict[str, Any]]:
    return [
        row for row in table.to_pylist() if all(row[key] == value for key, value in where.items())
    ]


def test_each_mode_has_a_verdict_of_its_own_and_so_has_the_best(built: Tables) -> None:
    found = {
        row["execution"]: row["verdict"] for row in of(built.crossovers, metric="train_step_time")
    }
    assert found == {
        "eager": "baseline_always",
        "compiled": "challenger_always",
        "best": "challenger_always",
    }


def test_the_best_is_each_labels_own(built: Tables) -> None:
    medians = {
        (row["execution"], row["label"], row["seq_len"]): row["median"]
        for row in of(built.summary, metric="train_step_time")
    }
    for context in CONTEXTS:
        for label, mode in (("lstm", "eager"), ("transformer", "compiled")):
            assert medians["best", label, context] == medians[mode, label, context]


def test_what_restates_is_no_comparison_more(built: Tables) -> None:
    (best,) = of(built.crossovers, metric="train_step_time", execution="best")
    (eager,) = of(built.crossovers, metric="train_step_time", execution="eager")
    assert best["p_value"] is not None and best["p_adjusted"] is None
    assert eager["p_adjusted"] == pytest.approx(min(1.0, 2 * eager["p_value"]))


def test_figures_and_report_name_the_mode(built: Tables, tmp_path: Any) -> None:
    drawings = list(plot.load("crossover").draw(built))
    mine = [one for one in drawings if "train_step_time" in one.name]
    assert len({one.name for one in mine}) == len(mine) == 3
    assert {one.name.rpartition("-")[2] for one in mine} == {"eager", "compiled", "best"}
    page = render(built, tmp_path)
    assert "batch 8, compiled" in page and "batch 8, each in its best mode" in page
    assert ", compiled" not in answer(built)
