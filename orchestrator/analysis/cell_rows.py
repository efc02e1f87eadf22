"""The tables that hold what was recorded, before any judgement: cells, raw samples, curves."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain

import numpy as np
import pyarrow as pa

from orchestrator.analysis.observations import Observed, ObservedCell
from orchestrator.analysis.schema import CELLS, CURVES, SAMPLES
from orchestrator.journal import Merged
from workloads import conditions, neighbours, registry
from workloads.cell import canonical_json
from workloads.measurement import Measurement
from workloads.median import interval_width

_FROM_CELL = (
    *("kind", "architecture", "label", "task", "size", "seq_len", "batch_size", "round", "seed"),
    *("device", "precision", "num_layers", "learning_rate", "batch", "tokens"),
)
_FROM_FACTS = (
    *("implementation", "parameters", "total_parameters", "d_model", "mlp_width", "updates"),
    *("position_encoding", "stolen_share", "graph_breaks"),
)
_SHARES = (
    ("flops_share", "train_step_flops", "train_step_time", "flops_per_second"),
    ("bandwidth_share", "decode_step_bytes", "decode_time", "bytes_per_second"),
)


def cells(sweep: str, observed: Observed, run_ids: Mapping[tuple[str, str], str]) -> pa.Table:
    """One row a planned cell, in the plan's order, then a column per plain metric: its median.

    A metric that bears the name of a fixed column (`parameters`) has no second one.
    """
    rows = [_row(sweep, seen, observed.environment, run_ids) for seen in observed.cells]
    table = pa.Table.from_pylist(rows, CELLS)
    for name, facts in observed.metrics.items():
        if name in table.column_names:
            continue
        column = pa.array([seen.medians.get(name) for seen in observed.cells], pa.float64())
        table = table.append_column(
            pa.field(name, pa.float64(), metadata=_unit(facts.unit)), column
        )
    asked = sorted({name for seen in observed.cells for name in seen.cell.metrics})
    curves = {m.metric for seen in observed.cells for m in _measurements(seen) if m.is_curve}
    for name in asked:
        if name not in table.column_names and name not in curves:
            table = table.append_column(name, pa.nulls(len(rows), pa.float64()))
    return table


def _unit(unit: str) -> dict[str, str]:
    return {"unit": unit}


def _row(
    sweep: str,
    seen: ObservedCell,
    environment: str | None,
    run_ids: Mapping[tuple[str, str], str],
) -> dict[str, object]:
    cell, merged = seen.cell, seen.merged
    row: dict[str, object] = {name: getattr(cell, name) for name in _FROM_CELL}
    row |= {
        "sweep": sweep,
        "cell_id": cell.id,
        "status": seen.status,
        "options": canonical_json(dict(cell.options)),
        "execution": cell.execution if cell.kind == "measure" else None,
        "tokens_per_update": cell.tokens_per_update,
        "message": "measured in another environment only" if seen.elsewhere else None,
        **_kin(cell.architecture, canonical_json(dict(cell.options))),
    }
    if merged is None or environment is None:
        return row
    record, prediction = merged.newest.record, merged.newest.prediction
    row |= {name: merged.facts.get(name) for name in _FROM_FACTS}
    return row | {
        "run_id": run_ids.get((cell.id, environment)),
        "reason": merged.reason,
        "environment": environment,
        "tokens_per_update": merged.facts.get("tokens_per_update", cell.tokens_per_update),
        **_shares(seen, merged),
        "median_interval": max(_intervals(seen), default=None),
        "waited_share": max(_condition(seen, neighbours.WAITED), default=None),
        "busy_share": min(_condition(seen, conditions.BUSY), default=None),
        "slowed_share": max(_condition(seen, conditions.SLOWED), default=None),
        "sm_clock": min(_condition(seen, conditions.SM_CLOCK), default=None),
        "attempts": merged.attempts,
        "seconds": record.seconds,
        "predicted_seconds": prediction and prediction.seconds,
        "predicted_peak_bytes": prediction and prediction.peak_bytes,
        "message": record.message,
        "device_name": record.environment.device_name,
        "commit": merged.newest.source.commit,
        "dirty": merged.newest.source.dirty,
        "source_hash": merged.newest.source.hash,
    }


def _shares(seen: ObservedCell, merged: Merged) -> dict[str, float]:
    """How much of what the device reaches at best a training step and a decoding step make use of,
    by the cell's own arithmetic."""
    shares: dict[str, float] = {}
    for share, work, metric, ceiling in _SHARES:
        done, seconds = merged.facts.get(work), seen.medians.get(metric)
        origin = merged.origin.get(metric)
        if ceiling == "flops_per_second" and seen.cell.precision == "bfloat16":
            ceiling = "bfloat16_flops_per_second"
        best = (origin.ceilings or {}).get(ceiling) if origin is not None else None
        if isinstance(done, float) and seconds and best:
            shares[share] = done / seconds / best
    return shares


