"""How one contrast over contexts is judged: a pure function of an array (replicates, contexts).

A contrast is the log ratio (or difference) of two labels, replicate by replicate. *Is there a
crossing?* A simultaneous 95 % band over the contexts must exclude zero on opposite sides. *Where?*
The means are joined by straight lines in log2 context; the interval is the pointwise 95 % set of
Fieller (1954) of that line: every x at which |mean(x)| <= t * error(x), as far as it hangs
together about the crossing. Nothing is said beyond the first or last context.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from orchestrator.analysis import statistics
from orchestrator.analysis.statistics import Floats, Noise

MIN_REPLICATES = 5
_STEPS = 64
Outcome = Literal["crosses", "above", "below", "equivalent", "uncertain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A stretch of contexts in tokens; an open end lies at the end of what was measured."""

    low: float
    high: float
    low_open: bool
    high_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One crossing: where, in tokens, and whether the contrast rises through zero there."""

    seq_len: float
    interval: Range
    indifferent: Range | None
    rises: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a contrast shows. `above` and `below` mean: the whole band lies on that side of zero.

    means, low, high, pointwise_low, pointwise_high: (contexts,). p_value: of any difference, by the
    band's own max-t. smallest_effect: the difference that the band finds at one context with
    probability 0.8 (the noisiest context where variances are not pooled). `undecided` is where the
    line may be zero (pointwise), where there is no verdict.
    """

    outcome: Outcome
    places: tuple[Place, ...]
    undecided: Range | None
    indifferent: Range | None
    means: Floats
    low: Floats
    high: Floats
    pointwise_low: Floats
    pointwise_high: Floats
    p_value: float
    smallest_effect: float


def judge(values: Floats, contexts: Floats, margin: float) -> Judgement:
    """Judges `values`, (replicates, contexts), NaN where one is missing, at least two a context.

    `contexts` ascend, in tokens. Whatever lies within `margin` of zero counts as equal. Whether
    there are replicates enough for a verdict is the caller's to ask.
    """
    means = statistics.means(values)
    noise = statistics.noise(values)
    critical = statistics.band(noise)
    half, pointwise = critical * noise.errors, statistics.student(noise.freedom) * noise.errors
    signs = np.where(np.abs(means) > half, np.sign(means), 0).astype(int)
    line = Line(means, noise, np.log2(contexts))
    places = tuple(line.place(a, b, margin) for a, b in _changes(signs))
    outcome = _outcome(signs, bool((np.abs(means) + half < margin).all()))
    effects = statistics.detectable(noise.errors, noise.freedom, critical)
    return Judgement(
        outcome=outcome,
        places=places if outcome == "crosses" else (),
        undecided=line.undecided() if outcome == "uncertain" else None,
        indifferent=line.indifferent(margin),
        means=means,
        low=means - half,
        high=means + half,
        pointwise_low=means - pointwise,
        pointwise_high=means + pointwise,
        p_value=statistics.any_difference(means, noise),
        smallest_effect=float(effects.max()),
    )


def _changes(signs: np.ndarray[tuple[int], np.dtype[np.int_]]) -> list[tuple[int, int]]:
    """Neighbours among the decided contexts that are decided for opposite sides."""
    decided = np.flatnonzero(signs)
    return [(a, b) for a, b in pairwise(decided.tolist()) if signs[a] != signs[b]]


def _outcome(signs: np.ndarray[tuple[int], np.dtype[np.int_]], within_margin: bool) -> Outcome:
    if within_margin:
        return "equivalent"
    if _changes(signs):
        return "crosses"
    if signs.all():
        return "above" if signs[0] > 0 else "below"
    return "uncertain"


