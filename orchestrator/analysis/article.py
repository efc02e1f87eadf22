"""The article that this project began with, beside what was measured: how an LSTM and a GRU compare
with a Transformer in five figures.

Its numbers are one person's, of one task (documents of 10,000 tokens, summaries of 500) on one
A100; what can be held against them elsewhere are the ratios. Of the longest context it gives 512
for both recurrent networks and none for the Transformer, whose ratio is therefore only said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from orchestrator.analysis.blocks import Block
from orchestrator.analysis.statistics import mean_interval

BATCH = "4"
"""The article's batch: of several in a sweep, this one is taken."""
ENOUGH = 3
"""Figures of the five that a sweep has to have measured: fewer are no table."""
REFERENCE = "transformer"


class Figure(NamedTuple):
    """A row of the article's table: in the unit of our metric, by architecture."""

    said: str
    values: Mapping[str, float]


FIGURES: Mapping[str, Figure] = {
    "train_time": Figure(
        "training time", {"lstm": 47 * 3600, "gru": 38 * 3600, "transformer": 9 * 3600}
    ),
    "max_seq_len": Figure("longest context", {"lstm": 512, "gru": 512}),
    "bleu": Figure("BLEU", {"lstm": 18.4, "gru": 20.1, "transformer": 31.2}),
    "peak_memory": Figure(
        "device memory at batch 4", {"lstm": 2.1e9, "gru": 2.4e9, "transformer": 8.7e9}
    ),
    "decode_time": Figure(
        "time per output token", {"lstm": 0.012, "gru": 0.011, "transformer": 0.023}
    ),
}


def rows(blocks: tuple[Block, ...], environment: str | None) -> list[dict[str, object]]:
    """The rows of the `article` table: by figure and label; what has no ratio has a reason. None
    where too few of the figures were measured."""
    found = [
        row
        for block in blocks
        if block.metric in FIGURES
        and block.batch in (None, _batch(blocks, block))
        and block.execution == _first(blocks, block).execution
        for row in _rows(block, environment)
    ]
    return found if len({row["metric"] for row in found}) >= ENOUGH else []


def _batch(blocks: tuple[Block, ...], one: Block) -> str | None:
    """The article's batch where the metric was measured at it, else the first."""
    batches = [block.batch for block in blocks if block.metric == one.metric]
    return BATCH if BATCH in batches else batches[0]


def _first(blocks: tuple[Block, ...], one: Block) -> Block:
    """The first block of its metric: of several modes of execution, the plainest."""
    return next(block for block in blocks if block.metric == one.metric)


def _rows(block: Block, environment: str | None) -> Iterator[dict[str, object]]:
    figure = FIGURES[block.metric]
    architectures = [block.architectures[label] for label in block.labels]
    if REFERENCE not in architectures:
        return
    theirs = architectures.index(REFERENCE)
    for row, (label, architecture) in enumerate(zip(block.labels, architectures, strict=True)):
        at = _longest(block, row, theirs)
        ratio, low, high = (None,) * 3 if at is None else _ratio(block, row, theirs, at)
        reason = None if at is not None else _reason(block, row, theirs)
        own = block.comparable[row, -1 if at is None else at]
        said, reference = figure.values.get(architecture), figure.values.get(REFERENCE)
        yield block.key | {
            "environment": environment,
            "figure": figure.said,
            "label": label,
            "architecture": architecture,
            "reference": block.labels[theirs],
            "unit": block.facts.unit,
            "seq_len": block.contexts[-1 if at is None else at],
            "article": said,
            "article_ratio": said / reference if said and reference else None,
            "value": float(np.nanmedian(own)) if np.isfinite(own).any() else None,
            "ratio": ratio,
            "low": low,
            "high": high,
            "reason": reason,
        }


def _longest(block: Block, row: int, other: int) -> int | None:
    """The longest context at which both have positive values."""
    both = (block.comparable[row] > 0) & (block.comparable[other] > 0)
    known = np.flatnonzero(both.any(axis=1))
    return int(known[-1]) if len(known) else None


def _reason(block: Block, row: int, other: int) -> str:
    """Why the two have no ratio at any context."""
    last = len(block.contexts) - 1
    return block.reason(row, last) or block.reason(other, last) or "one of the two is zero"


def _ratio(block: Block, row: int, other: int, at: int) -> tuple[float, float | None, float | None]:
    """The geometric mean of the ratios, replicate by replicate, with its 95 % interval by Student's
    t; none of a single one, of a metric without noise, or of the reference itself."""
    ours, theirs = block.comparable[row, at], block.comparable[other, at]
    paired = (ours > 0) & (theirs > 0)
    logs = np.log(ours[paired]) - np.log(theirs[paired])
    middle = float(np.exp(logs.mean()))
    low, high = mean_interval(logs)
    if low is None or high is None or block.facts.deterministic or row == other:
        return middle, None, None
    return middle, float(np.exp(low)), float(np.exp(high))
