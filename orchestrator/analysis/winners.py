"""The winners: at each context and batch, the labels that cannot be told from the best.

Multiple comparisons with the best (Hsu 1981; Gupta's subset selection): a label leaves the set when
it is worse than the best by more than one-sided Dunnett's value times the error of a difference.
The true best is in the set with probability 95 % or more, whatever the differences. The noise is
the residual of the two-way table labels x replicates, on logs for metrics compared by ratio; it is
taken as equal for all labels at one context.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from orchestrator.analysis.blocks import Block
from orchestrator.analysis.judgement import MIN_REPLICATES
from orchestrator.analysis.statistics import Floats, one_sided_dunnett


def rows(
    blocks: tuple[Block, ...], environment: str | None, references: Collection[str] = ()
) -> list[dict[str, object]]:
    """The rows of the `winners` table. An `undertrained` label has a median and no verdict, nor has
    anyone where nobody is better than what needs no model; with fewer than five complete replicates
    nobody leaves the set. `references` are labels that are no candidates and have no rows. Shares
    of successes have none either: see `pairs`."""
    found = []
    for block in (one for one in blocks if one.facts.scale != "share"):
        candidates = [i for i, label in enumerate(block.labels) if label not in references]
        for j, context in enumerate(block.contexts):
            judged = [
                i
                for i in candidates
                if np.isfinite(block.comparable[i, j]).any()
                and block.reasons[i][j] != "undertrained"
            ]
            hopeless = bool(judged) and all(block.beats_trivial(i, j) is False for i in judged)
            best, members = _best_set(block, j, judged)
            for i in (i for i in candidates if block.planned[i, j]):
                values = block.values[i, j][np.isfinite(block.values[i, j])]
                undecided = block.reasons[i][j] == "undertrained" or (
                    (hopeless or not len(values)) and block.reasons[i][j] is None
                )
                found.append(
                    block.key
                    | {
                        "environment": environment,
                        "seq_len": context,
                        "label": block.labels[i],
                        "best": None if undecided else i in best,
                        "in_best_set": None if undecided else i in members,
                        "median": float(np.median(values)) if len(values) else None,
                    }
                )
    return found


def _best_set(block: Block, j: int, judged: list[int]) -> tuple[set[int], set[int]]:
    """Indices of the best labels (several only where they are exactly equal), and of the set."""
    if not judged:
        return set(), set()
    table = block.comparable[judged, j]
    table = table[:, np.isfinite(table).all(0)]
    if block.facts.scale == "ratio":
        table = np.log(np.where(table > 0, table, np.nan))
    if block.facts.better == "smaller":
        table = -table
    if not table.shape[1] or not np.isfinite(table).all():
        return set(), set(judged)
    behind = shortfall(table)
    best = {judged[k] for k in np.flatnonzero(behind == 0)}
    if table.shape[1] < MIN_REPLICATES:
        return best, set(judged)
    return best, {judged[k] for k in np.flatnonzero(behind <= allowance(table))}


def shortfall(table: Floats) -> Floats:
    """How far each label's mean lies behind the best, (labels,), of (labels, replicates) in which
    more is better."""
    means = table.mean(1)
    means = np.where(np.ptp(table, axis=1) == 0, table[:, 0], means)
    return np.asarray(means.max() - means)


def allowance(table: Floats) -> float:
    """How far behind a label may lie and still not be told from the best."""
    labels, replicates = table.shape
    if labels == 1 or not np.ptp(table, axis=1).any():
        return 0.0
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    freedom = float((labels - 1) * (replicates - 1))
    error = np.sqrt((residual**2).sum() / freedom * 2 / replicates)
    return float(one_sided_dunnett(labels - 1, freedom) * error)
