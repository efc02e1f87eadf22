"""The statistics of the analysis on plain arrays: critical values, pooled variances, adjustments.

Everything is computed by quadrature, without random numbers: equal input, equal output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import brentq

Floats = NDArray[np.float64]
LEVEL = 0.95
UNEQUAL = 0.1
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


@dataclass(frozen=True, slots=True)
class Noise:
    """The standard errors of means over replicates, one a context, and what is known of them.

    errors: (contexts,). freedom: (contexts,) degrees of freedom of each error. pooled: whether one
    variance serves all contexts. shared: the part of the squared errors that all contexts have in
    common, because a replicate that is high at one context is high at all.
    """

    errors: Floats
    freedom: Floats
    pooled: bool
    shared: float = 0.0


def means(values: Floats) -> Floats:
    """The mean over replicates at each context of (replicates, contexts), NaN where one is missing;
    exact where all replicates are one number."""
    seen = np.isfinite(values)
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    return np.asarray(np.where(low == high, low, np.where(seen, values, 0.0).sum(0) / seen.sum(0)))


def noise(values: Floats) -> Noise:
    """The noise of the means of `values`, (replicates, contexts), NaN where one is missing.

    The variance is pooled over contexts unless Bartlett's (1937) test finds them unequal, at 10 %:
    to pool wrongly makes false claims, not to pool only widens intervals. Means at different
    contexts come of different processes; whether replicates nevertheless move together is asked of
    the two-way table by an F test at 5 %.
    """
    seen = np.isfinite(values)
    counts = seen.sum(0)
    squares = (np.where(seen, values - means(values), 0.0) ** 2).sum(0)
    freedom = (counts - 1).astype(float)
    variances = squares / freedom
    total = float(freedom.sum())
    if len(counts) > 1 and bartlett(variances, freedom) < UNEQUAL:
        return Noise(np.sqrt(variances / counts), freedom, pooled=False)
    pooled = float(squares.sum() / total)
    errors = np.sqrt(pooled / counts)
    shared, freedom_left = _shared(values[seen.all(1)], total)
    return Noise(errors, np.full(len(counts), freedom_left), pooled=True, shared=shared)


def bartlett(variances: Floats, freedom: Floats) -> float:
    """The p-value of Bartlett's test that all variances are equal; 1 where all are zero, 0 where
    only some are."""
    if not variances.any():
        return 1.0
    if not variances.all():
        return 0.0
    total, groups = freedom.sum(), len(variances)
    pooled = (freedom * variances).sum() / total
    statistic = total * np.log(pooled) - (freedom * np.log(variances)).sum()
    correction = 1 + ((1 / freedom).sum() - 1 / total) / (3 * (groups - 1))
    return float(special.chdtrc(groups - 1, statistic / correction))


def _shared(table: Floats, freedom: float) -> tuple[float, float]:
    """The variance of the replicates' own effect on every context, over their number, and the
    degrees of freedom of the pooled variance with it (Satterthwaite 1946); 0 where an F test at
    5 % does not find one."""
    replicates, contexts = table.shape
    if replicates < 2 or contexts < 2:
        return 0.0, freedom
    centred = table - table.mean(0)
    effects = centred.mean(1)
    between = contexts * float((effects**2).sum()) / (replicates - 1)
    rest = (replicates - 1) * (contexts - 1)
    within = float(((centred - effects[:, None]) ** 2).sum()) / rest
    if within == 0 or special.fdtrc(replicates - 1, rest, between / within) >= 1 - LEVEL:
        return 0.0, freedom
    parts = between / contexts, within * (contexts - 1) / contexts
    satterthwaite = sum(parts) ** 2 / (parts[0] ** 2 / (replicates - 1) + parts[1] ** 2 / rest)
    return (between - within) / contexts / replicates, satterthwaite


def student(freedom: Floats | float, level: float = LEVEL) -> Floats:
    """The two-sided critical value of Student's t."""
    return np.asarray(special.stdtrit(freedom, (1 + level) / 2), dtype=float)


