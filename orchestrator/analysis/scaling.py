"""How a metric grows with context: its local exponent at the top, and its parts in 1, T and T².

`local_exponent` is the log-log slope over the top octave (from half the longest context on, or the
last two contexts where that holds only one), 95 % by t over the replicates' own slopes. The parts
are a non-negative least-squares fit of constant + linear T + quadratic T² to relative errors, of
the replicates' geometric means; their intervals are by t over the replicates' own fits, cut at
zero. Only curves that are positive, and compared by ratio or counted in bytes, have either.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from orchestrator.analysis.blocks import Block
from orchestrator.analysis.statistics import Floats, mean_interval

PARTS = ("constant", "linear", "quadratic")


def rows(blocks: tuple[Block, ...], environment: str | None) -> list[dict[str, object]]:
    """The rows of the `scaling` table: every label with at least two contexts in a block."""
    found = []
    for block in blocks:
        if block.facts.scale != "ratio" and block.facts.unit != "bytes":
            continue
        for i, label in enumerate(block.labels):
            values, contexts = _complete(block.comparable[i], np.array(block.contexts, dtype=float))
            if len(contexts) < 2 or not (values > 0).all():
                continue
            row = block.key | {"label": label, "environment": environment}
            found.append(row | exponent(values, contexts) | parts(values, contexts))
    return found


def _complete(values: Floats, contexts: Floats) -> tuple[Floats, Floats]:
    """(replicates, contexts) of the contexts that have any value and the replicates that have all;
    the replicates' geometric mean as one replicate where none has."""
    there = np.isfinite(values).any(1)
    table = values[there].T
    whole = np.isfinite(table).all(1)
    if whole.any() or not table.size or (table[np.isfinite(table)] <= 0).any():
        return table[whole], contexts[there]
    return np.exp(np.nanmean(np.log(table), axis=0))[None], contexts[there]


def exponent(values: Floats, contexts: Floats) -> dict[str, object]:
    """The log-log slope of `values`, (replicates, contexts), over the top octave."""
    top = contexts >= contexts[-1] / 2
    top[-2:] = True
    x, y = np.log(contexts[top]), np.log(values[:, top])
    x = x - x.mean()
    slopes = y @ x / (x @ x)
    low, high = _interval(slopes)
    return {
        "local_exponent": float(slopes.mean()),
        "low": low,
        "high": high,
        "replicates": len(slopes),
    }


def parts(values: Floats, contexts: Floats) -> dict[str, object]:
    """The constant, linear and quadratic part of `values`; nothing for fewer than three
    contexts."""
    if len(contexts) < len(PARTS):
        return {}
    scale = contexts[-1] ** np.arange(len(PARTS))
    powers = contexts[:, None] ** np.arange(len(PARTS)) / scale

    def fit(curve: Floats) -> Floats:
        return np.asarray(nnls(powers / curve[:, None], np.ones(len(curve)))[0] / scale)

    centre = fit(np.exp(np.log(values).mean(0)))
    fits = np.array([fit(curve) for curve in values])
    row: dict[str, object] = {}
    for name, value, replicates in zip(PARTS, centre.tolist(), fits.T, strict=True):
        low, high = _interval(replicates)
        row[name] = value
        row[f"{name}_low"] = None if low is None else max(0.0, min(low, value))
        row[f"{name}_high"] = None if high is None else max(high, value)
    return row


def _interval(replicates: Floats) -> tuple[float | None, float | None]:
    if len(replicates) > 1 and np.ptp(replicates) == 0:
        return float(replicates[0]), float(replicates[0])
    return mean_interval(replicates)
