"""Pairs: every label of a block against the baseline, as contrasts that pair by replicate.

A contrast is the log ratio challenger / baseline, or the difference challenger - baseline where a
metric is bounded or can be zero. Shares of successes are not contrasted: what is said of
differences here wants noise that is near normal, and ones and zeros of a few seeds are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.blocks import Block
from orchestrator.analysis.judgement import MIN_REPLICATES, Judgement, judge
from orchestrator.analysis.statistics import Floats

MARGIN = 0.05
"""Two values within 5 % count as equal: of each other for a ratio, of the pair's largest value for
a difference."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One challenger against the baseline in one block.

    `contrast` is (contexts, replicates): log ratios or differences, challenger to baseline, NaN
    where either is missing or lies beyond a cut. `judged` marks the contexts with replicates enough
    to take part.
    """

    block: Block
    baseline: int
    challenger: int
    contrast: Floats
    judged: np.ndarray[tuple[int], np.dtype[np.bool_]]
    margin: float
    judgement: Judgement | None
    replicates: int

    @property
    def decides(self) -> bool:
        """Whether a verdict may be given at all."""
        return self.replicates >= MIN_REPLICATES and not self.undertrained and not self.hopeless

    @property
    def hopeless(self) -> bool:
        """Whether neither is better than what needs no model, at any context: what they differ by
        is no answer to the question."""
        beaten = [
            self.block.beats_trivial(label, j)
            for label in (self.baseline, self.challenger)
            for j in np.flatnonzero(self.judged).tolist()
        ]
        return False in beaten and True not in beaten

    @property
    def undertrained(self) -> bool:
        rows = (self.block.reasons[self.baseline], self.block.reasons[self.challenger])
        return any(
            "undertrained" in (rows[0][j], rows[1][j]) for j in np.flatnonzero(self.judged).tolist()
        )


def pairs(blocks: tuple[Block, ...], baseline: str) -> Iterator[Pair]:
    """Every challenger of every block that the baseline is part of."""
    for block in blocks:
        if baseline not in block.labels or block.facts.scale == "share":
            continue
        base = block.labels.index(baseline)
        for challenger in range(len(block.labels)):
            if challenger != base:
                yield _pair(block, base, challenger)


def _pair(block: Block, base: int, challenger: int) -> Pair:
    ours, theirs = block.comparable[challenger], block.comparable[base]
    if block.facts.scale == "ratio":
        positive = (ours > 0) & (theirs > 0)
        ours, theirs = np.where(positive, ours, np.nan), np.where(positive, theirs, np.nan)
        contrast, margin = np.log(ours) - np.log(theirs), float(np.log1p(MARGIN))
    else:
        contrast = ours - theirs
        both = np.isfinite(contrast)
        largest = np.abs(np.stack([ours, theirs]))[:, both].max(initial=0.0)
        margin = MARGIN * float(largest)
    counts = np.isfinite(contrast).sum(1)
    judged = counts >= MIN_REPLICATES
    if not judged.any():
        judged = counts >= 2
    judgement = None
    if judged.any():
        contexts = np.array(block.contexts, dtype=float)[judged]
        judgement = judge(contrast[judged].T, contexts, margin)
    return Pair(
        block=block,
        baseline=base,
        challenger=challenger,
        contrast=contrast,
        judged=judged,
        margin=margin,
        judgement=judgement,
        replicates=int(counts[judged].min()) if judged.any() else int(counts.max(initial=0)),
    )


def contrast_rows(pair: Pair) -> Iterator[dict[str, object]]:
    """The columns of the `contrasts` table that differ by context."""
    block, judgement = pair.block, pair.judgement
    place = np.cumsum(pair.judged) - 1
    for j, context in enumerate(block.contexts):
        values = pair.contrast[j][np.isfinite(pair.contrast[j])]
        row: dict[str, object] = {
            "seq_len": context,
            "scale": block.facts.scale,
            "better": block.facts.better,
            "margin": pair.margin,
            "estimate": float(values.mean()) if len(values) else None,
            "replicates": len(values),
            "reason": block.reason(pair.challenger, j) or block.reason(pair.baseline, j),
        }
        if judgement is not None and pair.judged[j]:
            at = int(place[j])
            row |= {
                "estimate": float(judgement.means[at]),
                "low": float(judgement.low[at]),
                "high": float(judgement.high[at]),
                "pointwise_low": float(judgement.pointwise_low[at]),
                "pointwise_high": float(judgement.pointwise_high[at]),
            }
        yield row
