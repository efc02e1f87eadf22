"""How forecasts are scored: quantile losses, and what the seasonal naive forecast reaches, in which
every row is as it was a season before.

    season 3     ...  47  48  49 | 47  48  49  47     after row 49
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.tasks.hourly_series import Numbers, filled


def ahead_of(rows: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """The `horizon` rows after each: (..., horizon)."""
    return rows[..., None] + np.arange(1, horizon + 1)


def naive(
    target: Numbers, origins: NDArray[np.int64], horizon: int, season: int
) -> NDArray[np.float64]:
    """Each of the next rows as it was a season before, from a series (R,) without gaps:
    (N, horizon)."""
    return np.asarray(target[origins[:, None] + 1 - season + np.arange(horizon) % season])


def quantile_losses(said: Numbers, true: Numbers, levels: Sequence[float]) -> Numbers:
    """Of quantiles (N, H, L) for values (N, H); not a number where the value is none."""
    over = true[..., None] - said
    level = np.array(levels)
    return np.maximum(level * over, (level - 1) * over)


def naive_error(target: Numbers, season: int) -> float:
    """Mean absolute error of "as a season before", one row ahead, which scales the errors of
    others."""
    return float(np.nanmean(np.abs(target[season:] - target[:-season])))


def baseline(
    target: Numbers,
    origins: NDArray[np.int64],
    *,
    train: int,
    season: int,
    horizon: int,
    stride: int,
    levels: Sequence[float],
) -> dict[str, Scalar]:
    """Figures at the origins of the seasonal naive forecast, of one season or of seven, whichever
    is the better in the first `train` rows; its quantiles add those of its own errors there, one
    forecast every `stride` rows."""
    gapless, scale = np.nan_to_num(filled(target)), naive_error(target[:train], season)
    true = target[ahead_of(origins, horizon)]
    facts: dict[str, Scalar] = {}
    best = math.inf
    for rows in (season, 7 * season):
        learnt = np.arange(rows - 1, train - horizon, stride)
        if not len(learnt):
            continue
        errors = target[ahead_of(learnt, horizon)] - naive(gapless, learnt, horizon, rows)
        said = naive(gapless, origins, horizon, rows)
        mase = float(np.nanmean(np.abs(true - said))) / scale
        facts[f"naive_{rows}_mase"] = mase
        if (in_training := float(np.nanmean(np.abs(errors)))) < best:
            best = in_training
            spread = np.moveaxis(np.nanquantile(errors, levels, axis=0), 0, -1)
            losses = quantile_losses(said[..., None] + spread, true, levels)
            facts |= {
                "baseline": f"seasonal naive, as {rows} rows before",
                "baseline_mase": mase,
                "baseline_pinball_loss": float(np.nanmean(losses)),
            }
    return facts
