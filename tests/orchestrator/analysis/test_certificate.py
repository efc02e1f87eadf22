"""The fairness certificate: a fair comparison holds in every clause, what is broken is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from orchestrator.analysis import tables
from orchestrator.analysis.certificate import implementation
from orchestrator.analysis.tables import Tables
from orchestrator.conclusion import answer
from orchestrator.plan import Primary
from orchestrator.provenance import Envelope
from orchestrator.search import Edge, Search, Trial
from tests.orchestrator.made_records import envelope, timed
from tests.simulated_world import measure_cells, plan_of, train_cell, train_cells
from workloads import conditions, neighbours, sizing
from workloads.cell import Cell
from workloads.measurement import Measurement

CONTEXTS = (64, 128, 256, 512)
WAITED, WITHHELD, BUSY, SLOWED, SM_CLOCK = (
    conditions.fact(name, "train_step_time")
    for name in (
        *(neighbours.WAITED, neighbours.WITHHELD),
        *(conditions.BUSY, conditions.SLOWED, conditions.SM_CLOCK),
    )
)
ARITHMETIC = conditions.fact("arithmetic", "train_step_time")
Break = Callable[[Envelope], Envelope]


def timing(broken: Break = lambda one: one, noise: float = 0.01, device: str = "cpu:1") -> Tables:
    """Tables of two labels that are measured alike, but for how `broken` changes the challenger."""
    cells = measure_cells(("lstm", "gru"), CONTEXTS, metrics=("train_step_time",))
    cells = [replace(cell, device=device) for cell in cells]
    return _built(cells, broken, "train_step_time", 8, lambda cell: 1.0 + noise * _swing(cell))


def learning(broken: Break = lambda one: one, searches: tuple[Search, ...] = ()) -> Tables:
    """The same of two that learn."""
    cells = train_cells(("lstm", "gru"), CONTEXTS)
    return _built(
        cells, broken, "validation_loss", None, lambda cell: 1.0 + 0.01 * _swing(cell), searches
    )


def search(
    label: str,
    trials: int = 4,
    edge: Edge | None = None,
    is_check: bool = False,
    values: Sequence[float | None] = (),
) -> Search:
    """A search that is over; `values` are those of its trials, else all alike."""
    trials = len(values) or trials
    cells = [
        replace(train_cell(label=label), kind="tune", study="s", trial=number + 1)
        for number in range(trials)
    ]
    return Search(
        label=label,
        size=cells[0].size,
        seq_len=cells[0].seq_len,
        metric="validation_loss",
        better="smaller",
        low=1e-4,
        high=1e-1,
        trials=tuple(
            Trial(
                cell=cell,
                stage="check" if is_check else "range",
                value=value,
                reason="diverged" if value is None else None,
            )
            for cell, value in zip(cells, values or [1.0] * trials, strict=True)
        ),
        chosen={"learning_rate": 1e-3},
        at_edge=edge,
        is_check=is_check,
    )


def check(label: str, *values: float | None) -> Search:
    """Of half the rate, the rate, its double."""
    return search(label, is_check=True, values=values)


def _swing(cell: Cell) -> float:
    return (-1.0) ** (cell.replicate + (cell.label == "gru")) * (1 + cell.seq_len / 1024)


def _built(
    cells: list[Cell],
    broken: Break,
    metric: str,
    batch: int | None,
    value: Callable[[Cell], float],
    searches: tuple[Search, ...] = (),
) -> Tables:
    envelopes = []
    for cell in cells:
        seconds = value(cell)
        found = [timed("train_step_time", seconds)]
        if metric == "validation_loss":
            found = [
                Measurement(
                    metric=metric,
                    version=1,
                    unit="nats/token",
                    title="Validation loss",
                    samples=(seconds,),
                )
            ]
        made = envelope(cell, *found)
        order = f"order of seed {cell.seed} at {cell.seq_len}"
        made = _with_facts(made, data_order=order, kernel_class="fused", **{WAITED: 0.0})
        made = _with_facts(
            made, flops_per_token=100.0, **{BUSY: 0.9, SLOWED: 0.0, SM_CLOCK: 1.98e9}
        )
        envelopes.append(broken(made) if cell.label == "gru" else made)
    primary = Primary(challenger="gru", metric=metric, batch_size=batch)
    return tables.build(replace(plan_of(cells, primary=primary), searches=searches), envelopes)


def _with_facts(one: Envelope, **facts: Any) -> Envelope:
    return replace(one, record=replace(one.record, facts={**one.record.facts, **facts}))


def clauses(built: Tables, metric: str) -> dict[str, bool | None]:
    rows = [row for row in built.certificate.to_pylist() if row["metric"] == metric]
    assert {row["challenger"] for row in rows} == {"gru"}
    return {row["clause"]: row["holds"] for row in rows}


def test_a_fair_timing_holds_in_every_clause_and_nothing_is_said_of_it() -> None:
    built = timing()
    assert clauses(built, "train_step_time") == dict.fromkeys(
        (
            *("parameters", "FLOPs per token", "kernel class", "precision", "device", "noise"),
            "quiet machine",
        ),
        True,
    )
    assert "fair" not in answer(built)


def test_rates_that_nobody_tuned_are_said_of_whoever_learns() -> None:
    built = learning()
    found = clauses(built, "validation_loss")
    assert found.pop("tuning budget") is False
    assert found == dict.fromkeys(
        (
            *("parameters", "FLOPs per token", "data order", "training tokens"),
            *("precision", "device"),
        ),
        True,
    )
    assert "Not as fair as it should be: tuning budget (learning rates " in answer(built)


@pytest.mark.parametrize(
    ("clause", "broken"),
    [
        ("parameters", lambda one: _with_facts(one, parameters=1_030_000)),
        ("kernel class", lambda one: _with_facts(one, kernel_class="chunked")),
        ("kernel class", lambda one: _with_facts(one, kernel_class=None)),
        ("quiet machine", lambda one: _with_facts(one, **{WAITED: 0.2})),
        ("quiet machine", lambda one: _with_facts(one, **{WITHHELD: 0.2})),
        ("quiet machine", lambda one: _with_facts(one, **{WAITED: None})),
        ("precision", lambda one: _with_facts(one, **{ARITHMETIC: "bfloat16"})),
        ("device", lambda one: _with_facts(one, float32_products="tf32")),
        ("device", lambda one: _with_facts(one, denormals="kept")),
        ("FLOPs per token", lambda one: _with_facts(one, flops_per_token=None)),
    ],
)
def test_what_is_broken_of_a_timing_is_named(clause: str, broken: Break) -> None:
    found = clauses(timing(broken), "train_step_time")
    assert {name for name, holds in found.items() if not holds} == {clause}


def test_a_fair_timing_on_an_accelerator_has_two_clauses_more() -> None:
    on_cpu, on_gpu = (
        clauses(timing(device=device), "train_step_time") for device in ("cpu:1", "nvidia-h100")
    )
    assert on_gpu == on_cpu | {"clocks": True, "device busy": True}


@pytest.mark.parametrize(
    ("clause", "holds", "facts", "said"),
    [
        ("clocks", False, {SM_CLOCK: 1.2e9}, "1.20 and 1.98 GHz; 0 of 40 cells were slowed"),
        ("clocks", False, {SLOWED: 0.3}, "1.98 and 1.98 GHz; 20 of 40 cells were slowed by heat"),
        ("clocks", None, {SM_CLOCK: None}, "not on record: nvidia-ml-py was not there"),
        ("device busy", False, {BUSY: 0.2}, "20 % and 90 % of a call: launch-bound"),
        ("device busy", None, {BUSY: None}, "not on record"),
    ],
)
def test_what_is_broken_of_a_timing_on_an_accelerator_is_named(
    clause: str, holds: bool | None, facts: dict[str, Any], said: str
) -> None:
    built = timing(lambda one: _with_facts(one, **facts), device="nvidia-h100")
    found = clauses(built, "train_step_time")
    assert {name: one for name, one in found.items() if not one} == {clause: holds}
    opening = "Not known to be fair" if holds is None else "Not as fair as it should be"
    assert f"{opening}: {clause} ({said}" in answer(built)


def test_a_verdict_between_kernels_of_two_kinds_is_said_to_be_on_implementations() -> None:
    built = timing(lambda one: _with_facts(one, kernel_class="sequential"))
    assert answer(built).startswith(
        "Implementations, not architectures, are compared (sequential and fused: torch and torch)."
    )


def test_without_a_primary_comparison_the_broken_clauses_are_said_all_the_same() -> None:
    built = timing(lambda one: _with_facts(one, parameters=1_030_000, kernel_class="chunked"))
    rows = [row for row in built.crossovers.to_pylist() if row["metric"] == "train_step_time"]
    for fair in ([], [row | {"challenger": "mamba"} for row in rows]):
        crossovers = pa.Table.from_pylist(rows + fair, built.crossovers.schema)
        sweep = replace(built.sweep, primary=None)
        told = answer(replace(built, sweep=sweep, crossovers=crossovers))
        whom = " for gru (kernels of two kinds)." if fair else " (chunked and fused: "
        assert told.startswith(f"Implementations, not architectures, are compared{whom}")
    assert told.endswith("Not as fair as it should be: parameters (gru).")


def test_noise_is_named() -> None:
    built = timing(noise=0.08)
    assert {n for n, holds in clauses(built, "train_step_time").items() if not holds} == {"noise"}
    assert "noise (" in answer(built)


@pytest.mark.parametrize(
    ("clause", "broken"),
    [
        ("data order", lambda one: _with_facts(one, data_order="another")),
        ("parameters", lambda one: _with_facts(one, parameters=970_000)),
    ],
)
def test_what_is_broken_of_a_training_is_named(clause: str, broken: Break) -> None:
    found = clauses(learning(broken), "validation_loss")
    assert {name for name, holds in found.items() if holds is False} == {clause, "tuning budget"}


TUNED = "tuning budget", "optimum inside the range"


@pytest.mark.parametrize(
    ("ours", "theirs", "broken"),
    [
        (search("gru"), search("lstm"), set()),
        (search("gru", trials=5), search("lstm"), {TUNED[0]}),
        (search("gru", edge="low"), search("lstm"), {TUNED[1]}),
        (search("gru"), search("lstm", edge="high"), {TUNED[1]}),
    ],
)
def test_tuning_is_by_equal_means_and_inside_its_range(
    ours: Search, theirs: Search, broken: set[str]
) -> None:
    built = learning(searches=(ours, theirs))
    found = clauses(built, "validation_loss")
    assert {name for name, holds in found.items() if holds is False} == broken
    assert {found[name] for name in set(TUNED) - broken} <= {True}
    assert (not broken) == ("fair" not in answer(built))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (check("gru", 1.1, 1.0, 1.2), check("lstm", 1.1, 1.0, 1.2), None),
        (check("gru", 1.0, 1.0, 1.0), check("lstm", 1.1, 1.0, None), None),
        (check("gru", 1.2, 1.1, 1.0), check("lstm", 1.1, 1.0, 1.2), "gru: the double is best at"),
        (check("gru", 1.1, 1.0, 1.2), check("lstm", 0.9, 1.0, 1.2), "lstm: the half is best at"),
        (check("gru", 1.1, None, None), check("lstm", 1.1, 1.0, 1.2), "gru: the half is best at"),
    ],
)
def test_the_best_rate_of_a_length_is_the_one_that_was_found(
    ours: Search, theirs: Search, said: str | None
) -> None:
    built = learning(searches=(search("gru"), search("lstm"), ours, theirs))
    (row,) = [row for row in built.certificate.to_pylist() if row["clause"] == TUNED[1]]
    assert row["holds"] is (said is None)
    assert (said or "0.001 to 0.001, of 0.0001 to 0.1") in row["figure"]
    assert said is None or f"{TUNED[1]} ({said} {ours.seq_len}" in answer(built)


def _cells_of(label: str, cells: list[Cell], **changes: Any) -> list[Cell]:
    return [replace(cell, **changes) if cell.label == label else cell for cell in cells]


@pytest.mark.parametrize(
    ("clause", "changes"),
    [("training tokens", {"tokens": 123_456}), ("precision", {"precision": "bfloat16"})],
)
def test_cells_that_were_asked_for_unlike_are_named(clause: str, changes: dict[str, Any]) -> None:
    cells = _cells_of("gru", train_cells(("lstm", "gru"), CONTEXTS), **changes)
    built = _built(cells, lambda one: one, "validation_loss", None, lambda cell: 1.0)
    found = clauses(built, "validation_loss")
    assert {name for name, holds in found.items() if holds is False} == {clause, "tuning budget"}


def test_it_asks_no_more_of_parameters_than_the_solver_promises() -> None:
    assert implementation.PARAMETERS == sizing.TOLERANCE
