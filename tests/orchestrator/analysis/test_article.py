"""The article's figures stand beside measured ones: the right ratio, with its noise, where enough
of them were measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import report
from orchestrator.analysis import article, tables
from orchestrator.analysis.tables import Tables
from tests.simulated_world import (
    Law,
    SimulatedWorld,
    enveloped,
    measure_cells,
    plan_of,
    train_cells,
)
from workloads.cell import Cell
from workloads.measurement import Measurement

Spoil = Callable[[Cell, Measurement], Measurement]


def _same(cell: Cell, found: Measurement) -> Measurement:
    return found


LAWS = {"lstm": Law(linear=3e-5), "gru": Law(linear=2e-5), "transformer": Law(linear=1e-5)}


def built(*metrics: str, batches: tuple[int, ...] = (8, 4), spoilt: Spoil = _same) -> Tables:
    """Two training lengths and two batches; times follow the laws, and so do, for this test, the
    seconds to decode a token, but for what `spoilt` makes of the GRU's."""
    world = SimulatedWorld(laws=LAWS, process_noise=0.01)
    asked = ("train_step_time", *metrics)
    cells = measure_cells(LAWS, (256, 512), batch_sizes=batches, metrics=("train_step_time",))
    made = [
        replace(
            one,
            record=replace(
                one.record,
                measurements=(
                    *one.record.measurements,
                    *(
                        spoilt(one.record.cell, _as(one.record.measurements[0], name))
                        for name in asked[1:]
                    ),
                ),
            ),
        )
        for one in enveloped(world.execute(cells))
    ]
    trained = train_cells(LAWS, (256, 512))
    return tables.build(
        plan_of([*cells, *trained]), [*made, *enveloped(world.execute(trained), attempt=2)]
    )


def _as(time: Measurement, name: str) -> Measurement:
    return replace(time, metric=name, title=name)


def test_each_figure_is_a_ratio_at_the_longest_context_and_the_articles_batch() -> None:
    rows = built("decode_time", "peak_memory").article.to_pylist()
    found = {(row["metric"], row["label"]): row for row in rows}
    assert set(found) == {
        (metric, label)
        for metric in ("decode_time", "peak_memory", "train_time")
        for label in ("lstm", "gru", "transformer")
    }
    assert {(row["seq_len"], row["batch"]) for row in rows} == {(512, "4")}
    lstm = found["train_time", "lstm"]
    truth = LAWS["lstm"].value("train_step_time", 512, 4) / LAWS["transformer"].value(
        "train_step_time", 512, 4
    )
    assert lstm["ratio"] == pytest.approx(truth, rel=0.03)
    assert lstm["low"] < lstm["ratio"] < lstm["high"]
    assert lstm["article_ratio"] == pytest.approx(47 / 9)
    assert found["decode_time", "gru"]["article_ratio"] == pytest.approx(11 / 23)
    itself = found["train_time", "transformer"]
    assert itself["value"] > 0 and itself["ratio"] == itself["article_ratio"] == 1.0
    assert itself["low"] is itself["high"] is None


@pytest.mark.parametrize(
    ("change", "reason", "value"),
    [
        ({"samples": (0.0,)}, "one of the two is zero", 0.0),
        ({"samples": (), "reason": "out_of_memory", "detail": "x"}, "out_of_memory", None),
    ],
)
def test_what_has_no_ratio_has_a_reason(
    change: dict[str, Any], reason: str, value: float | None, tmp_path: Path
) -> None:
    def spoilt(cell: Cell, found: Measurement) -> Measurement:
        of_gru = cell.label == "gru" and found.metric == "decode_time"
        return replace(found, **change) if of_gru else found

    made = built("decode_time", "peak_memory", spoilt=spoilt)
    rows = {(row["metric"], row["label"]): row for row in made.article.to_pylist()}
    row = rows["decode_time", "gru"]
    assert (row["ratio"], row["reason"], row["value"]) == (None, reason, value)
    assert rows["decode_time", "lstm"]["ratio"] and not rows["decode_time", "lstm"]["reason"]
    assert reason.replace("_", " ") in report.render(made, tmp_path)


def test_too_few_figures_are_no_table() -> None:
    assert built("decode_time").article.num_rows == 0


def test_the_articles_figures_are_of_metrics_that_there_are() -> None:
    assert set(article.FIGURES) == {
        "train_time",
        "max_seq_len",
        "bleu",
        "peak_memory",
        "decode_time",
    }
