"""The search at one length: steps 1 to 4."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.search import Edge, Search, Setting, Trial
from orchestrator.tuning.sampler import RATE, Range, ask, rounded, spread
from orchestrator.tuning.trials import Asked, Trials, Tried
from workloads.cell import Cell

LAST_RUNG = 4
"""Trials at the tokens asked for, at least: what a parabola needs, and one more."""
RANGE = 3
"""Trials evenly over the range, at least: its ends and one between."""
EDGE = 0.05
"""An optimum this close to an end of the range, in parts of its logarithm, lies at the end."""


def last_rung(trials: int, beside: int) -> int:
    """How few trials halving may leave: where it can, as many as a fit needs with so many settings
    beside the rate."""
    fit = LAST_RUNG + beside
    return fit if trials // 2 >= fit else LAST_RUNG


def rungs(trials: int, tokens: int, last: int = LAST_RUNG) -> list[tuple[int, int]]:
    """(trials, tokens of each) of every rung, down to no fewer than `last` trials, which have the
    tokens asked for."""
    sizes = [trials]
    while sizes[-1] // 2 >= last:
        sizes.append(sizes[-1] // 2)
    halvings = range(len(sizes) - 1, -1, -1)
    return [(size, max(1, tokens >> n)) for size, n in zip(sizes, halvings, strict=True)]


class Study(Trials):
    """The search at one length. `beside`: so many settings beside the rate does the
    file name, of which a label has all or fewer."""

    def __init__(self, template: Cell, asked: Asked, tried: Tried, beside: int) -> None:
        last = last_rung(asked.trials, beside)
        # Other rungs are another search: a number would stand for a trial of other tokens.
        purpose = "search" if last == LAST_RUNG else f"search down to {last}"
        super().__init__(template, asked, tried, purpose)
        self._rungs = rungs(asked.trials, asked.tokens, last)
        self._fit_needs = LAST_RUNG + beside
        self._space: dict[str, Range] = dict(asked.space)
        self._last: list[Trial] = []
        self._widened = False

    def explore(self) -> None:
        """Range, sampler, halving: steps 1 to 3."""
        (count, tokens), *later = self._rungs
        first = self.add("range", tokens, spread(self._space, max(RANGE, count // 2)))
        asked = self._sampled(count - len(first), tokens)
        self._last = first + self.add("sampler", tokens, asked)
        for count, tokens in later:
            best: list[Setting | None] = [None] * count
            if self.is_over:
                ranked = sorted(self._last, key=self.cost)
                best = [self.setting_of(trial) for trial in ranked[:count]]
            self._last = self.add("halving", tokens, best)

    @property
    def edge(self) -> Edge | None:
        """The end of the range at which the best rate lies."""
        best = self.best(self._last)
        low, high = map(math.log, self._space[RATE])
        if best is None:
            # A rate too high diverges; whatever else has stopped all of them, no rate will mend.
            return "low" if any(t.reason == "diverged" for t in self._last) else None
        place = (math.log(self.setting_of(best)[RATE]) - low) / (high - low)
        if place < EDGE:
            return "low"
        return "high" if place > 1 - EDGE else None

    def widen(self) -> None:
        """Step 4's trials more: beyond the end of the range, or where the sampler asks within."""
        edge, count, tokens = self.edge, self._asked.trials // 2, self._asked.tokens
        settings: Sequence[Setting | None]
        if edge is None:
            settings = self._sampled(count, tokens)
        else:
            self._widened = True
            low, high = self._space[RATE]
            further = math.sqrt(high / low)
            beyond = (low / further, low) if edge == "low" else (high, high * further)
            self._space[RATE] = (min(low, beyond[0]), max(high, beyond[1]))
            within = spread({**self._space, RATE: beyond}, count + 1)
            settings = within[:-1] if edge == "low" else within[1:]
        self._last = self._last + self.add("widened", tokens, settings)

    def setting(self) -> Setting | None:
        """The optimum; None where no trial has a value."""
        best = self.best(self._last)
        if best is None:
            return None
        rate = self._fitted()
        return {**self.setting_of(best), **({} if rate is None else {RATE: rounded(rate)})}

    def search(self) -> Search:
        low, high = self._space[RATE]
        return self._search(
            low=low,
            high=high,
            chosen=self.setting() if self.is_over else None,
            fitted=self.is_over and self._fitted() is not None,
            at_edge=self.edge if self.is_over else None,
            widened=self._widened,
        )

    def _fitted(self) -> float | None:
        # By the trials planned, not by those with a value: equal for all labels.
        if len(self._last) < self._fit_needs:
            return None
        return self.vertex(self._last, beside=sorted(set(self._space) - {RATE}))

    def _sampled(self, count: int, tokens: int) -> Sequence[Setting | None]:
        """What Optuna's sampler asks for at so many tokens, as one batch; nothing where it is not
        known yet, or on record already."""
        if not self.is_over or self.on_record(count):
            return [None] * count
        trials = self._tellable(tokens)
        costs = [self.cost(trial) for trial in trials]
        finite = [cost for cost in costs if math.isfinite(cost)]
        if not finite:
            return spread(self._space, count, shift=0.5)
        # One without a value is told as worse than the worst: left out, it would be asked again.
        worst = max(finite) + (max(finite) - min(finite) or 1.0)
        told = [
            (self.setting_of(trial), cost if math.isfinite(cost) else worst)
            for trial, cost in zip(trials, costs, strict=True)
        ]
        return ask(self._space, told, count, seed=int(self.id, 16) % 2**32)

    def _tellable(self, tokens: int) -> list[Trial]:
        """The trials of so many tokens, or of the first rung where none of those has a value; and
        whatever has none: what diverges after some tokens is no better after others."""
        valued = {trial.cell.tokens for trial in self.trials if trial.value is not None}
        told = tokens if tokens in valued else self._rungs[0][1]
        return [t for t in self.trials if t.value is None or t.cell.tokens == told]
