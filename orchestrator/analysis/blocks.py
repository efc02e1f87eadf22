"""A block: one metric at one size and batch as an array over labels, contexts and replicates.

Every judgement of the analysis is made on blocks. Rounds (measure) and seeds (train) are complete
blocks of the experiment: replicate r of every label shares the machine's drift, or the data order,
so that differences pair by replicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.derived import MetricFacts
from orchestrator.analysis.observations import Observed, ObservedCell
from workloads.cell import EXECUTIONS

Floats = NDArray[np.float64]
CUTS = frozenset({"out_of_memory", "timeout"})
"""Reasons at which a curve stops: whatever lies beyond is not looked at."""
BEST = "best"
"""What the mode of execution is called where each label has its own best."""
TRIVIAL = "baseline_"
"""What the names of metrics and facts begin with that need no model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One metric of one kind of cell, size, batch and mode of execution; of the modes of a sweep
    that has several, `best` is each label's own best at each context.

    `values` is (labels, contexts, replicates) in the metric's unit, NaN where there is none.
    `reasons[label][context]` says why a point has no number, or (`undertrained`) no verdict; a
    point with a reason other than `undertrained` has no values, for the replicates that came
    through would make it look better than it is. `trivial[context]` is what needs no model reaches
    on the same examples (a task's fact or metric `baseline_METRIC`), None where nothing says.
    """

    kind: str
    metric: str
    facts: MetricFacts
    task: str
    size: int
    batch: str | None
    execution: str | None
    batch_sizes: tuple[int | None, ...]
    device: str
    labels: tuple[str, ...]
    architectures: Mapping[str, str]
    implementations: Mapping[str, str | None]
    contexts: tuple[int, ...]
    planned: NDArray[np.bool_]
    values: Floats
    reasons: tuple[tuple[str | None, ...], ...]
    trivial: tuple[float | None, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Per label, the index of the context at which its curve is cut; len(contexts) if never."""
        return tuple(
            next((i for i, reason in enumerate(row) if reason in CUTS), len(row))
            for row in self.reasons
        )

    @cached_property
    def comparable(self) -> Floats:
        """`values` without what lies beyond a cut."""
        values = self.values.copy()
        for row, end in enumerate(self.ends):
            values[row, end:] = np.nan
        return values

    def beats_trivial(self, label: int, context: int) -> bool | None:
        """Whether a label is better there than what needs no model; None where nothing says what
        that reaches, or the label has no value. Every replicate has to be."""
        trivial, values = self.trivial[context], self.values[label, context]
        values = values[np.isfinite(values)]
        if trivial is None or not len(values):
            return None
        better = values > trivial if self.facts.better == "greater" else values < trivial
        return bool(better.all())

    def reason(self, label: int, context: int) -> str | None:
        """Why there is nothing to compare at this point: its own reason, or the cut before it."""
        reached = min(context, self.ends[label])
        return self.reasons[label][reached]

    @property
    def key(self) -> dict[str, object]:
        """The columns that name a block in the tables."""
        return {
            "metric": self.metric,
            "task": self.task,
            "size": self.size,
            "batch": self.batch,
            "execution": self.execution,
            "device": self.device,
        }


def assemble(observed: Observed) -> tuple[Block, ...]:
    """Every block that the records say something about: by metric, then kind, task, size, batch.
    What needs no model is beside the metric it is the baseline of, and not compared itself."""
    groups: dict[tuple[object, ...], list[ObservedCell]] = {}
    for seen in observed.compared:
        cell = seen.cell
        constant_tokens = cell.batch_tokens is not None
        batch = cell.batch_tokens if constant_tokens else cell.batch_size
        mode = EXECUTIONS.index(cell.execution)
        key = (cell.kind, cell.task, cell.size, cell.device, constant_tokens, batch or 0, mode)
        groups.setdefault(key, []).append(seen)
    found = [
        _block(metric, facts, groups[key])
        for metric, facts in observed.metrics.items()
        if not metric.startswith(TRIVIAL)
        for key in sorted(groups)
        if any(metric in seen.medians or metric in seen.reasons for seen in groups[key])
    ]
    return tuple(one for same in _by_mode(found) for one in _with_best(same))


def _by_mode(blocks: list[Block]) -> Iterator[list[Block]]:
    """Neighbours that differ in their mode of execution alone."""
    for _, same in groupby(blocks, lambda block: block.key | {"execution": None, "": block.kind}):
        yield list(same)


def _with_best(modes: list[Block]) -> list[Block]:
    """The blocks, and where there are several that hold the same points, the best mode's: at each
    point of those that have most replicates the one with the best median. It is chosen on the very
    replicates that it is compared on, so it looks a little better than it is."""
    first = modes[0]
    if len(modes) == 1 or any(
        (one.labels, one.contexts, one.values.shape)
        != (first.labels, first.contexts, first.values.shape)
        for one in modes
    ):
        return modes
    sign = 1.0 if first.facts.better == "smaller" else -1.0
    stacked = np.stack([one.values for one in modes])
    replicates = np.asarray(np.isfinite(stacked).sum(-1))
    known = (replicates > 0) & (replicates == replicates.max(0))
    centres = np.nanmedian(np.where(known[..., None], stacked, 0.0), -1)
    chosen = np.where(known, sign * centres, np.inf).argmin(0)
    return [
        *modes,
        replace(
            first,
            execution=BEST,
            values=np.take_along_axis(stacked, chosen[None, :, :, None], 0)[0],
            reasons=tuple(
                tuple(modes[mode].reasons[i][j] for j, mode in enumerate(row))
                for i, row in enumerate(chosen.tolist())
            ),
        ),
    ]


def _block(metric: str, facts: MetricFacts, group: list[ObservedCell]) -> Block:
    points = {_point(seen) for seen in group if _concerns(seen, metric)}
    cells = [seen for seen in group if _point(seen) in points]
    labels = tuple(sorted({label for label, _ in points}))
    contexts = tuple(sorted({context for _, context in points}))
    replicates = sorted({seen.cell.replicate for seen in cells})
    row = {label: i for i, label in enumerate(labels)}
    column = {context: i for i, context in enumerate(contexts)}
    layer = {replicate: i for i, replicate in enumerate(replicates)}
    values = np.full((len(labels), len(contexts), len(replicates)), np.nan)
    finished = np.zeros(values.shape, dtype=bool)
    planned = np.zeros(values.shape[:2], dtype=bool)
    reasons: list[list[str | None]] = [[None] * len(contexts) for _ in labels]
    trivial: list[list[float]] = [[] for _ in contexts]
    implementations: dict[str, str | None] = dict.fromkeys(labels)
    for seen in cells:
        i, j = row[seen.cell.label], column[seen.cell.seq_len]
        k = layer[seen.cell.replicate]
        planned[i, j] = True
        finished[i, j, k] = seen.status == "finished"
        values[i, j, k] = seen.medians.get(metric, np.nan)
        reasons[i][j] = _graver(reasons[i][j], seen.reasons.get(metric))
        trivial[j] += _trivial(metric, seen)
        if seen.merged is not None and (code := seen.said("implementation", metric)):
            implementations[seen.cell.label] = str(code)
    if facts.deterministic:
        values = _everywhere(values, finished)
    for i, j in np.ndindex(planned.shape):
        if reasons[i][j] not in (None, "undertrained"):
            values[i, j] = np.nan
    first = cells[0].cell
    return Block(
        kind=first.kind,
        metric=metric,
        facts=facts,
        task=first.task,
        size=first.size,
        batch=first.batch,
        execution=first.execution if first.kind == "measure" else None,
        batch_sizes=tuple(dict.fromkeys(seen.cell.batch_size for seen in cells)),
        device=first.device,
        labels=labels,
        architectures={seen.cell.label: seen.cell.architecture for seen in cells},
        implementations=implementations,
        contexts=contexts,
        planned=planned,
        values=values,
        reasons=tuple(map(tuple, reasons)),
        # The same for all who were judged on the same examples.
        trivial=tuple(float(np.median(said)) if said else None for said in trivial),
    )


def _trivial(metric: str, seen: ObservedCell) -> list[float]:
    """What the task's own trivial baseline of this metric reached on the cell's examples, if it
    says so."""
    if seen.merged is None:
        return []
    name = TRIVIAL + metric
    value = seen.medians.get(name, seen.merged.facts.get(name))
    return [float(value)] if isinstance(value, int | float) else []


def _point(seen: ObservedCell) -> tuple[str, int]:
    return seen.cell.label, seen.cell.seq_len


def _concerns(seen: ObservedCell, metric: str) -> bool:
    return metric in seen.cell.metrics or metric in seen.medians or metric in seen.reasons


def _graver(one: str | None, other: str | None) -> str | None:
    """The reason that a point takes of its replicates': a cut before any other, `undertrained`
    last."""
    reasons = [reason for reason in (one, other) if reason is not None]
    order = ("out_of_memory", "timeout", "unsupported", "diverged", "undertrained")
    return min(reasons, key=order.index, default=None)


def _everywhere(values: Floats, finished: NDArray[np.bool_]) -> Floats:
    """A deterministic metric's one value, held for every finished replicate of its point."""
    counts = np.isfinite(values)
    first = np.take_along_axis(values, counts.argmax(-1)[..., None], -1)
    return np.where(finished | counts, first, np.nan)
