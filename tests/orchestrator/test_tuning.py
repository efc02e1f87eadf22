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
from orchestrator.plots import plot
from orchestrator.provenance import Envelope
from orchestrator.search import Search, Setting
from orchestrator.spec import LoadedSpec
from orchestrator.spec.load import validated
from orchestrator.spec.strict_yaml import parse
from orchestrator.tuning import sampler, study
from orchestrator.tuning.sampler import Space
from orchestrator.tuning.study import rungs
from tests.orchestrator.made_tables import Metric, tables
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
    shifts with each octave of length, and lies elsewhere at some; a slope over the logarithm of
    other settings; from some rate on training diverges."""

    best: dict[str, float]
    shift: float = 1.0
    elsewhere: dict[int, float] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    bend: float = 0.05
    noise: float = 0.001
    diverges_from: float = math.inf
    unsupported: tuple[str, ...] = ()
    most_tokens: dict[str, int] = field(default_factory=dict)
    records: list[Envelope] = field(default_factory=list)

    def optimum(self, label: str, seq_len: int) -> float:
        shifted = self.shift ** math.log2(seq_len / 128)
        return self.best[label] * shifted * self.elsewhere.get(seq_len, 1.0)

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
        if cell.tokens > self.most_tokens.get(cell.label, cell.tokens):
            return Measurement(**facts, reason="timeout", detail="too long")
        away = math.log(cell.learning_rate / self.optimum(cell.label, cell.seq_len))
        chance = np.random.default_rng(int(cell.id[:15], 16)).normal(0, self.noise)
        known = {**cell.optimiser, **cell.options}
        slopes = sum(
            slope * math.log(float(str(known[name])))
            for name, slope in self.slopes.items()
            if name in known
        )
        value = 2.0 + 1e5 / cell.tokens + self.bend * away**2 + slopes + chance
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
    assert not any(search.at_edge or search.better_beside for search in plan.searches)


def test_lengths_with_a_search_of_their_own_are_not_taken_from_between_the_ends() -> None:
    """An optimum that lies elsewhere in the middle alone, and lengths beyond those searched."""
    world = Landscape(best=BEST, elsewhere={512: 8.0})
    own = sweep(lengths=(128, 256, 512, 1024), more=", seq_len: [128, 256, 512]")
    plan = carried_out(own, world)
    searched = {search.seq_len for search in plan.searches if not search.is_check}
    assert searched == {128, 256, 512}
    for (label, length), rate in rates(plan).items():
        optimum = world.optimum(label, 512 if length == 1024 else length)
        within = 2.6 if length == 1024 else 1.3  # its own check leads half a step back
        assert optimum / within < rate < optimum * 1.3, (label, length, rate, optimum)


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


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1e-2, 0.2]))
def test_what_interrupts_it_changes_nothing(killed: random.Random, best: float) -> None:
    """No trial repeated, none lost, the same end; also where one label's range is widened."""
    world = {**BEST, "lstm": best}
    loaded, broken, whole = sweep(), Landscape(best=world), Landscape(best=world)
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


BESIDE = ", forget_bias: {low: 0.3, high: 3.0}, dropout: {low: 0.01, high: 0.3}"
SLOPES = {"forget_bias": -0.1, "dropout": 0.1}
"""Between two settings of one rate as much lies as between two rates."""


def test_what_other_settings_did_is_no_merit_of_a_rate() -> None:
    world = Landscape(best=BEST, slopes=SLOPES)
    plan = carried_out(sweep(trials=16, more=BESIDE), world)
    for search in plan.searches:
        if not search.is_check:
            assert search.fitted and search.chosen is not None
            optimum = world.optimum(search.label, search.seq_len)
            assert optimum / 1.3 < search.chosen["learning_rate"] < optimum * 1.3
    for (label, length), rate in rates(plan).items():
        optimum = world.optimum(label, length)
        assert optimum / 1.3 < rate < optimum * 1.3


@pytest.mark.parametrize(
    ("trials", "more", "fitted"),
    [(4, "", True), (4, BESIDE, False), (8, BESIDE, False), (12, BESIDE, True)],
)
def test_all_are_fitted_or_nobody(trials: int, more: str, fitted: bool) -> None:
    """Also where one label alone has an option; who is not has the best trial's setting."""
    # The best rates far enough from the ends that nothing is widened, whatever the other settings.
    world = Landscape(best={"lstm": 4e-3, "gru": 3e-3, "none": 2e-3}, bend=0.2, slopes=SLOPES)
    plan = carried_out(sweep(lengths=[128], trials=trials, more=more), world)
    found = [search for search in plan.searches if not search.is_check]
    assert {search.fitted for search in found} == {fitted}
    for search in found:
        last = [trial for trial in search.trials if trial.cell.tokens == 2_000_000]
        best = min(last, key=lambda trial: trial.value or math.inf)
        assert search.chosen is not None
        raw = search.chosen["learning_rate"] == best.cell.learning_rate
        assert fitted or raw, "the best trial, where nobody is fitted"


