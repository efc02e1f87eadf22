"""Predicted seconds and peak bytes of a cell before it runs: for `plan`, for packing, and graded in
the report against what was measured.

Seconds start from the plug-ins' own FLOPs and bytes at the machine's probed rates, and are then
corrected per architecture by what earlier records took. A prediction is a guess for planning, never
a number in a table of results.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.provenance import Envelope, Prediction
from workloads import environment, limits, registry, sizing
from workloads.cell import Cell
from workloads.environment import Environment
from workloads.plugins import Axis, Metric, Work, element_bytes
from workloads.timing import MAX_SAMPLES, MAX_SECONDS, MIN_SAMPLES
from workloads.train import schedule_of

# Small operations in one layer of one pass; what bounds short contexts and decoding.
CALLS_PER_LAYER = 40
# Training runs this many times the small operations of a forward pass.
TRAINING_CALLS = 4
# Drawing the batch, clipping and the optimiser, of one update.
UPDATE_CALLS = 800
DECODE_STEPS = 192
GENERATED_TOKENS = 32
# Untimed calls before the samples, mostly (`timing.sample`).
WARM_UP_CALLS = 3
CHILD_SECONDS = 0.1
# A traced training step takes as long as this many plain ones, and one to make the moments.
TRACED_STEPS = 12
# A try of a limit: a child of the cell's process, watched and ended.
TRY_SECONDS = 0.2
# torch's compiler builds what a metric times.
BUILD_SECONDS = 30.0
# A graph is made, or a process started that serves it, once a metric.
EXPORT_SECONDS = 2.0
# What a process holds besides tensors: buffers of libraries, the allocator's own slack.
PROCESS_BYTES = 100 << 20

# Without a probe: one thread of a recent server core, or a recent data-centre GPU.
DEFAULT_RATES = {
    "cpu": {
        "flops_per_second": 4e10,
        "bfloat16_flops_per_second": 4e10,
        "bytes_per_second": 1e10,
        "call_seconds": 3e-6,
    },
    "accelerator": {
        "flops_per_second": 3e13,
        "bfloat16_flops_per_second": 3e14,
        "bytes_per_second": 1.5e12,
        "call_seconds": 8e-6,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the device does in a second at best (`workloads.probe`)."""

    flops_per_second: float
    bytes_per_second: float
    call_seconds: float
    bfloat16_flops_per_second: float

    @property
    def ceilings(self) -> dict[str, float]:
        """What bounds a cell: products and copies."""
        return {name: rate for name, rate in asdict(self).items() if name != "call_seconds"}

    def products(self, precision: str) -> float:
        """FLOPs in a second in a cell's precision."""
        if precision == "bfloat16":
            return self.bfloat16_flops_per_second
        return self.flops_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Predicts cells of one device. `factors` correct the raw figure per kind and architecture, and
    `probed` says whether the rates are this machine's own."""

    rates: Rates
    probed: bool
    factors: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def predict(self, cell: Cell) -> Prediction:
        """Wall seconds and peak bytes of one cell."""
        factor = self.factors.get((_kind(cell), cell.architecture))
        if factor is None:
            # An architecture not seen yet: as far off as the others were.
            factors = [f for (kind, _), f in self.factors.items() if kind == _kind(cell)]
            factor = statistics.median(factors) if factors else 1.0
        seconds = CHILD_SECONDS + factor * _raw_seconds(cell, self.rates) + _build_seconds(cell)
        return Prediction(seconds=seconds, peak_bytes=_peak_bytes(cell))

    def corrected_by(self, envelopes: Iterable[Envelope]) -> CostModel:
        """The same model, corrected by records of these cells in this environment."""
        ratios: dict[tuple[str, str], list[float]] = {}
        for envelope in envelopes:
            record = envelope.record
            if record.status != "finished" or record.reason in ("timeout", "out_of_memory"):
                continue
            cell = record.cell
            if cell.execution != "eager":
                continue  # what was built is found again, or not: it says nothing of the machine
            raw = _raw_seconds(cell, self.rates)
            # A cell of metrics that cost nothing says nothing of the machine's speed.
            if raw > 0:
                measured = max(record.seconds - CHILD_SECONDS, 1e-3)
                ratios.setdefault((_kind(cell), cell.architecture), []).append(measured / raw)
        factors = {key: statistics.median(values) for key, values in ratios.items()}
        return CostModel(rates=self.rates, probed=self.probed, factors=factors)


def _kind(cell: Cell) -> str:
    """A trial of tuning takes what training takes."""
    return "measure" if cell.kind == "measure" else "train"


def cost_model(
    device: str,
    cache: Path,
    envelopes: Iterable[Envelope] = (),
    where: Environment | None = None,
) -> CostModel:
    """The model for a device class, from the cached probe where there is one, and from records;
    `where` is the environment its cells run in (default: this machine's)."""
    fingerprint = (where or environment.describe(device)).fingerprint
    known = read_probe(cache, fingerprint)
    kind = "cpu" if environment.is_cpu(device) else "accelerator"
    model = CostModel(rates=known or Rates(**DEFAULT_RATES[kind]), probed=known is not None)
    here = [e for e in envelopes if e.record.environment.fingerprint == fingerprint]
    return model.corrected_by(here)


def read_probe(cache: Path, fingerprint: str) -> Rates | None:
    """The rates probed on a machine like this one, or None."""
    try:
        rates = Rates(**json.loads(_probe_file(cache, fingerprint).read_text()))
        usable = all(math.isfinite(rate) and rate > 0 for rate in asdict(rates).values())
    except (OSError, ValueError, TypeError):
        return None
    return rates if usable else None


