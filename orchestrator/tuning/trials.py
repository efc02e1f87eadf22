"""The trials of a study: which cells they are, and what is on record of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from orchestrator import journal
from orchestrator.journal import Merged
from orchestrator.provenance import Envelope
from orchestrator.search import Search, Setting, Stage, Trial
from orchestrator.tuning.sampler import RATE, Space
from workloads import registry
from workloads.cell import RECIPE, Cell, canonical_json
from workloads.measurement import Better

SEED = 1_000_003
"""Of every trial's weights and data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the sweep file asks for: `space` by name, the learning rate among them."""

    space: Space
    trials: int
    tokens: int
    metric: str


@dataclass(frozen=True, slots=True)
class Tried:
    """The trials on record in one environment."""

    merged: Mapping[tuple[str, int], Merged] = field(default_factory=dict)

    @classmethod
    def of(cls, envelopes: Iterable[Envelope], fingerprint: str) -> Tried:
        found: dict[tuple[str, int], Merged] = {}
        trials = (one for one in envelopes if one.record.cell.kind == "tune")
        groups = journal.merge(e for e in trials if e.record.environment.fingerprint == fingerprint)
        # Two settings under one number: another version of the sampler asked. The newest holds.
        for merged in sorted(groups.values(), key=lambda one: one.newest.order):
            cell = merged.cell
            assert cell.study is not None and cell.trial is not None
            found[cell.study, cell.trial] = merged
        return cls(found)


def trained_with(cell: Cell, setting: Setting) -> Cell:
    """The cell with this setting."""
    recipe = {name: value for name, value in setting.items() if name in RECIPE}
    options = {n: value for n, value in setting.items() if n != RATE and n not in RECIPE}
    return replace(
        cell,
        learning_rate=setting[RATE],
        optimiser={**cell.optimiser, **recipe},
        options={**cell.options, **options},
    )


def concerning(cell: Cell, asked: Asked) -> Asked:
    """What is asked of a label: of options only those that its architecture has."""
    space = {
        name: ends
        for name, ends in asked.space.items()
        if name in (RATE, *RECIPE) or registry.has_option(cell.architecture, name)
    }
    return replace(asked, space=space)


class Trials:
    """The trials of one study: a template of its cells, and what is on record of them."""

    def __init__(self, template: Cell, asked: Asked, tried: Tried, purpose: str) -> None:
        self._asked, self._tried = asked, tried
        self._metric = registry.metric(template.task, asked.metric)
        content = {
            "cell": replace(template, metrics=(), tokens=None).id,
            "asked": [sorted(asked.space.items()), asked.trials, asked.tokens, asked.metric],
            "purpose": purpose,
        }
        self.id = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]
        self._template = replace(
            template,
            kind="tune",
            study=self.id,
            seed=SEED,
            metrics=(asked.metric,),
            eval_seq_len=(),
        )
        self.trials: list[Trial] = []

    @property
    def is_over(self) -> bool:
        """Every trial so far is answered."""
        return all(trial.answered for trial in self.trials)

    @property
    def better(self) -> Better:
        return self._metric.better

    def add(self, stage: Stage, tokens: int, settings: Sequence[Setting | None]) -> list[Trial]:
        """The next trials, of these settings; None: what it will be is not known yet."""
        new = []
        for setting in settings:
            number = len(self.trials) + 1
            known = self._tried.merged.get((self.id, number))
            cell = replace(self._template, trial=number, tokens=tokens)
            if known is not None:
                # The very cell, so that a failed one is tried again and not another beside it.
                then = known.cell
                cell = replace(
                    cell,
                    learning_rate=then.learning_rate,
                    optimiser=then.optimiser,
                    options=then.options,
                )
            elif setting is not None:
                cell = trained_with(cell, setting)
            new.append(self._answered(cell, stage, known))
            self.trials.append(new[-1])
        return new

    def on_record(self, count: int) -> bool:
        """Whether the settings of the next so many trials are."""
        following = range(len(self.trials) + 1, len(self.trials) + count + 1)
        return all((self.id, number) in self._tried.merged for number in following)

    def _answered(self, cell: Cell, stage: Stage, known: Merged | None) -> Trial:
        versions = {self._asked.metric: self._metric.version}
        if known is None or journal.missing(cell, known, versions):
            return Trial(cell=cell, stage=stage)
        found = known.measurements[self._asked.metric]
        value = float(np.median(found.samples)) if found.samples else None
        return Trial(cell=cell, stage=stage, value=value, reason=found.reason)

    def cost(self, trial: Trial) -> float:
        """Smaller is better, infinite without a value."""
        if trial.value is None:
            return math.inf
        return trial.value if self.better == "smaller" else -trial.value

    def setting_of(self, trial: Trial) -> Setting:
        cell = trial.cell
        known = {**asdict(cell.recipe), **cell.options, RATE: cell.learning_rate or 0.0}
        return {name: float(str(known[name])) for name in self._asked.space}

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """The one of least cost; None where none has a value."""
        return min(
            (trial for trial in trials if trial.value is not None), key=self.cost, default=None
        )

    def vertex(self, trials: Sequence[Trial], beside: Sequence[str] = ()) -> float | None:
        """The rate at the bottom of a parabola through cost over log rate, once the settings
        `beside` it have had a linear term each in their logarithm; None where the trials with a
        value do not determine it, it opens downwards, or its bottom lies outside of them."""
        known = [trial for trial in trials if trial.value is not None]
        x = np.array([math.log(trial.cell.learning_rate or 1.0) for trial in known])
        if len(set(x.round(6))) < 3:
            return None
        away = x - x.mean()
        settings = [self.setting_of(trial) for trial in known]
        logs = [np.log([setting[name] for setting in settings]) for name in beside]
        terms = np.stack([away**2, away, np.ones_like(x), *(z - z.mean() for z in logs)], axis=1)
        costs = [self.cost(trial) for trial in known]
        (bend, slope, *_), _, rank, _ = np.linalg.lstsq(terms, costs, rcond=None)
        if rank < terms.shape[1] or bend <= 0:
            return None
        bottom = float(x.mean() - slope / (2 * bend))
        return math.exp(bottom) if x.min() <= bottom <= x.max() else None

    def _search(self, **more: Any) -> Search:
        cell = self._template
        low, high = self._asked.space[RATE]
        values: dict[str, Any] = {"low": low, "high": high, **more}
        return Search(
            label=cell.label,
            size=cell.size,
            seq_len=cell.seq_len,
            metric=self._asked.metric,
            better=self.better,
            trials=tuple(self.trials),
            **values,
        )
