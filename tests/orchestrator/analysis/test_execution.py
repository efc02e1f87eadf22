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


def test_modes_are_comparisons_of_their_own_and_adjusted_for(built: Tables) -> None:
    rows = of(built.crossovers, metric="train_step_time")
    assert len(rows) == 3
    for row in rows:
        assert row["p_adjusted"] >= row["p_value"]
    largest = max(rows, key=lambda row: row["p_value"])
    assert largest["p_adjusted"] == pytest.approx(max(r["p_adjusted"] for r in rows))


def test_a_mode_that_was_not_always_there_is_not_the_best(built: Tables) -> None:
    """Though it is faster where it was."""
    laws = {"lstm": Law(linear=2e-5), "transformer": Law(linear=3e-5)}
    quick = {label: Law(linear=1e-6) for label in laws}
    cells, envelopes = [], []
    for number, (mode, those) in enumerate({"eager": laws, "compiled": quick}.items()):
        mine = [
            replace(cell, execution=mode)
            for cell in measure_cells(those, CONTEXTS, metrics=("train_step_time",))
        ]
        made = enveloped(SimulatedWorld(laws=those).execute(mine), attempt=number + 1)
        cells += mine
        envelopes += [one for one in made if mode == "eager" or one.record.cell.round == 0]
    found = tables.build(plan_of(cells), envelopes)
    for row in of(found.summary, metric="train_step_time", execution="best"):
        (eager,) = of(
            found.summary,
            metric="train_step_time",
            execution="eager",
            label=row["label"],
            seq_len=row["seq_len"],
        )
        assert row["median"] == eager["median"]


def test_figures_and_report_name_the_mode(built: Tables, tmp_path: Any) -> None:
    drawings = list(plot.load("crossover").draw(built))
    mine = [one for one in drawings if "train_step_time" in one.name]
    assert len({one.name for one in mine}) == len(mine) == 3
    assert {one.name.rpartition("-")[2] for one in mine} == {"eager", "compiled", "best"}
    page = render(built, tmp_path)
    assert "batch 8, compiled" in page and "batch 8, each in its best mode" in page
    assert ", compiled" not in answer(built)