def write_probe(cache: Path, fingerprint: str, rates: Mapping[str, float]) -> None:
    """Keep the probed rates for later commands."""
    path = _probe_file(cache, fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(dict(rates)))
    temporary.rename(path)


def _probe_file(cache: Path, fingerprint: str) -> Path:
    return cache / "probes" / f"{fingerprint}.json"


def _raw_seconds(cell: Cell, rates: Rates) -> float:
    if cell.kind != "measure":
        return _training_seconds(cell, rates)
    return sum(_metric_seconds(cell, _metric(cell.task, name), rates) for name in cell.metrics)


def _build_seconds(cell: Cell) -> float:
    return 0.0 if cell.execution == "eager" else BUILD_SECONDS * len(cell.metrics)


@cache
def _metric(task: str, name: str) -> Metric:
    # Kept, for a plan of ten thousand cells asks fifty thousand times, and a load reads folders.
    return registry.metric(task, name)


def _forward_seconds(cell: Cell, rates: Rates, batch_size: int) -> float:
    shape = sizing.shape_for(cell)
    flops = batch_size * cell.seq_len * sizing.flops_per_token(shape, cell.seq_len)
    device_type = "cpu" if environment.is_cpu(cell.device) else "cuda"
    calls = float(CALLS_PER_LAYER * cell.num_layers)
    calls += cell.seq_len * sizing.calls_per_token(shape, device_type)
    return flops / rates.products(cell.precision) + calls * rates.call_seconds


def _metric_seconds(cell: Cell, metric: Metric, rates: Rates) -> float:
    """One metric's seconds: its untimed passes and its samples."""
    if metric.work in ("training_limit", "prefill_limit", "decoding_limit"):
        return _search_seconds(cell, metric.work, metric.ignores[0], rates)
    return _work_seconds(cell, metric.work, rates)


def _work_seconds(cell: Cell, work: Work, rates: Rates) -> float:
    assert cell.batch_size is not None
    forward = _forward_seconds(cell, rates, cell.batch_size)
    if work == "prefills":
        return _sampled(forward)
    if work == "training_steps":
        return _sampled(TRAINING_CALLS * forward)
    if work == "traced_training_step":
        return TRACED_STEPS * TRAINING_CALLS * forward
    if work == "export":
        return EXPORT_SECONDS
    if work == "generations":
        return _sampled(forward + GENERATED_TOKENS * _decode_seconds(cell, rates))
    if work == "decoding_steps":
        return forward + DECODE_STEPS * _decode_seconds(cell, rates)
    return 0.0


def _search_seconds(cell: Cell, work: Work, axis: Axis, rates: Rates) -> float:
    """The search for a limit along `axis`, gone through with predicted bytes; a try that does not
    fit ends as soon as it has filled the cap."""
    cap = cell.limits.memory_bytes
    if cap is None:
        return 0.0
    seconds = 0.0

    def fits(value: int, steps: int) -> bool:
        nonlocal seconds
        changed: dict[str, Any] = {axis: value}
        once, each, held = _try(replace(cell, **changed), work, rates)
        seconds += TRY_SECONDS + min(1.0, cap / held) * (once + steps * each)
        return held <= cap

    limits.search(fits, getattr(cell, axis), limits.MOST)
    return seconds


def _try(cell: Cell, work: Work, rates: Rates) -> tuple[float, float, int]:
    """Seconds to make a try ready, seconds of each of its steps, and the bytes they hold."""
    assert cell.batch_size is not None
    shape, batch, seq_len = sizing.shape_for(cell), cell.batch_size, cell.seq_len
    if work == "decoding_limit":
        held = sizing.model_bytes(shape, cell.precision)
        held += batch * sizing.state_bytes(shape, seq_len, element_bytes(cell.precision))
        return _forward_seconds(cell, rates, 1), _decode_seconds(cell, rates), held
    forward = _forward_seconds(cell, rates, batch)
    if work == "prefill_limit":
        held = sizing.inference_peak_bytes(shape, batch, seq_len, cell.precision)
        return 0.0, forward, held
    held = sizing.train_peak_bytes(shape, batch, seq_len, cell.precision)
    return 0.0, TRAINING_CALLS * forward, held


def _sampled(seconds: float) -> float:
    """What the clock spends on a call of this length at most: warm-up, then samples
    (`timing.sample`)."""
    samples = min(MAX_SAMPLES, max(MIN_SAMPLES, MAX_SECONDS / seconds))
    return (WARM_UP_CALLS + samples) * seconds


def _decode_seconds(cell: Cell, rates: Rates) -> float:
    shape, element = sizing.shape_for(cell), element_bytes(cell.precision)
    assert cell.batch_size is not None
    moved = sizing.model_bytes(shape, cell.precision)
    moved += cell.batch_size * sizing.state_bytes(shape, cell.seq_len, element)
    calls = CALLS_PER_LAYER * cell.num_layers * rates.call_seconds
    return calls + moved / rates.bytes_per_second


def _training_seconds(cell: Cell, rates: Rates) -> float:
    schedule = schedule_of(cell)
    step = TRAINING_CALLS * _forward_seconds(cell, rates, schedule.sequences)
    return schedule.updates * (step + UPDATE_CALLS * rates.call_seconds)


def _peak_bytes(cell: Cell) -> int:
    shape = sizing.shape_for(cell)
    batch = cell.batch_size if cell.kind == "measure" else schedule_of(cell).micro_batch
    assert batch is not None
    return PROCESS_BYTES + sizing.train_peak_bytes(shape, batch, cell.seq_len, cell.precision)
