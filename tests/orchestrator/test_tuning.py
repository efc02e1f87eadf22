"""Searches over laws that are known: the optimum is found, by equal means for all, and whatever
interrupts a search, it goes on where it was."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.answers import Answers
from orchestrator.plan import Plan
from orchestrator.planning import planned
from orchestrator.provenance import Envelope
from orchestrator.search import Search
from orchestrator.spec import LoadedSpec
from orchestrator.spec.load import validated
from orchestrator.spec.strict_yaml import parse
from orchestrator.tuning import sampler
from orchestrator.tuning.study import rungs
from tests.simulated_world import ENVIRONMENT, enveloped
from workloads.cell import Cell
from workloads.measurement import Measurement
from workloads.record import RunRecord

SWEEP = """
name: tuned
question: Which rate?
architectures: [lstm, gru, none]
task: language_modelling
device: cpu
model: {{parameters: [100_000], num_layers: 2}}
train:
  seq_len: {lengths}
  tokens: 4_000_000
  tokens_per_update: 4096
  seeds: 2
  metrics: [validation_loss]
tune: {{learning_rate: {{low: {low}, high: {high}}}, trials: {trials}, tokens: 2_000_000{more}}}
compare: {{baseline: lstm, zone: [128, 512]}}
"""


def sweep(
    *,
    lengths: Iterable[int] = (128, 256, 512),
    low: float = 1e-4,
    high: float = 1e-1,
    trials: int = 8,
    more: str = "",
) -> LoadedSpec:
    text = SWEEP.format(lengths=list(lengths), low=low, high=high, trials=trials, more=more)
    return LoadedSpec(path="x.yaml", spec=validated("x.yaml", parse(text)), text=text)


@dataclass(kw_only=True)
class Landscape:
    """Loss over rate: a parabola over the logarithm around the best rate of each label, which
    shifts with each octave of length; from some rate on training diverges."""

    best: dict[str, float]
    shift: float = 1.0
    bend: float = 0.05
    noise: float = 0.001
    diverges_from: float = math.inf
    unsupported: tuple[str, ...] = ()
    records: list[Envelope] = field(default_factory=list)

    def optimum(self, label: str, seq_len: int) -> float:
        return self.best[label] * self.shift ** math.log2(seq_len / 128)

    def answer(self, cells: Iterable[Cell]) -> None:
        pairs = [(cell, self._record(cell)) for cell in cells]
        self.records += enveloped(pairs, attempt=len(self.records) + 1)

    def _record(self, cell: Cell) -> RunRecord:
        return RunRecord(
            cell=cell,
            status="finished",
            environment=ENVIRONMENT,
            measurements=(self._loss(cell),),
            started_at=1.0,
            seconds=1.0,
        )

    def _loss(self, cell: Cell) -> Measurement:
        facts = {"metric": "validation_loss", "version": 1, "unit": "nats", "title": "loss"}
        assert cell.learning_rate is not None and cell.tokens is not None
        if cell.label in self.unsupported:
            return Measurement(**facts, reason="unsupported", detail="not here")
        if cell.learning_rate >= self.diverges_from:
            return Measurement(**facts, reason="diverged", detail="not finite")
        away = math.log(cell.learning_rate / self.optimum(cell.label, cell.seq_len))
        chance = np.random.default_rng(int(cell.id[:15], 16)).normal(0, self.noise)
        value = 2.0 + 1e5 / cell.tokens + self.bend * away**2 + chance
        return Measurement(**facts, samples=(value,))


def plan_after(loaded: LoadedSpec, world: Landscape) -> Plan:
    return planned(loaded, world.records, {"cpu:1": ENVIRONMENT})


def todo(plan: Plan, world: Landscape) -> list[Cell]:
    return Answers.of(plan, world.records, {"cpu:1": ENVIRONMENT}).pending()


def carried_out(loaded: LoadedSpec, world: Landscape, killed: random.Random | None = None) -> Plan:
    """The sweep to its end; `killed` answers only some cells before each new start."""
    while cells := todo(plan := plan_after(loaded, world), world):
        if killed is not None:
            cells = killed.sample(cells, killed.randint(1, len(cells)))
        world.answer(cells)
    return plan


def rates(plan: Plan) -> dict[tuple[str, int], float]:
    """What is trained with, by label and length: the same at every seed."""
    found = {(c.label, c.seq_len, c.learning_rate) for c in plan.cells if c.kind == "train"}
    assert len(found) == len({one[:2] for one in found})
    return {(label, length): rate for label, length, rate in found if rate is not None}


BEST = {"lstm": 1e-2, "gru": 2.5e-3, "none": 6e-4}


@pytest.mark.parametrize("shift", [1.0, 0.7])
def test_finds_the_planted_optimum_at_every_length(shift: float) -> None:
    world = Landscape(best=BEST, shift=shift)
    plan = carried_out(sweep(), world)
    found = rates(plan)
    assert len(found) == 9
    for (label, length), rate in found.items():
        optimum = world.optimum(label, length)
        assert optimum / 1.3 < rate < optimum * 1.3, (label, length, rate, optimum)
    assert not any(search.at_edge for search in plan.searches)


BESTS = st.tuples(*[st.floats(2e-4, 5e-2)] * 3)


@settings(max_examples=15, deadline=None)
@given(BESTS, st.floats(0.7, 1.4), st.sampled_from([4, 8, 12, 16]))
def test_all_search_by_equal_means(best: tuple[float, ...], shift: float, trials: int) -> None:
    world = Landscape(best=dict(zip(BEST, best, strict=True)), shift=shift, diverges_from=0.05)
    plan = carried_out(sweep(trials=trials), world)
    spent: dict[str, Counter[tuple[int, int | None]]] = {}
    for search in plan.searches:
        counts = spent.setdefault(search.label, Counter())
        counts.update((search.seq_len, trial.cell.tokens) for trial in search.trials)
    assert spent["lstm"] == spent["gru"] == spent["none"]
    assert len(rates(plan)) == 9


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_interrupts_it_changes_nothing(killed: random.Random) -> None:
    """No trial repeated, none lost, the same end."""
    loaded, broken, whole = sweep(), Landscape(best=BEST), Landscape(best=BEST)
    ended = carried_out(loaded, broken, killed)
    assert ended == carried_out(loaded, whole)
    trials = [e.record.cell for e in broken.records if e.record.cell.kind == "tune"]
    assert set(Counter((cell.study, cell.trial) for cell in trials).values()) == {1}
    assert {c.id for c in trials} == {c.id for c in ended.cells if c.kind == "tune"}


def searches_of(plan: Plan, label: str, length: int) -> list[Search]:
    return [s for s in plan.searches if s.label == label and s.seq_len == length and not s.is_check]


@pytest.mark.parametrize(("best", "edge"), [(4e-5, "low"), (0.2, "high")])
def test_a_range_that_ends_before_the_optimum_is_widened_once(best: float, edge: str) -> None:
    world = Landscape(best={**BEST, "lstm": best})
    plan = carried_out(sweep(), world)
    (widened,), (other,) = searches_of(plan, "lstm", 128), searches_of(plan, "gru", 128)
    assert (widened.widened, other.widened) == (True, False)
    assert (widened.low, widened.high) != (other.low, other.high) == (1e-4, 1e-1)
    assert len(widened.trials) == len(other.trials) == 8 + 4 + 4
    assert widened.at_edge is None
    assert best / 1.3 < rates(plan)["lstm", 128] < best * 1.3, edge


def test_an_optimum_beyond_the_widened_range_is_said_to_lie_there() -> None:
    plan = carried_out(sweep(), Landscape(best={**BEST, "lstm": 1e-7}))
    (search,) = searches_of(plan, "lstm", 128)
    assert search.widened and search.at_edge == "low"
    assert search.chosen is not None and not search.fitted


def test_what_never_gets_a_value_is_trained_all_the_same_and_ends_as_it_did() -> None:
    world = Landscape(best=BEST, unsupported=("gru",))
    plan = carried_out(sweep(), world)
    (search,) = searches_of(plan, "gru", 128)
    assert search.chosen is None and {trial.reason for trial in search.trials} == {"unsupported"}
    assert rates(plan)["gru", 256] == pytest.approx(math.sqrt(1e-4 * 1e-1))
    assert all(world.optimum("lstm", n) / 1.3 < rates(plan)["lstm", n] for n in (128, 512))


def test_rates_that_diverge_are_the_worst() -> None:
    world = Landscape(best={**BEST, "lstm": 4e-3}, diverges_from=1.2e-2)
    rate = rates(carried_out(sweep(), world))["lstm", 128]
    assert 4e-3 / 1.3 < rate < 4e-3 * 1.3


def test_what_waits_is_planned_and_not_run() -> None:
    loaded, world = sweep(), Landscape(best=BEST)
    first = plan_after(loaded, world)
    assert {cell.kind for cell in first.cells} == {"tune", "train"}
    assert len(todo(first, world)) == 3 * 2 * 4
    assert all(cell.is_open for cell in first.cells if cell.kind == "train")
    last = carried_out(loaded, world)
    assert not any(cell.is_open for cell in last.cells)
    assert not {cell.seed for cell in last.cells if cell.kind == "train"} & {
        cell.seed for cell in last.cells if cell.kind == "tune"
    }


def test_other_settings_are_searched_for_beside_the_rate() -> None:
    more = ", weight_decay: {low: 0.01, high: 1.0}, clip_norm: {low: 0.1, high: 10}"
    plan = carried_out(sweep(lengths=[128], more=more), Landscape(best=BEST))
    trained = [cell for cell in plan.cells if cell.kind == "train"]
    assert all(set(cell.optimiser) == {"weight_decay", "clip_norm"} for cell in trained)
    assert all(0.01 <= float(str(c.optimiser["weight_decay"])) <= 1 for c in trained)
    (search,) = searches_of(plan, "lstm", 128)
    assert len({trial.cell.optimiser["clip_norm"] for trial in search.trials}) > 4


def test_an_option_is_searched_for_where_an_architecture_has_it_in_as_many_trials() -> None:
    more = ", forget_bias: {low: 0.3, high: 3.0}, dropout: {low: 0.01, high: 0.3}"
    plan = carried_out(sweep(lengths=[128], more=more), Landscape(best=BEST))
    for cell in plan.cells:
        assert ("forget_bias" in cell.options) == (cell.label == "lstm")
        assert "dropout" in cell.optimiser
    spent = {
        label: [len(one.trials) for one in searches_of(plan, label, 128)] for label in plan.labels
    }
    assert len({tuple(counts) for counts in spent.values()}) == 1
    (search,) = searches_of(plan, "lstm", 128)
    assert len({trial.cell.options["forget_bias"] for trial in search.trials}) > 4


def test_other_ranges_are_another_search() -> None:
    world = Landscape(best=BEST)
    carried_out(sweep(), world)
    again = plan_after(sweep(low=2e-4), world)
    assert len(todo(again, world)) == 3 * 2 * 4


def test_rungs_end_with_four_at_the_tokens_asked_for() -> None:
    assert rungs(8, 1000) == [(8, 500), (4, 1000)]
    assert rungs(4, 1000) == [(4, 1000)]
    assert rungs(20, 1000) == [(20, 250), (10, 500), (5, 1000)]


def test_settings_are_spread_over_the_whole_range() -> None:
    space = {"learning_rate": (1e-4, 1e-1), "weight_decay": (0.01, 1.0)}
    found = sampler.spread(space, 4)
    assert [one["learning_rate"] for one in found] == [1e-4, 1e-3, 1e-2, 1e-1]
    assert len({one["weight_decay"] for one in found}) == 4
    asked = sampler.ask(space, [(one, i) for i, one in enumerate(found)], 6, seed=3)
    assert asked == sampler.ask(space, [(one, i) for i, one in enumerate(found)], 6, seed=3)
    for one, name in itertools.product(asked, space):
        assert space[name][0] * 0.999 <= one[name] <= space[name][1] * 1.001
