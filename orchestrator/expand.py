"""From a sweep file, and the trials of its tuning so far, to its plan: which cells, in which order,
each model built once without a device.

Deterministic: no clock, no device, no network.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Container, Iterable, Mapping
from typing import Any

from orchestrator import tuning
from orchestrator.plan import Comparison, Plan, Primary
from orchestrator.search import Search, Setting
from orchestrator.spec import Choice, Fault, LoadedSpec, Measure, SweepSpec, resolve_label
from orchestrator.tuning import Point, Tried
from workloads import environment, plugins, registry
from workloads.cell import EXECUTIONS, Cell, Limits


def expand(loaded: LoadedSpec, tried: Tried | None = None, *, ran: Container[str] = ()) -> Plan:
    """The cells of a sweep file: measure blocks round by round, the trials of tuning, then train
    blocks seed by seed. What trains as tuning will say is open until `tried` tells.

    Each block is complete (every architecture, size, length and batch once) and in random order of
    its own, drawn from the sweep's name and the block's number: drift of the machine then hits all
    alike, the order survives a restart, and one more round leaves the earlier ones as they were.

    Raises:
        SpecError: a model that cannot be built as asked, found by a dry build of each distinct one;
        cells that `ran`, by their ids, need none.
    """
    spec = loaded.spec
    searches, settings = _tuning(loaded, tried or Tried())
    blocks = [_measure_block(loaded, r) for r in range(spec.measure.rounds)] if spec.measure else []
    blocks.append([trial.cell for search in searches for trial in search.trials])
    seeds = range(spec.train.seeds if spec.train else 0)
    blocks += [_train_block(loaded, seed, settings) for seed in seeds]
    blocks = [block for block in blocks if block]
    cells: dict[str, Cell] = {}
    for number, block in enumerate(blocks):
        random.Random(f"{spec.name}/{block[0].kind}/{block[0].replicate}").shuffle(block)
        cells.update((cell.id, cell) for cell in block)
        if number == 0 or block[0].kind != blocks[number - 1][0].kind:
            _check_models(loaded, (cell for cell in block if cell.id not in ran))
    task = registry.load("tasks", spec.task.name)
    return Plan(
        name=spec.name,
        question=spec.question,
        spec_hash=loaded.hash,
        spec_yaml=loaded.text,
        token_unit=task.token_unit(plugins.build_options(task.options, spec.task.options)),
        cells=tuple(cells.values()),
        comparison=_comparison(spec),
        labels=tuple(choice.label for choice in spec.choices()),
        references=tuple(
            choice.label
            for choice in spec.choices()
            if not registry.load("architectures", choice.name).matched
        ),
        searches=tuple(searches),
    )


def _shared_fields(loaded: LoadedSpec, choice: Choice, size: int) -> dict[str, Any]:
    spec = loaded.spec
    return {
        "architecture": choice.name,
        "architecture_version": registry.load("architectures", choice.name).version,
        "options": choice.options,
        "label": choice.label,
        "task": spec.task.name,
        "task_version": registry.load("tasks", spec.task.name).version,
        "task_options": spec.task.options,
        "size": size,
        "num_layers": spec.model.num_layers,
        "shell": spec.model.shell(),
        "precision": spec.precision or environment.default_precision(loaded.device_class),
        "device": loaded.device_class,
        "limits": Limits(
            cell_seconds=spec.limits.cell_seconds, memory_bytes=spec.limits.memory_bytes
        ),
    }


def _measure_block(loaded: LoadedSpec, number: int) -> list[Cell]:
    """One round. Metrics without noise are taken in the first one only, those that do not depend on
    an axis at its smallest value only, and those that are not timed in eager mode only."""
    spec, part = loaded.spec, loaded.spec.measure
    assert part is not None
    known = {name: registry.metric(spec.task.name, name) for name in part.metrics}
    smallest = {"seq_len": min(part.seq_len), "batch_size": min(_batches(part))}
    cells = []
    for choice, size in itertools.product(spec.choices(), spec.model.sizes()):
        shared = _shared_fields(loaded, choice, size)
        for seq_len, batch, mode in itertools.product(part.seq_len, _batches(part), EXECUTIONS):
            batch_size, batch_tokens = batch
            here = {"seq_len": seq_len, "batch_size": batch}
            metrics = tuple(
                name
                for name, metric in known.items()
                if (number == 0 or not metric.deterministic)
                and all(here[axis] == smallest[axis] for axis in metric.ignores)
                and mode in (part.execution if metric.by_execution else ("eager",))
            )
            if not metrics:
                continue
            cells.append(
                Cell(
                    kind="measure",
                    **shared,
                    seq_len=seq_len,
                    batch_size=batch_size or max(1, round(batch_tokens / seq_len)),
                    batch_tokens=batch_tokens or None,
                    round=number,
                    execution=mode,
                    metrics=metrics,
                )
            )
    return cells


def _batches(part: Measure) -> list[tuple[int, int]]:
    """(sequences, tokens) of every batch, one of the two 0."""
    if part.batch_size is not None:
        return [(size, 0) for size in part.batch_size]
    return [(0, tokens) for tokens in part.batch_tokens or ()]


def _tuning(loaded: LoadedSpec, tried: Tried) -> tuple[list[Search], dict[Point, Setting]]:
    """The searches that the file asks for, and what they have found."""
    spec = loaded.spec
    if spec.tune is None or spec.train is None:
        return [], {}
    asked = tuning.Asked(
        space=spec.tune.space(),
        trials=spec.tune.trials,
        tokens=spec.tune.tokens,
        metric=spec.train.judged_by(spec.tune),
    )
    searched = spec.tune.searched(spec.train.seq_len)
    return tuning.tuned(_trained(loaded, tuning.SEED), asked, tried, searched)


def _train_block(loaded: LoadedSpec, seed: int, settings: Mapping[Point, Setting]) -> list[Cell]:
    return [
        cell if setting is None else tuning.trained_with(cell, setting)
        for cell in _trained(loaded, seed)
        for setting in [settings.get(tuning.point(cell))]
    ]


def _trained(loaded: LoadedSpec, seed: int) -> list[Cell]:
    """What is trained at one seed, as the file says."""
    spec, part = loaded.spec, loaded.spec.train
    assert part is not None
    return [
        Cell(
            kind="train",
            **_shared_fields(loaded, choice, size),
            seq_len=seq_len,
            seed=seed,
            tokens=part.tokens,
            tokens_per_update=part.tokens_per_update,
            learning_rate=_learning_rate(part.learning_rate, choice),
            eval_seq_len=tuple(part.eval_seq_len or ()),
            carry_state=part.carry_state,
            optimiser=part.optimiser.different(),
            metrics=tuple(part.metrics),
        )
        for choice, size, seq_len in itertools.product(
            spec.choices(), spec.model.sizes(), part.seq_len
        )
    ]


def _learning_rate(given: float | dict[str, float] | None, choice: Choice) -> float | None:
    """The label's own rate, else the architecture's, else the default; None where tuning will
    say."""
    if given is None or isinstance(given, float):
        return given
    return next(given[key] for key in (choice.label, choice.name, "default") if key in given)


def _comparison(spec: SweepSpec) -> Comparison:
    asked = spec.compare.primary
    primary = None
    if asked is not None:
        challenger = resolve_label(asked.challenger, spec.choices())
        primary = Primary(challenger=challenger, metric=asked.metric, batch_size=asked.batch_size)
    low, high = spec.compare.zone
    return Comparison(
        baseline=resolve_label(spec.compare.baseline, spec.choices()),
        zone=(low, high),
        primary=primary,
    )


def _check_models(loaded: LoadedSpec, cells: Iterable[Cell]) -> None:
    """Dry-build every distinct model on the meta device; a user's mistake ends here."""
    from workloads.check import check

    labels = [choice.label for choice in loaded.spec.choices()]
    faults: dict[Fault, None] = {}
    for cell in cells:
        try:
            check(cell)
        except ValueError as error:
            faults[("architectures", labels.index(cell.label)), str(error)] = None
    if faults:
        raise loaded.error(list(faults))