def _intervals(seen: ObservedCell) -> Iterator[float]:
    """Of each metric that was timed, how wide the interval of its median is, relative to it; where
    there are too few samples for one, how far they lie apart."""
    for found in _measurements(seen) if seen.cell.kind == "measure" else ():
        if found.unit == "s" and len(found.samples) > 1:
            width = interval_width(found.samples)
            apart = (max(found.samples) - min(found.samples)) / statistics.median(found.samples)
            yield width if math.isfinite(width) else apart


def _condition(seen: ObservedCell, name: str) -> Iterator[float]:
    """Of each metric that was timed, a condition of its calls, where it is known."""
    for metric in seen.cell.metrics:
        if (value := seen.condition(name, metric)) is not None:
            yield value


@cache
def _kin(name: str, options: str) -> Mapping[str, str]:
    """The architecture's family and method; nothing where its plug-in is not here: records outlive
    a user's file."""
    try:
        architecture = registry.load("architectures", name)
    except registry.UnknownPlugin:
        return {}
    given = {k: v for k, v in json.loads(options).items() if k not in architecture.code_options}
    method = f"{name} {canonical_json(given)}" if given else name
    return {"family": architecture.family, "method": method}


def samples(observed: Observed) -> pa.Table:
    """Every raw sample that is not a point of a curve over a coordinate, in the order taken."""
    found = [
        (seen.cell.id, m) for seen, m in _every(observed) if m.coordinate is None and m.samples
    ]
    lengths = [len(m.samples) for _, m in found]
    total = sum(lengths)
    starts = np.repeat(np.cumsum([0, *lengths])[:-1], lengths)
    steps = [m.steps if m.steps is not None else (None,) * len(m.samples) for _, m in found]
    columns = [
        _repeated([cell_id for cell_id, _ in found], lengths),
        _repeated([m.metric for _, m in found], lengths),
        _repeated([m.unit for _, m in found], lengths),
        pa.array(np.arange(total) - starts, pa.int64()),
        pa.array(list(chain.from_iterable(steps)), pa.int64()),
        pa.array(list(chain.from_iterable(m.samples for _, m in found)), pa.float64()),
    ]
    return pa.Table.from_arrays(columns, schema=SAMPLES)


def curves(observed: Observed) -> pa.Table:
    """Every point of every metric that is a curve over a coordinate."""
    rows = [
        {
            "cell_id": seen.cell.id,
            "metric": m.metric,
            "coordinate": m.coordinate,
            "at": at,
            "value": v,
        }
        for seen, m in _every(observed)
        if m.coordinate is not None and m.at is not None
        for at, v in zip(m.at, m.samples, strict=True)
    ]
    return pa.Table.from_pylist(rows, CURVES)


def _every(observed: Observed) -> Iterator[tuple[ObservedCell, Measurement]]:
    return ((seen, m) for seen in observed.cells for m in _measurements(seen))


def _measurements(seen: ObservedCell) -> list[Measurement]:
    """By name, so that the order in which metrics were taken leaves no trace in a table."""
    found = seen.merged.measurements if seen.merged else {}
    return [found[name] for name in sorted(found)]


def _repeated(values: list[str], lengths: list[int]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(np.repeat(np.arange(len(values)), lengths)))
