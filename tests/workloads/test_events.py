"""What a cell says survives the pipe, and a record can be made of any part of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workloads.tiny_cells import measure_cell
from workloads import registry
from workloads.environment import describe
from workloads.events import Event, Facts, Progress, Started, assemble, decode, encode
from workloads.measurement import Measurement
from workloads.record import RunRecord

CELL = measure_cell(metrics=("decode_time", "prefill_time"))


def taken(name: str, *samples: float) -> Measurement:
    return registry.metric(CELL.task, name).measurement(name, samples)


def curve(*samples: float) -> Measurement:
    return Measurement(
        metric="training_loss",
        version=1,
        unit="nats per token",
        title="training loss",
        samples=samples,
        steps=tuple(range(1, len(samples) + 1)),
    )


def record_of(*events: Event, **how: object) -> RunRecord:
    environment = describe(CELL.device)
    return assemble(CELL, events, environment=environment, started_at=1.0, seconds=2.0, **how)  # type: ignore[arg-type]  # a test passes any of the endings


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
finite = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1).map(tuple)
events = st.one_of(
    st.text().map(Started),
    st.dictionaries(
        st.text(), scalars.filter(lambda v: v not in (float("inf"), -float("inf")))
    ).map(Facts),
    st.builds(Progress, st.integers(), st.integers()),
    finite.map(lambda samples: taken("decode_time", *samples)),
    finite.map(lambda samples: curve(*samples)),
)


@given(events)
def test_an_event_survives_the_pipe(event: Event) -> None:
    line = encode(event)
    assert "\n" not in line
    assert decode(line) == event


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"event": "gossip"}', '{"event": "started"}'])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        decode(line)


def test_measurements_stand_in_the_order_asked_and_by_products_follow() -> None:
    record = record_of(curve(3.0), taken("prefill_time", 2.0), taken("decode_time", 1.0))
    assert [m.metric for m in record.measurements] == [*CELL.metrics, "training_loss"]
    assert record.status == "finished"


def test_the_newest_of_a_growing_curve_counts() -> None:
    record = record_of(curve(3.0), curve(3.0, 2.0), missing="timeout")
    assert record.measurement("training_loss") == curve(3.0, 2.0)


def test_a_deadline_leaves_what_was_measured_and_a_reason_for_the_rest() -> None:
    record = record_of(
        Facts({"d_model": 16}), taken("decode_time", 1.0), missing="timeout", detail="after 5 s"
    )
    assert record.status == "finished"
    assert record.measurement("decode_time") == taken("decode_time", 1.0)
    absent = record.measurement("prefill_time")
    assert absent is not None
    assert (absent.samples, absent.reason, absent.detail) == ((), "timeout", "after 5 s")
    assert record.facts == {"d_model": 16}


def test_an_error_keeps_what_was_measured_and_invents_nothing() -> None:
    record = record_of(taken("prefill_time", 1.0), error=("KeyError: 'x'", "Traceback ..."))
    assert (record.status, record.message) == ("failed", "KeyError: 'x'")
    assert [m.metric for m in record.measurements] == ["prefill_time"]


def test_a_metric_that_is_missing_for_no_reason_is_a_failure() -> None:
    record = record_of(taken("prefill_time", 1.0))
    assert record.status == "failed"
    assert record.message == "the cell ended without a word on decode_time"


def test_the_record_survives_json() -> None:
    record = record_of(taken("decode_time", 1.0), curve(2.0), missing="out_of_memory")
    assert RunRecord.from_dict(json.loads(record.to_json())) == record