Told = list[list[tuple[Setting, float]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Optuna's sampler is told, each time that it is asked."""
    heard: Told = []

    def ask(
        space: Space, costs: Iterable[tuple[Setting, float]], count: int, seed: int
    ) -> list[Setting]:
        heard.append(list(costs))
        return sampler.ask(space, heard[-1], count, seed)

    monkeypatch.setattr(study, "ask", ask)
    return heard


def tokens_told(told: Told, world: Landscape) -> list[set[int | None]]:
    """After how many tokens the losses are that were told, each time."""
    trials = [one.record for one in world.records if one.record.cell.kind == "tune"]
    known = {loss: one.cell.tokens for one in trials for loss in one.measurements[0].samples}
    return [{known[cost] for _, cost in costs if cost in known} for costs in told]


def test_the_sampler_is_told_losses_after_equal_tokens_alone(told: Told) -> None:
    world = Landscape(best={**BEST, "lstm": 0.2})
    carried_out(sweep(lengths=[128]), world)
    # Three labels after the range, the two that are not widened once more after halving.
    assert sorted(map(len, told)) == [4] * 5
    assert Counter(map(max, tokens_told(told, world))) == {1_000_000: 3, 2_000_000: 2}
    assert all(len(tokens) == 1 for tokens in tokens_told(told, world))


def test_the_sampler_is_told_of_what_has_no_value_whatever_its_tokens(told: Told) -> None:
    world = Landscape(best={**BEST, "lstm": 5e-5}, diverges_from=0.05)
    carried_out(sweep(lengths=[128]), world)
    assert len(told) == 5
    for costs in told:
        worst = max(costs, key=lambda pair: pair[1])
        assert worst[0]["learning_rate"] == 0.1


def test_the_sampler_is_told_of_the_first_rung_where_the_last_has_no_values(told: Told) -> None:
    world = Landscape(best={**BEST, "lstm": 0.2}, most_tokens={"gru": 1_000_000})
    carried_out(sweep(lengths=[128]), world)
    (of_first,) = (costs for costs in told if len(costs) == 8 + 4)
    assert tokens_told([of_first], world) == [{1_000_000}]


def test_a_length_whose_best_rate_lies_elsewhere_is_said_to() -> None:
    world = Landscape(best=BEST, elsewhere={256: 2.5})
    plan = carried_out(sweep(), world)
    found = {(one.seq_len, one.better_beside) for one in plan.searches if one.is_check}
    assert found == {(128, None), (256, "double"), (512, None)}


@pytest.mark.parametrize("trials", [4, 5, 6, 7, 8, 9])
def test_the_range_and_the_sampler_have_about_half_each(trials: int) -> None:
    plan = carried_out(sweep(lengths=[128], trials=trials), Landscape(best=BEST))
    for label in plan.labels:
        (search,) = searches_of(plan, label, 128)
        stages = Counter(trial.stage for trial in search.trials)
        assert stages["range"] == max(3, trials // 2)
        assert stages["sampler"] == trials - stages["range"] >= 1
        first = [trial.cell.learning_rate for trial in search.trials[: stages["range"]]]
        assert (first[0], first[-1]) == (1e-4, 1e-1)


def test_an_option_is_searched_for_where_an_architecture_has_it_in_as_many_trials() -> None:
    plan = carried_out(sweep(lengths=[128], more=BESIDE), Landscape(best=BEST))
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


def test_halving_leaves_what_a_fit_needs_where_it_can() -> None:
    assert [study.last_rung(16, beside) for beside in range(6)] == [4, 5, 6, 7, 8, 4]
    assert study.last_rung(8, beside=1) == 4
    assert rungs(16, 1000, last=8) == [(16, 500), (8, 1000)]


def test_settings_are_spread_over_the_whole_range() -> None:
    space = {"learning_rate": (1e-4, 1e-1), "weight_decay": (0.01, 1.0)}
    found = sampler.spread(space, 4)
    assert [one["learning_rate"] for one in found] == [1e-4, 1e-3, 1e-2, 1e-1]
    assert len({one["weight_decay"] for one in found}) == 4
    asked = sampler.ask(space, [(one, i) for i, one in enumerate(found)], 6, seed=3)
    assert asked == sampler.ask(space, [(one, i) for i, one in enumerate(found)], 6, seed=3)
    for one, name in itertools.product(asked, space):
        assert space[name][0] * 0.999 <= one[name] <= space[name][1] * 1.001


def test_the_best_so_far_is_drawn_of_equal_tokens() -> None:
    """A line for each label and rung, and none that falls back to a shorter rung's loss."""
    metric = Metric("validation_loss", "loss", kind="train", laws={"lstm": lambda n: 2.0})
    made = tables([metric], contexts=(256,))
    (drawing,) = plot.load("tuning").draw(made)
    history = drawing.figure.axes[1]
    drawn = [line for line in history.lines if len(line.get_xdata()) > 2]
    rows = [row for row in made.tuning.to_pylist() if row["value"] is not None]
    rungs_drawn = sorted({row["tokens"] for row in rows})
    assert len(drawn) == len(rungs_drawn) == 2
    for line, tokens in zip(drawn, rungs_drawn, strict=True):
        values = [row["value"] for row in rows if row["tokens"] == tokens]
        assert list(line.get_ydata())[:-1] == list(itertools.accumulate(values, min))
