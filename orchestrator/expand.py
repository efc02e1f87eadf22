"""From a sweep file to its plan: which cells, in which order, each model built once without a
device.

Deterministic: no clock, no device, no network.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

from orchestrator.plan import Comparison, Plan, Primary
from orchestrator.spec import Choice, Fault, LoadedSpec, Measure, SweepSpec, resolve_label
from workloads import plugins, registry
from workloads.cell import Cell, Limits


def expand(loaded: LoadedSpec) -> Plan:
    """The cells of a sweep file: measure blocks round by round, then train blocks seed by seed.

    Each block is complete (every architecture, size, length and batch once) and in random order of
    its own, drawn from the sweep's name and the block's number: drift of the machine then hits all
    alike, the order survives a restart, and one more round leaves the earlier ones as they were.

    Raises:
        SpecError: a model that cannot be built as asked, found by a dry build of each distinct one.
    """
    spec = loaded.spec
    blocks = [_measure_block(loaded, r) for r in range(spec.measure.rounds)] if spec.measure else []
    blocks += [_train_block(loaded, seed) for seed in range(spec.train.seeds)] if spec.train else []
    blocks = [block for block in blocks if block]
    cells: dict[str, Cell] = {}
    for number, block in enumerate(blocks):
        random.Random(f"{spec.name}/{block[0].kind}/{block[0].replicate}").shuffle(block)
        cells.update((cell.id, cell) for cell in block)
        if number == 0 or block[0].kind != blocks[number - 1][0].kind:
            _check_models(loaded, block)
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
        "precision": spec.precision,
        "device": loaded.device_class,
        "limits": Limits(
            cell_seconds=spec.limits.cell_seconds, memory_bytes=spec.limits.memory_bytes
        ),
    }


def _measure_block(loaded: LoadedSpec, number: int) -> list[Cell]:
    """One round. Metrics without noise are taken in the first one only."""
    spec, part = loaded.spec, loaded.spec.measure
    assert part is not None
    noisy = [m for m in part.metrics if not registry.metric(spec.task.name, m).deterministic]
    metrics = tuple(part.metrics if number == 0 else noisy)
    cells = []
    for choice, size in itertools.product(spec.choices(), spec.model.sizes()):
        shared = _shared_fields(loaded, choice, size)
        for seq_len, (batch_size, batch_tokens) in itertools.product(part.seq_len, _batches(part)):
            cells.append(
                Cell(
                    kind="measure",
                    **shared,
                    seq_len=seq_len,
                    batch_size=batch_size or max(1, round((batch_tokens or 0) / seq_len)),
                    batch_tokens=batch_tokens,
                    round=number,
                    metrics=metrics,
                )
            )
    return cells if metrics else []


def _batches(part: Measure) -> list[tuple[int | None, int | None]]:
    if part.batch_size is not None:
        return [(size, None) for size in part.batch_size]
    return [(None, tokens) for tokens in part.batch_tokens or ()]


def _train_block(loaded: LoadedSpec, seed: int) -> list[Cell]:
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
            metrics=tuple(part.metrics),
        )
        for choice, size, seq_len in itertools.product(
            spec.choices(), spec.model.sizes(), part.seq_len
        )
    ]


def _learning_rate(given: float | dict[str, float], choice: Choice) -> float:
    """The label's own rate, else the architecture's, else the default."""
    if isinstance(given, float):
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


def _check_models(loaded: LoadedSpec, block: Iterable[Cell]) -> None:
    """Dry-build every distinct model on the meta device; a user's mistake ends here."""
    from workloads.check import check

    labels = [choice.label for choice in loaded.spec.choices()]
    faults: dict[Fault, None] = {}
    for cell in block:
        try:
            check(cell)
        except ValueError as error:
            faults[("architectures", labels.index(cell.label)), str(error)] = None
    if faults:
        raise loaded.error(list(faults))
