"""What the MLflow run of one cell says: params, metrics, tags and `record.json`, in plain values.

Params are the fields that make the cell's id, for params can never change and an id never does.
What may change between attempts (limits, the metrics asked, what was built) is a tag. A metric is a
median, or a curve with its real steps; the raw samples are in `record.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from orchestrator.journal import Merged
from orchestrator.provenance import Envelope
from workloads.cell import Cell, canonical_json
from workloads.measurement import Measurement
from workloads.record import RECORD_SCHEMA

RECORD_FILE = "record.json"
RECORD_TAG = "record_sha256"
NEXT_RECORD_TAG = "next_record_sha256"
"""Said before a complete `record.json` is replaced, so that either one is known again."""
RECORDS_TAG = "records"
PARENT_TAG = "mlflow.parentRunId"
RUN_STATUS = {"finished": "FINISHED", "failed": "FAILED", "lost": "KILLED"}
"""MLflow's word for each status: a limit reached is a result, so it is FINISHED."""

CURVE_POINTS = 500
"""At most so many points of a curve go to MLflow, evenly chosen, the last among them."""


class Point(NamedTuple):
    """One metric value with its step, and its original time in Unix milliseconds: MLflow keeps one
    row however often the same point is sent."""

    key: str
    value: float
    step: int
    timestamp: int


def milliseconds(seconds: float) -> int:
    """Unix time as MLflow counts it."""
    return round(seconds * 1000)


def metric_key(name: str) -> str:
    """A name that every MLflow store takes: letters, digits and `_-. :/`, at most 250
    characters."""
    return re.sub(r"[^\w\-. :/]+", "-", name, flags=re.ASCII)[:250]


def revision(merged: Merged) -> str:
    """Which records a run holds: their number and the newest one's key. A record that comes later,
    even one that ended earlier, changes it."""
    return f"{len(merged.envelopes)}:{merged.newest.key}"


def name(cell: Cell) -> str:
    """A run's name for people: `lstm 512 x 8 round 0`, `lstm 512 seed 1`."""
    if cell.kind == "measure":
        mode = "" if cell.execution == "eager" else f" {cell.execution}"
        return f"{cell.label} {cell.seq_len} x {cell.batch_size}{mode} round {cell.round}"
    if cell.kind == "tune":
        return f"{cell.label} {cell.seq_len} trial {cell.trial} of {cell.study}"
    return f"{cell.label} {cell.seq_len} seed {cell.seed}"


def params(cell: Cell) -> dict[str, str]:
    """The fields that decide the cell's numbers, as text; options one by one."""
    fields = cell.to_dict()
    for left_out in ("schema", "metrics", "limits", "batch_tokens"):
        del fields[left_out]
    for group in ("options", "task_options", "shell", "optimiser"):
        fields.update({f"{group}.{key}": value for key, value in fields.pop(group).items()})
    return {metric_key(key): _param(value) for key, value in fields.items() if value is not None}


def _param(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def times(merged: Merged) -> dict[str, int]:
    """When each record ended, by its key, in Unix milliseconds. MLflow shows the value of the
    latest time, so a newer record has a later one whatever its machine's clock said."""
    said: dict[str, int] = {}
    last = -1
    for envelope in merged.envelopes:
        last = max(milliseconds(envelope.finished_at), last + 1)
        said[envelope.key] = last
    return said


def points(merged: Merged) -> Iterator[Point]:
    """The medians and curves of a cell. A metric without samples has none: absence is no number."""
    ended = times(merged)
    for metric, measurement in merged.measurements.items():
        timestamp = ended[merged.origin[metric].key]
        for key, step, value in _values(measurement):
            yield Point(metric_key(key), value, step, timestamp)


def _values(measurement: Measurement) -> Iterator[tuple[str, int, float]]:
    samples, metric = measurement.samples, measurement.metric
    if measurement.steps is not None:
        yield from _thinned([(metric, *at) for at in zip(measurement.steps, samples, strict=True)])
    elif measurement.at is not None:
        key = f"{metric}/{measurement.coordinate}"
        whole = zip(measurement.at, samples, strict=True)
        yield from _thinned([(key, int(at), value) for at, value in whole if at == int(at)])
    elif samples:
        yield metric, 0, statistics.median(samples)


def _thinned(curve: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    if len(curve) <= CURVE_POINTS:
        return curve
    last = len(curve) - 1
    return [curve[index * last // (CURVE_POINTS - 1)] for index in range(CURVE_POINTS)]


def identity(cell_id: str, environment: str, parent: str) -> dict[str, str]:
    """The tags by which a run is found again."""
    return {"cell_id": cell_id, "environment": environment, PARENT_TAG: parent}


def tags(merged: Merged) -> dict[str, str]:
    """What may differ between attempts, and where the newest one came from."""
    cell, newest = merged.cell, merged.newest
    limits = cell.limits
    said: dict[str, Any] = {
        "mlflow.runName": name(cell),
        "kind": cell.kind,
        "spec_hash": newest.spec_hash,
        "status": merged.status,
        "reason": merged.reason or "",
        "message": newest.record.message or "",
        "device_name": merged.environment.device_name,
        "schema": RECORD_SCHEMA,
        "git_commit": newest.source.commit or "",
        "git_dirty": newest.source.dirty,
        "source_hash": newest.source.hash,
        "attempt": newest.attempt,
        "node": newest.node,
        "metrics": ", ".join(merged.measurements),
        "limits.cell_seconds": limits.cell_seconds,
        "limits.memory_bytes": limits.memory_bytes,
        **{f"facts.{key}": value for key, value in merged.facts.items()},
    }
    return {metric_key(key): _text(value) for key, value in said.items()}


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 4000 else text[:3999] + "…"


def record_json(merged: Merged) -> bytes:
    """The newest envelope, whole, with the cell's other records under `earlier`, oldest first."""
    *earlier, newest = merged.envelopes
    content = {**newest.to_dict(), "earlier": [envelope.to_dict() for envelope in earlier]}
    return canonical_json(content).encode()


def sha256(content: bytes) -> str:
    """The digest by which content is known again, in hex."""
    return hashlib.sha256(content).hexdigest()


def read_record(content: bytes, tags: Mapping[str, str]) -> list[Envelope]:
    """The envelopes in the `record.json` of a run with these tags.

    Raises:
        ValueError: the content is not what its tag says, or no record of this version.
    """
    digest = sha256(content)
    if digest not in (tags[RECORD_TAG], tags.get(NEXT_RECORD_TAG)):
        raise ValueError(f"its SHA-256 is {digest[:12]}, its tag says {tags[RECORD_TAG][:12]}")
    data = json.loads(content)
    try:
        return [Envelope.from_dict(one) for one in (*data.get("earlier", ()), data)]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"is not a record: {error!r}") from None
