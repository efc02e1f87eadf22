"""Profiles: a metric that is a curve over a coordinate (position in the context, distance, facts,
messages, length of the evaluation), as medians over the replicates of each label and context with
their 95 % intervals."""

from __future__ import annotations

import numpy as np

from orchestrator.analysis.observations import Observed
from orchestrator.analysis.summary import estimate
from workloads.cell import Cell
from workloads.measurement import Measurement

_Point = tuple[str, str, int, int, str, str | None, float]


def rows(observed: Observed) -> list[dict[str, object]]:
    """The rows of the `profiles` table: by metric, label, context and point of the coordinate."""
    found: dict[_Point, list[float]] = {}
    said: dict[_Point, tuple[Cell, Measurement]] = {}
    for seen in observed.compared:
        cell = seen.cell
        for m in seen.merged.measurements.values() if seen.merged else ():
            for at, value in zip(m.at or (), m.samples, strict=True) if m.coordinate else ():
                point = (m.metric, cell.task, cell.size, cell.seq_len, cell.label, m.coordinate, at)
                found.setdefault(point, []).append(value)
                said.setdefault(point, (cell, m))
    return [
        _row(point, found[point], *said[point], observed.environment) for point in sorted(found)
    ]


def _row(
    point: _Point, values: list[float], cell: Cell, m: Measurement, environment: str | None
) -> dict[str, object]:
    metric, task, size, seq_len, label, coordinate, at = point
    centre, low, high = estimate(np.array(values), m)
    return {
        "label": label,
        "architecture": cell.architecture,
        "task": task,
        "size": size,
        "seq_len": seq_len,
        "device": cell.device,
        "metric": metric,
        "unit": m.unit,
        "coordinate": coordinate,
        "at": at,
        "median": centre,
        "low": low,
        "high": high,
        "replicates": len(values),
        "reason": m.reason,
        "title": m.title,
        "better": m.better,
        "scale": m.scale,
        "environment": environment,
    }
