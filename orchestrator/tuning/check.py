"""Step 5: a setting, its rate halved and doubled, at one length."""

from __future__ import annotations

import math

from orchestrator.search import Edge, Search, Setting
from orchestrator.tuning.sampler import RATE, rounded
from orchestrator.tuning.trials import Asked, Trials, Tried
from workloads.cell import Cell

CHECKED = (0.5, 1.0, 2.0)
"""In the order of the trials, on which `Search.better_beside` relies."""


class Check(Trials):
    """`setting` is what the searches have found for the length, None where there is none."""

    def __init__(self, template: Cell, asked: Asked, tried: Tried, setting: Setting | None) -> None:
        super().__init__(template, asked, tried, f"check {sorted((setting or {}).items())}")
        self._middle = setting or {name: math.sqrt(a * b) for name, (a, b) in asked.space.items()}
        self._found = setting

    def wait(self) -> None:
        """The searches are not over."""
        self.add("check", self._asked.tokens, [None] * len(CHECKED))

    def carry_out(self) -> None:
        """Nothing where the searches have found none: there is nothing to try then."""
        if (setting := self._found) is not None:
            rates = [rounded(factor * setting[RATE]) for factor in CHECKED]
            self.add("check", self._asked.tokens, [{**setting, RATE: rate} for rate in rates])

    @property
    def setting(self) -> Setting:
        """What the length is trained with. Where no trial has a value, the middle: it will end as
        they did."""
        best = self.best(self.trials)
        if best is None:
            return self._middle
        rate = self.vertex(self.trials)
        return self.setting_of(best) if rate is None else {**self._middle, RATE: rounded(rate)}

    def search(self) -> Search:
        rates = [trial.cell.learning_rate or 0.0 for trial in self.trials] or [self._middle[RATE]]
        best = self.best(self.trials)
        edge: Edge | None = None
        if best is not None and self.is_over and self.vertex(self.trials) is None:
            rate = best.cell.learning_rate
            edge = "low" if rate == min(rates) else "high" if rate == max(rates) else None
        return self._search(
            low=min(rates),
            high=max(rates),
            chosen=self.setting if self.is_over else None,
            fitted=self.is_over and self.vertex(self.trials) is not None,
            at_edge=edge,
            is_check=True,
        )