class Line:
    """The means joined by straight lines in log2 context, on a grid that holds every context and
    every zero."""

    def __init__(self, means: Floats, noise: Noise, places: Floats) -> None:
        self.contexts = places
        self.signs = np.sign(means)
        self.zeros = _zeros(means, places)
        steps = np.arange(len(places) - 1)[:, None] + np.arange(_STEPS) / _STEPS
        index = np.append(steps.ravel(), len(places) - 1.0)
        grid = np.interp(index, np.arange(len(places)), places)
        self.x = np.union1d(grid, self.zeros)
        left = np.clip(np.searchsorted(places, self.x, side="right") - 1, 0, len(places) - 1)
        right = np.minimum(left + 1, len(places) - 1)
        width = np.where(right > left, places[right] - places[left], 1.0)
        u = (self.x - places[left]) / width
        self.mean = means[left] * (1 - u) + means[right] * u
        self.mean[np.isin(self.x, self.zeros)] = 0.0
        self.reach = _reach(noise, left, right, u)

    def place(self, a: int, b: int, margin: float) -> Place:
        """The crossing between contexts a and b, decided for opposite sides: the middle one of the
        zeros between them, with the set of Fieller about all of them."""
        inside = (self.zeros > self.contexts[a]) & (self.zeros < self.contexts[b])
        zeros = self.zeros[inside]
        at = float(zeros[(len(zeros) - 1) // 2])
        if len(zeros) % 2 == 0:
            at = float((zeros[len(zeros) // 2 - 1] + zeros[len(zeros) // 2]) / 2)
        return Place(
            seq_len=float(2**at),
            interval=self.fieller(zeros[0], zeros[-1]),
            indifferent=self._about(np.abs(self.mean) - margin, at, at),
            rises=bool(self.signs[b] > 0),
        )

    def undecided(self) -> Range | None:
        """From the first to the last context at which the line may be zero."""
        possible = np.flatnonzero(np.abs(self.mean) <= self.reach)
        if not len(possible):
            return None
        first, last = self.x[possible[0]], self.x[possible[-1]]
        return self.fieller(first, last)

    def fieller(self, first: float, last: float) -> Range:
        """The stretch about first .. last (log2 tokens) in which the line may be zero,
        pointwise."""
        return self._about(np.abs(self.mean) - self.reach, first, last)

    def indifferent(self, margin: float) -> Range | None:
        """The stretch within `margin` about the place where the two are closest."""
        nearest = int(np.abs(self.mean).argmin())
        if abs(self.mean[nearest]) > margin:
            return None
        return self._about(np.abs(self.mean) - margin, self.x[nearest], self.x[nearest])

    def _about(self, excess: Floats, first: float, last: float) -> Range:
        """The stretch about first .. last in which `excess` <= 0, its ends by linear
        interpolation."""
        i = int(np.searchsorted(self.x, first))
        j = int(np.searchsorted(self.x, last))
        while i > 0 and excess[i - 1] <= 0:
            i -= 1
        while j < len(self.x) - 1 and excess[j + 1] <= 0:
            j += 1
        return Range(
            low=float(2 ** self._edge(excess, i, i - 1)),
            high=float(2 ** self._edge(excess, j, j + 1)),
            low_open=i == 0,
            high_open=j == len(self.x) - 1,
        )

    def _edge(self, excess: Floats, inner: int, outer: int) -> float:
        if not 0 <= outer < len(self.x) or excess[inner] >= 0:
            return float(self.x[inner])
        share = excess[inner] / (excess[inner] - excess[outer])
        return float(self.x[inner] + share * (self.x[outer] - self.x[inner]))


def _zeros(means: Floats, places: Floats) -> Floats:
    """Where the line is zero, ascending: at contexts whose mean is zero, and between opposite
    signs."""
    a, b = means[:-1], means[1:]
    between = np.flatnonzero(a * b < 0)
    share = a[between] / (a[between] - b[between])
    crossed = places[between] + share * (places[between + 1] - places[between])
    return np.sort(np.append(crossed, places[means == 0]))


def _reach(
    noise: Noise,
    left: np.ndarray[tuple[int], np.dtype[np.intp]],
    right: np.ndarray[tuple[int], np.dtype[np.intp]],
    u: Floats,
) -> Floats:
    """t * error of the line between contexts, with the interpolation's own variance.

    The degrees of freedom of two unlike variances are Satterthwaite's (1946).
    """
    squares = noise.errors**2
    one, two = (1 - u) ** 2 * squares[left], u**2 * squares[right]
    variance = one + two + 2 * u * (1 - u) * noise.shared
    if noise.pooled:
        return statistics.student(noise.freedom[0]) * np.sqrt(variance)
    parts = one**2 / noise.freedom[left] + two**2 / noise.freedom[right]
    known = parts > 0
    freedom = np.where(known, variance**2 / np.where(known, parts, 1.0), 1.0)
    return statistics.student(freedom) * np.sqrt(variance)
