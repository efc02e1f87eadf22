"""Runs one cell in this process, yielding each figure as soon as it is there.

What a limit stops is a result and becomes a reason; any other exception is ours to mend and leaves
through the top.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from pathlib import Path

import torch

# torch imports its compiler at the first optimiser step or meta tensor, for seconds. Here, a
# process that children are forked from pays that once.
import torch._dynamo

from workloads import (
    conditions,
    plugins,
    registry,
    sizing,
)
from workloads import device as devices
from workloads.cell import Cell, Optimiser
from workloads.check import Built, check
from workloads.events import Event, Facts, Started, unmeasured
from workloads.measurement import Measurement
from workloads.measuring import measured
from workloads.model import build
from workloads.oom import out_of_memory
from workloads.plugins import Metric, Unsupported
from workloads.subject import Subject
from workloads.tasks.data import cache_folder
from workloads.train import MIN_UPDATES, Diverged, TrainedModel, schedule_of, train

_TRAINED = ("seed", "tokens", "tokens_per_update", "learning_rate")
_NEEDED = {
    "measure": ("batch_size", "round"),
    "tune": _TRAINED,
    "train": _TRAINED,
}


def verify(cell: Cell) -> Built:
    """What the cell will build, checked without device or data.

    Raises:
        ValueError: a field that its kind needs is missing, a plug-in or metric is unknown or has
        another version here, or the model cannot be built.
    """
    if cell.kind not in _NEEDED:
        raise ValueError(plugins.unknown("kind", cell.kind, _NEEDED))
    faults = [
        f"a {cell.kind} cell needs {name}"
        for name in _NEEDED[cell.kind]
        if getattr(cell, name) is None
    ]
    for what, plugin, version in (
        (
            "architecture",
            registry.load("architectures", cell.architecture),
            cell.architecture_version,
        ),
        ("task", registry.load("tasks", cell.task), cell.task_version),
    ):
        if plugin.version != version:
            faults.append(f"the cell is of {what} version {version}, here is {plugin.version}")
    for name in cell.metrics:
        metric = registry.metric(cell.task, name)
        if (metric.measure if cell.kind == "measure" else metric.evaluate) is None:
            faults.append(f"a {cell.kind} cell does not have the metric {name}")
    if faults:
        raise ValueError("; ".join(faults))
    plugins.build_options(Optimiser, cell.optimiser)
    return check(cell)


def run(cell: Cell, cache: Path | None = None) -> Iterator[Event]:
    """Build, then measure or train and evaluate, one cell.

    Args:
        cell: what to run; `cell.metrics` says what is asked.
        cache: where prepared data live (default: tasks.data.cache_folder()).

    Yields:
        Facts early, Started before each phase, each Measurement when it is ready.

    Raises:
        ValueError: the cell is not one that can be run (see `verify`).
    """
    # What is imported stays; a collection between metrics would walk it for a third of a second.
    gc.freeze()
    try:
        with devices.flushed_denormals(), devices.fused_attention():
            yield from _run(cell, cache)
    finally:
        gc.unfreeze()


def _run(cell: Cell, cache: Path | None) -> Iterator[Event]:
    built = verify(cell)
    try:
        if built.unsupported is not None:
            raise Unsupported(built.unsupported)
        device = devices.open_device(cell)
    except Unsupported as error:
        yield from unmeasured(cell, cell.metrics, "unsupported", str(error))
        return
    devices.seed(device, cell.replicate)
    yield _facts(built, cell, device)
    if cell.kind == "measure":
        yield from measured(Subject(cell, built, device))
    else:
        yield from _train(cell, built, device, cache or cache_folder())


def _facts(built: Built, cell: Cell, device: torch.device) -> Facts:
    return Facts(
        {
            "parameters": built.parameters,
            "total_parameters": built.total_parameters,
            "d_model": built.shape.d_model,
            "mlp_width": built.shape.mlp_width,
            "implementation": built.implementation,
            "kernel_class": built.kernel_class,
            _trained("arithmetic", cell): built.arithmetic,
            "position_encoding": _positions(built),
            "flops_per_token": float(sizing.flops_per_token(built.shape, cell.seq_len)),
            **_work(built, cell),
            **devices.facts(device),
        }
    )


def _trained(fact: str, cell: Cell) -> str:
    """The name of a fact that is of training steps alone."""
    return conditions.fact(fact, "train_step_time") if cell.kind == "measure" else fact


def _work(built: Built, cell: Cell) -> dict[str, float]:
    """By arithmetic: matrix products of a training step, three times those of the forward pass; and
    the bytes that a decoding step reads, weights and state."""
    if cell.kind != "measure":
        return {}
    assert cell.batch_size is not None
    tokens = cell.batch_size * cell.seq_len
    state = sizing.state_bytes(built.shape, cell.seq_len, plugins.element_bytes(cell.precision))
    return {
        "train_step_flops": 3.0 * tokens * sizing.flops_per_token(built.shape, cell.seq_len),
        "decode_step_bytes": float(
            sizing.model_bytes(built.shape, cell.precision) + cell.batch_size * state
        ),
    }


def _positions(built: Built) -> str | None:
    """The position encodings of the layers, each once; None where there is none."""
    shape = built.shape
    layers = registry.stack(shape.architecture, shape.options, shape.num_layers)
    found = (architecture.position(options) for architecture, options in layers)
    return ", ".join(dict.fromkeys(filter(None, found))) or None


def _train(cell: Cell, built: Built, device: torch.device, cache: Path) -> Iterator[Event]:
    task = registry.load("tasks", cell.task)
    yield Started("data")
    data = task.prepare(plugins.build_options(task.options, cell.task_options), cache)
    yield Facts(data.facts)
    yield Started("training")
    try:
        model = build(built.shape, seed=cell.replicate, device=device)
        trained = yield from train(cell, model, data, device)
    except Diverged as error:
        yield from unmeasured(cell, cell.metrics, "diverged", str(error))
        return
    except Unsupported as error:
        yield from unmeasured(cell, cell.metrics, "unsupported", str(error))
        return
    except (RuntimeError, MemoryError) as error:
        detail = out_of_memory(error)
        if detail is None:
            raise
        yield from unmeasured(cell, cell.metrics, "out_of_memory", detail)
        return
    for name in cell.metrics:
        yield Started(name)
        yield _evaluated(trained, name, registry.metric(cell.task, name))


def _evaluated(trained: TrainedModel, name: str, metric: Metric) -> Measurement:
    assert metric.evaluate is not None
    try:
        found = metric.evaluate(trained)
    except Unsupported as error:
        return metric.measurement(name, reason="unsupported", detail=str(error))
    except (RuntimeError, MemoryError) as error:
        detail = out_of_memory(error)
        if detail is None:
            raise
        return metric.measurement(name, reason="out_of_memory", detail=detail)
    if not all(map(math.isfinite, found.samples)):
        return metric.measurement(
            name, reason="diverged", detail="the model's outputs are not finite after training"
        )
    updates = schedule_of(trained.cell).updates
    # A trial of tuning is chosen from, whatever its length; it gives no verdict.
    short = updates < MIN_UPDATES and trained.cell.kind == "train"
    return metric.measurement(
        name,
        found.samples,
        coordinate=found.coordinate,
        at=found.at,
        reason="undertrained" if short else None,
        detail=f"{updates} updates; a verdict needs {MIN_UPDATES}" if short else None,
    )
