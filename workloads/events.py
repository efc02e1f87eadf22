"""What a running cell says, one line of JSON an event, and how its events become a record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from workloads import registry
from workloads.cell import Cell, Scalar
from workloads.environment import Environment
from workloads.measurement import Measurement, Reason
from workloads.record import RunRecord


@dataclass(frozen=True, slots=True)
class Started:
    """A phase begins: the metric now measured, or `data`, `training`."""

    metric: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The model and run as they were built; later facts add to earlier ones."""

    values: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the present phase has come; said a few times a second at most."""

    step: int
    of: int


Event = Started | Facts | Progress | Measurement
_KINDS: dict[str, type[Started] | type[Facts] | type[Progress]] = {
    "started": Started,
    "facts": Facts,
    "progress": Progress,
}


def encode(event: Event) -> str:
    """The event as one line of JSON, without the newline. NaN and infinity are refused."""
    if isinstance(event, Measurement):
        content = {"event": "measurement", **event.to_dict()}
    else:
        content = {"event": type(event).__name__.lower(), **asdict(event)}
    return json.dumps(content, allow_nan=False)


def decode(line: str) -> Event:
    """The event that `encode` wrote. Raises ValueError."""
    try:
        content = dict(json.loads(line))
        kind = content.pop("event")
        if kind == "measurement":
            return Measurement.from_dict(content)
        return _KINDS[kind](**content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"event is not readable: {error!r} in {line[:200]!r}") from None


def assemble(
    cell: Cell,
    events: Iterable[Event],
    *,
    environment: Environment,
    started_at: float,
    seconds: float,
    missing: Reason | None = None,
    detail: str | None = None,
    error: tuple[str, str | None] | None = None,
) -> RunRecord:
    """The record of one attempt from what it said, whole or cut short.

    Measurements stand in the order asked, by-products after them; of several of one metric (a curve
    that grows) the newest counts. A metric asked for and not measured gets `missing` as its reason,
    with `detail`. The record is `failed` where there is an `error` (message, traceback), or where a
    metric is missing for no stated reason. What was measured before is kept in every case.
    """
    facts: dict[str, Scalar] = {}
    found: dict[str, Measurement] = {}
    for event in events:
        if isinstance(event, Facts):
            facts.update(event.values)
        elif isinstance(event, Measurement):
            found[event.metric] = event
    absent = [name for name in cell.metrics if name not in found]
    if error is None and missing is None and absent:
        error = (f"the cell ended without a word on {', '.join(absent)}", None)
    if error is None and missing is not None:
        found |= {m.metric: m for m in unmeasured(cell, absent, missing, detail)}
    order = [*cell.metrics, *(name for name in found if name not in cell.metrics)]
    return RunRecord(
        cell=cell,
        status="finished" if error is None else "failed",
        environment=environment,
        measurements=tuple(found[name] for name in order if name in found),
        facts=facts,
        started_at=started_at,
        seconds=seconds,
        message=None if error is None else error[0],
        traceback=None if error is None else error[1],
    )


def unmeasured(
    cell: Cell, metrics: Iterable[str], reason: Reason, detail: str | None
) -> Iterator[Measurement]:
    """These metrics of the cell, each without samples for one reason."""
    for name in metrics:
        metric = registry.metric(cell.task, name)
        yield metric.measurement(name, reason=reason, detail=detail)