def band(found: Noise) -> Floats:
    """Critical values, one a context, that hold at all contexts at once with probability LEVEL.

    With one pooled variance, Student's maximum modulus; else Šidák's product of independent t's.
    Where contexts correlate, both are conservative (Šidák 1967).
    """
    contexts = len(found.errors)
    if found.pooled:
        return np.full(contexts, maximum_modulus(contexts, round(float(found.freedom[0]), 6)))
    return student(found.freedom, float(LEVEL ** (1 / contexts)))


def any_difference(means: Floats, found: Noise) -> float:
    """The p-value of a difference at any context, by the largest |t| (the band's own test)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(np.where(means == 0, 0.0, means / found.errors))
    if found.pooled:
        return 1 - _modulus_below(float(t.max()), len(t), float(found.freedom[0]))
    inside = 2 * special.stdtr(found.freedom, t) - 1
    return float(1 - np.prod(inside))


@lru_cache(maxsize=4096)
def maximum_modulus(count: int, freedom: float) -> float:
    """The 95 % point of max |Z_i| / s over `count` independent normals and one s (Stoline and Ury
    1979)."""
    if count == 1:
        return float(student(freedom))
    return float(brentq(lambda q: _modulus_below(q, count, freedom) - LEVEL, 0.5, 200, xtol=1e-9))


def _modulus_below(q: float, count: int, freedom: float) -> float:
    if not np.isfinite(q):
        return 1.0
    scale, weights = _scale_quadrature(freedom)
    return float(min(1.0, (weights * special.erf(q * scale / np.sqrt(2)) ** count).sum()))


@lru_cache(maxsize=4096)
def one_sided_dunnett(count: int, freedom: float) -> float:
    """The 95 % point of max (Z_i - Z_0) / (s sqrt 2) over `count` comparisons with one mean
    (Dunnett 1955)."""
    scale, weights = _scale_quadrature(freedom)
    z = _NODES * 8
    density = _WEIGHTS * 8 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)

    def excess(q: float) -> float:
        below = special.ndtr(z[:, None] + q * np.sqrt(2) * scale) ** count
        return float(density @ below @ weights) - LEVEL

    return float(brentq(excess, 0.5, 200, xtol=1e-9))


@lru_cache(maxsize=4096)
def _scale_quadrature(freedom: float) -> tuple[Floats, Floats]:
    """Nodes and weights for an average over s / sigma, s² of `freedom` degrees of freedom.

    The nodes lie evenly in the normal scores of the distribution function, |z| < 7.
    """
    z = _NODES * 7
    weights = _WEIGHTS * 7 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    quantiles = 2 * special.gammaincinv(freedom / 2, special.ndtr(np.minimum(z, 0)))
    upper = 2 * special.gammainccinv(freedom / 2, special.ndtr(-np.maximum(z, 0)))
    squares = np.where(z < 0, quantiles, upper)
    return np.sqrt(squares / freedom), weights / weights.sum()


def detectable(errors: Floats, freedom: Floats, critical: Floats, power: float = 0.8) -> Floats:
    """The differences that exceed `critical` standard errors with probability `power`, exactly, by
    the noncentral t."""
    return np.asarray(errors * special.nctdtrinc(freedom, 1 - power, critical))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values, in the order given; None stays None and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (p, i) in enumerate(known):
        floor = max(floor, min(1.0, p * (len(known) - rank)))
        adjusted[i] = floor
    return adjusted


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a binomial share (Wilson 1927), for at least one trial."""
    z = float(special.ndtri((1 + LEVEL) / 2))
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * float(np.sqrt(share * (1 - share) / trials + weight / trials / 4))
    # Exact at both ends, where rounding would leave a hair's breadth.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == trials else centre + half


def mean_interval(values: Floats) -> tuple[float | None, float | None]:
    """The 95 % t interval of the mean of `values` (no NaN); (None, None) for fewer than two."""
    if len(values) < 2:
        return None, None
    half = float(student(len(values) - 1.0)) * float(values.std(ddof=1)) / len(values) ** 0.5
    centre = float(values.mean())
    return centre - half, centre + half
