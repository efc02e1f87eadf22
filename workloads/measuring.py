"""The metrics of a measure cell, one after the other: each with the conditions it was taken under,
once more where others disturbed it, and a reason where a limit stopped it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from workloads import conditions, environment, execution, neighbours, occupancy, registry
from workloads.events import Event, Facts, Started
from workloads.measurement import Measurement
from workloads.oom import out_of_memory
from workloads.plugins import Metric, Unsupported
from workloads.subject import Subject

REPEATED = 0.1
"""Of the cell's deadline, what a metric that is taken once more may have taken."""

_LAUNCHED = {
    "eager": "",
    "compiled": ", compiled by TorchInductor",
    "graph": ", launched as a CUDA graph",
}
"""What a way of execution adds to the name of the code."""


def measured(subject: Subject) -> Iterator[Event]:
    """Each metric that the cell asks for, in its turn, and under which conditions it was taken."""
    asked = {name: registry.metric(subject.cell.task, name) for name in subject.cell.metrics}
    stolen = neighbours.stolen_seconds()
    clock = time.monotonic()
    seconds: dict[str, float] = {}
    for name in sorted(asked, key=lambda name: asked[name].turn):
        yield Started(name)
        yield from _code(subject, name, asked[name])
        for event in _undisturbed(subject, name, asked[name]):
            if isinstance(event, Measurement) and event.reason is None:
                seconds[name] = statistics.median(event.samples)
            yield event
    withheld = neighbours.stolen_seconds() - stolen
    yield Facts({"stolen_share": withheld / max(1e-9, time.monotonic() - clock)})
    if subject.cell.execution != "eager":
        yield Facts({"graph_breaks": execution.breaks()})
    if subject.device.type == "cuda":
        yield from _occupancy(subject, {name: (asked[name], seconds[name]) for name in seconds})


def _code(subject: Subject, name: str, metric: Metric) -> Iterator[Facts]:
    """Which code a metric times, where it is not that of training and prefill, launched one
    operation at a time. No library has a kernel for one token that takes a state of ours."""
    ran, kind = subject.built.implementation, subject.built.kernel_class
    step = "torch, step form"
    if metric.code == "step":
        ran, kind = step, "step"
    elif metric.code == "both":
        ran, kind = f"{ran}, then {step}", f"{kind}, then step"
    elif metric.code == "graph":
        ran, kind = f"ONNX Runtime {environment.version_of('onnxruntime')}", "graph"
    launched = _LAUNCHED[subject.cell.execution] if metric.by_execution else ""
    if ran is not None and ran + launched != subject.built.implementation:
        yield Facts(
            {
                conditions.fact("implementation", name): ran + launched,
                conditions.fact("kernel_class", name): kind,
            }
        )


def _occupancy(subject: Subject, timed: Mapping[str, tuple[Metric, float]]) -> Iterator[Facts]:
    """How busy the calls that took so many seconds keep the device, where that can be seen: what
    fails here takes nothing from the record."""
    for name, (metric, seconds) in timed.items():
        if metric.once is None:
            continue
        try:
            busy = occupancy.busy_seconds(metric.once(subject), subject.device)
        except Exception as error:
            yield Facts({"not_profiled": str(error)})
            return
        yield Facts({conditions.fact(conditions.BUSY, name): busy / seconds})
        subject.free()


def _undisturbed(subject: Subject, name: str, metric: Metric) -> Iterator[Event]:
    """The metric, and the conditions of its timed calls. Where they were without a core, or their
    device slowed, for more of their time than they may, the metric is taken once more, if it is
    short, and the quieter of the two counts: what is said later takes the place of what was said
    before."""
    clock = time.monotonic()
    found, under = _timed(subject, name, metric)
    yield found
    if not under:
        return
    yield _conditions(name, under)
    short = time.monotonic() - clock < REPEATED * subject.cell.limits.cell_seconds
    if _lost(under) > neighbours.DISTURBED and found.reason is None and short:
        yield Facts({conditions.fact("repeated", name): True})
        again, then = _timed(subject, name, metric)
        if again.reason is None and then and _lost(then) < _lost(under):
            yield again
            yield _conditions(name, then)


def _lost(under: Mapping[str, float]) -> float:
    """The share of their time in which calls were without a core, or their device slowed."""
    return (neighbours.disturbance(under) or 0.0) + under.get(conditions.SLOWED, 0.0)


def _conditions(metric: str, under: Mapping[str, float]) -> Facts:
    return Facts({conditions.fact(name, metric): value for name, value in under.items()})


def _timed(subject: Subject, name: str, metric: Metric) -> tuple[Measurement, Mapping[str, float]]:
    conditions.taken()  # of what was before
    found = _capped(subject, name, metric)
    # After the exception is gone, for its traceback holds what was allocated.
    subject.free()
    return found, conditions.taken()


def _capped(subject: Subject, name: str, metric: Metric) -> Measurement:
    found = _outcome(subject, name, metric)
    cap = subject.cell.limits.memory_bytes if metric.capped else None
    return found if cap is None else replace(found, memory_bytes=cap)


def _outcome(subject: Subject, name: str, metric: Metric) -> Measurement:
    assert metric.measure is not None
    try:
        return metric.measurement(name, metric.measure(subject))
    except Unsupported as error:
        return metric.measurement(name, reason="unsupported", detail=str(error))
    except Exception as error:
        if detail := out_of_memory(error):
            return metric.measurement(name, reason="out_of_memory", detail=detail)
        if not isinstance(error, execution.not_built()):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        detail = f"{subject.cell.execution}: torch cannot build it: {said}"
        return metric.measurement(name, reason="unsupported", detail=detail)
