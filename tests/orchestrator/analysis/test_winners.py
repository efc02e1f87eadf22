"""Who cannot be told from the best: the set, its level, and its exceptions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from orchestrator.analysis import tables, winners
from tests.simulated_world import Law, SimulatedWorld, enveloped, measure_cells, plan_of

LAWS = {
    "lstm": Law(constant=1e-3),
    "gru": Law(constant=1.001e-3),
    "slow": Law(constant=2e-3),
    "large": Law(constant=0.5e-3, out_of_memory_from=512),
}


def found(rounds: int = 5) -> dict[tuple[str, int], dict[str, Any]]:
    cells = measure_cells(LAWS, (128, 512), rounds=rounds, metrics=("train_step_time",))
    built = tables.build(
        plan_of(cells), enveloped(SimulatedWorld(laws=LAWS, seed=1).execute(cells))
    )
    rows = [r for r in built.winners.to_pylist() if r["metric"] == "train_step_time"]
    return {(r["label"], r["seq_len"]): r for r in rows}


def test_close_labels_share_the_first_place_and_slow_ones_leave_it() -> None:
    rows = found()
    assert rows["large", 128]["best"] and rows["large", 128]["in_best_set"]
    assert not rows["lstm", 128]["in_best_set"]
    assert rows["lstm", 512]["in_best_set"] and rows["gru", 512]["in_best_set"]
    assert not rows["slow", 512]["in_best_set"]
    assert sum(rows[label, 512]["best"] for label in LAWS) == 1


def test_who_ran_out_of_memory_is_not_among_the_best() -> None:
    row = found()["large", 512]
    assert (row["median"], row["best"], row["in_best_set"]) == (None, False, False)


def test_a_reference_is_no_candidate() -> None:
    cells = measure_cells(LAWS, (128,), rounds=5, metrics=("train_step_time",))
    plan = dataclasses.replace(plan_of(cells), references=("large",))
    built = tables.build(plan, enveloped(SimulatedWorld(laws=LAWS, seed=1).execute(cells)))
    rows = {r["label"]: r for r in built.winners.to_pylist() if r["metric"] == "train_step_time"}
    assert "large" not in rows
    assert sum(row["best"] for row in rows.values()) == 1
    assert rows["lstm"]["in_best_set"] and rows["gru"]["in_best_set"]


def test_nobody_leaves_the_set_on_fewer_than_five_replicates() -> None:
    rows = found(rounds=4)
    assert all(row["in_best_set"] for row in rows.values() if row["median"] is not None)


def test_the_true_best_is_in_the_set_in_95_percent_of_draws() -> None:
    random = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        # all but equal labels are the hardest case; each round has a level of its own
        table = random.normal(0, 1, (4, 5)) + random.normal(0, 10, (1, 5))
        inside.append(winners.shortfall(table)[0] <= winners.allowance(table))
    assert 0.935 <= np.mean(inside) <= 0.965
