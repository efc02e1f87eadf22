"""The tables hold every planned cell, invent no number, and are the same for the same records."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.analysis import tables
from orchestrator.analysis.schema import SCHEMAS
from orchestrator.errors import NothingRecorded, UserError
from orchestrator.plan import Primary
from orchestrator.provenance import Envelope, Prediction
from tests.simulated_world import (
    ENVIRONMENT,
    Law,
    SimulatedWorld,
    enveloped,
    measure_cells,
    plan_of,
    train_cell,
    train_cells,
)
from workloads.measurement import Measurement

WORLD = SimulatedWorld(
    laws={
        "lstm": Law(linear=1e-5),
        "transformer": Law(linear=2e-6, quadratic=1.5e-8, out_of_memory_from=1024),
    }
)
CONTEXTS = (128, 256, 512, 1024)
CELLS = [*measure_cells(WORLD.laws, CONTEXTS), *train_cells(WORLD.laws, (128, 256))]
PLAN = plan_of(
    CELLS, primary=Primary(challenger="transformer", metric="prefill_time", batch_size=8)
)


@pytest.fixture(scope="module")
def records() -> list[Envelope]:
    return enveloped(WORLD.execute(CELLS))


@pytest.fixture(scope="module")
def built(records: list[Envelope]) -> tables.Tables:
    return tables.build(PLAN, records)


def column(table: pa.Table, name: str) -> list[object]:
    values: list[object] = table.column(name).to_pylist()
    return values


def test_every_planned_cell_has_a_row_also_before_anything_ran() -> None:
    empty = tables.build(PLAN, [])
    assert column(empty.cells, "cell_id") == [cell.id for cell in CELLS]
    assert set(column(empty.cells, "status")) == {"pending"}
    assert column(empty.cells, "train_step_time") == [None] * len(CELLS)
    assert empty.summary.num_rows == empty.crossovers.num_rows == 0
    assert empty.sweep.environment is None


def test_a_sweep_under_way_has_pending_cells_and_no_numbers_for_them(
    records: list[Envelope],
) -> None:
    half = tables.build(PLAN, records[:30])
    assert half.cells.num_rows == len(CELLS)
    assert column(half.cells, "status").count("pending") == len(CELLS) - 30
    for row in half.cells.to_pylist():
        if row["status"] == "pending":
            assert row["train_step_time"] is None and row["environment"] is None


def test_metric_columns_hold_medians_with_their_unit(
    built: tables.Tables, records: list[Envelope]
) -> None:
    assert built.cells.schema.field("train_step_time").metadata == {b"unit": b"s"}
    measured = records[0].record.measurement("train_step_time")
    assert measured is not None
    samples = sorted(measured.samples)
    row = built.cells.to_pylist()[0]
    assert row["train_step_time"] == (samples[4] + samples[5]) / 2
    assert row["parameters"] == 1_000_000 and row["implementation"] == "a formula"


def test_out_of_memory_is_a_reason_and_never_a_number(built: tables.Tables) -> None:
    rows = [r for r in built.cells.to_pylist() if r["reason"] == "out_of_memory"]
    assert {(r["label"], r["seq_len"]) for r in rows} == {("transformer", 1024)}
    assert all(r["status"] == "finished" and r["train_step_time"] is None for r in rows)
    summary = [r for r in built.summary.to_pylist() if r["reason"] == "out_of_memory"]
    assert summary and all(r["median"] is None and r["low"] is None for r in summary)


def test_no_table_holds_a_nan(built: tables.Tables) -> None:
    for name in SCHEMAS:
        table = getattr(built, name)
        for field in table.schema:
            if pa.types.is_floating(field.type):
                assert all(value is None or value == value for value in column(table, field.name))


def test_deterministic_metrics_hold_for_every_finished_round(built: tables.Tables) -> None:
    rows = [r for r in built.summary.to_pylist() if r["metric"] == "peak_memory"]
    finished = [r for r in rows if r["reason"] is None]
    assert all(r["replicates"] == 5 and r["low"] == r["high"] == r["median"] for r in finished)
    assert sum(v is not None for v in column(built.cells, "peak_memory")) == len(finished)


def test_samples_are_raw_in_order_with_unit(built: tables.Tables, records: list[Envelope]) -> None:
    record = records[0].record
    measured = record.measurement("prefill_time")
    assert measured is not None
    rows = [
        r
        for r in built.samples.to_pylist()
        if (r["cell_id"], r["metric"]) == (record.cell.id, "prefill_time")
    ]
    assert [r["value"] for r in rows] == list(measured.samples)
    assert [r["index"] for r in rows] == list(range(10))
    assert {r["unit"] for r in rows} == {"s"} and {r["step"] for r in rows} == {None}


def test_curves_have_their_own_table_and_training_curves_keep_their_steps() -> None:
    cell = train_cell(metrics=("loss_by_position", "training_loss"))
    ((_, record),) = WORLD.execute([train_cell()])
    position = Measurement(
        metric="loss_by_position",
        version=1,
        unit="nats",
        title="Loss by position",
        samples=(2.0, 1.0),
        coordinate="position",
        at=(0.0, 64.0),
    )
    training = Measurement(
        metric="training_loss",
        version=1,
        unit="nats",
        title="Loss",
        samples=(3.0, 2.0),
        steps=(1, 9),
    )
    record = replace(record, cell=cell, measurements=(position, training))
    found = tables.build(plan_of([cell]), enveloped([(cell, record)]))
    assert found.curves.to_pylist() == [
        {
            "cell_id": cell.id,
            "metric": "loss_by_position",
            "coordinate": "position",
            "at": at,
            "value": v,
        }
        for at, v in ((0.0, 2.0), (64.0, 1.0))
    ]
    assert [(r["metric"], r["step"]) for r in found.samples.to_pylist()] == [
        ("training_loss", 1),
        ("training_loss", 9),
    ]
    assert "training_loss" not in found.cells.column_names


def test_a_share_is_a_mean_with_its_binomial_interval_and_is_not_compared() -> None:
    cells = train_cells(WORLD.laws, (128,))
    solved = {("lstm", 2)} | {("transformer", seed) for seed in range(5)}
    records = []
    for cell, record in WORLD.execute(cells):
        share = Measurement(
            metric="solved",
            version=1,
            unit="1",
            title="share that solves it",
            better="greater",
            scale="share",
            samples=(float((cell.label, cell.seed) in solved),),
        )
        asked = replace(cell, metrics=("solved",))
        records.append((asked, replace(record, cell=asked, measurements=(share,))))
    found = tables.build(plan_of([cell for cell, _ in records]), enveloped(records))
    rows = {row["label"]: row for row in found.summary.to_pylist()}
    assert {label: row["median"] for label, row in rows.items()} == {"lstm": 0.2, "transformer": 1}
    assert (rows["lstm"]["low"], rows["lstm"]["high"]) == pytest.approx((0.036, 0.624), abs=5e-4)
    assert (rows["transformer"]["low"], rows["transformer"]["high"]) == pytest.approx(
        (0.566, 1), abs=5e-4
    )
    assert found.crossovers.num_rows == found.contrasts.num_rows == found.winners.num_rows == 0


def test_a_share_between_success_and_failure_is_refused() -> None:
    with pytest.raises(ValueError, match="succeeds"):
        Measurement(metric="solved", version=1, unit="1", title="", scale="share", samples=(0.5,))


def test_same_records_same_bytes_in_whatever_order(
    records: list[Envelope], built: tables.Tables, tmp_path: Path
) -> None:
    shuffled = random.Random(0).sample(records, len(records))
    tables.write(built, tmp_path / "one")
    tables.write(tables.build(PLAN, shuffled), tmp_path / "other")
    for name in SCHEMAS:
        one, other = (tmp_path / which / f"{name}.parquet" for which in ("one", "other"))
        assert one.read_bytes() == other.read_bytes(), name


def test_tables_come_back_as_they_were_written(built: tables.Tables, tmp_path: Path) -> None:
    tables.write(built, tmp_path)
    back = tables.read(tmp_path)
    assert back.sweep == built.sweep
    assert back.sweep.primary == ("transformer", "prefill_time", 8)
    for name, schema in SCHEMAS.items():
        table = getattr(back, name)
        assert table.to_pylist() == getattr(built, name).to_pylist()
        for field in schema:
            assert table.schema.field(field.name).metadata == field.metadata
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{n}.parquet" for n in SCHEMAS
    )


def test_a_missing_table_and_another_schema_are_said_clearly(
    built: tables.Tables, tmp_path: Path
) -> None:
    with pytest.raises(NothingRecorded, match="analyze"):
        tables.read(tmp_path)
    tables.write(built, tmp_path)
    path = tmp_path / "winners.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"schema": "0"}), path)
    with pytest.raises(UserError, match="schema 0, this version reads 1"):
        tables.read(tmp_path)
    path.write_bytes(b"half a file")
    with pytest.raises(UserError, match="not a table"):
        tables.read(tmp_path)


def test_the_newest_environment_is_drawn_and_no_other(records: list[Envelope]) -> None:
    new = replace(ENVIRONMENT, packages={"torch": "2.14.0"})
    later = [
        replace(e, key=f"later-{i}", record=replace(e.record, environment=new, started_at=2e9))
        for i, e in enumerate(records[:4])
    ]
    found = tables.build(PLAN, [*records, *later])
    assert found.sweep.environment == new.fingerprint
    assert set(found.sweep.environments) == {ENVIRONMENT.fingerprint, new.fingerprint}
    rows = found.cells.to_pylist()
    assert len(rows) == len(CELLS)
    assert sum(r["status"] == "finished" for r in rows) == 4
    pending = [r for r in rows if r["status"] == "pending"]
    assert {r["message"] for r in pending} == {"measured in another environment only"}


def test_failures_keep_their_row_and_their_message(records: list[Envelope]) -> None:
    failed = replace(
        records[0].record, status="failed", measurements=(), message="boom", traceback="..."
    )
    envelope = replace(records[0], record=failed, prediction=Prediction(seconds=2.0, peak_bytes=9))
    row = tables.build(PLAN, [envelope]).cells.to_pylist()[0]
    assert (row["status"], row["message"], row["attempts"]) == ("failed", "boom", 1)
    assert (row["predicted_seconds"], row["predicted_peak_bytes"]) == (2.0, 9)
    assert row["train_step_time"] is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_shares_are_of_what_the_device_reached_when_the_sweep_began(precision: str) -> None:
    cells = measure_cells(WORLD.laws, [256], rounds=5)
    cells = [replace(cell, precision=precision) for cell in cells]
    ceilings = {"flops_per_second": 7e9, "bytes_per_second": 1e9, "bfloat16_flops_per_second": 7e9}
    products = "flops_per_second" if precision == "float32" else "bfloat16_flops_per_second"
    ceilings[products] = 1e9
    made = [
        replace(
            one,
            ceilings=ceilings if one.record.cell.round else None,
            record=replace(one.record, facts={**one.record.facts, "train_step_flops": 2e6}),
        )
        for one in enveloped(WORLD.execute(cells))
    ]
    rows = tables.build(plan_of(cells), made).cells.to_pylist()
    assert all(row["bandwidth_share"] is None for row in rows)
    for row in rows:
        share = row["flops_share"]
        assert (
            share is None
            if not row["round"]
            else share == pytest.approx(2e-3 / row["train_step_time"])
        )


def test_run_ids_stand_beside_their_cells(records: list[Envelope]) -> None:
    run_ids = {(CELLS[3].id, ENVIRONMENT.fingerprint): "abc"}
    found = column(tables.build(PLAN, records, run_ids).cells, "run_id")
    assert found[3] == "abc" and set(found) == {"abc", None}


def test_records_of_no_planned_cell_are_not_in_the_tables(records: list[Envelope]) -> None:
    smaller = plan_of(CELLS[:10])
    assert tables.build(smaller, records).cells.num_rows == 10


def test_derived_metrics_are_columns_joined_at_label_size_and_length(
    built: tables.Tables,
) -> None:
    rows = [r for r in built.cells.to_pylist() if r["kind"] == "measure"]
    for row in rows:
        step, speed = row["train_step_time"], row["train_tokens_per_second"]
        assert (step is None) == (speed is None)
        if step is not None:
            assert speed == pytest.approx(8 * row["seq_len"] / step)
        joined = row["seq_len"] in (128, 256)
        assert row["train_time"] == (pytest.approx(2e6 / speed) if joined else None)
    throughput = [r for r in built.summary.to_pylist() if r["metric"] == "train_tokens_per_second"]
    assert {r["better"] for r in throughput} == {"greater"}
    assert {r["reason"] for r in throughput} == {None, "out_of_memory"}
