"""Laws of the judgement of one contrast: crossings, verdicts, intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.analysis.judgement import Judgement, judge
from orchestrator.analysis.statistics import Floats

CONTEXTS = np.array([64.0, 128, 256, 384, 512, 1024, 2048, 4096])
PLACES = np.log2(CONTEXTS)


def judged(law: Floats, sigma: float = 0.0, *, seed: int = 0, margin: float = 0.05) -> Judgement:
    noise = np.random.default_rng(seed).normal(0, 1, (5, len(law))) * sigma
    return judge(law + noise, CONTEXTS[: len(law)], margin)


def test_an_exact_line_crosses_exactly_where_algebra_says() -> None:
    found = judged(0.3 * (PLACES - np.log2(450)))
    (place,) = found.places
    assert found.outcome == "crosses"
    assert place.seq_len == pytest.approx(450)
    assert place.interval.low == place.interval.high == place.seq_len
    assert place.rises
    assert not place.interval.low_open and not place.interval.high_open


def test_a_crossing_at_a_measured_context_is_that_context() -> None:
    (place,) = judged(0.5 * (PLACES - 9)).places
    assert place.seq_len == place.interval.low == place.interval.high == 512


def test_the_indifferent_range_is_where_the_line_lies_within_the_margin() -> None:
    (place,) = judged(0.1 * (PLACES - 9), margin=0.05).places
    assert place.indifferent is not None
    assert place.indifferent.low == pytest.approx(512 / 2**0.5, rel=1e-3)
    assert place.indifferent.high == pytest.approx(512 * 2**0.5, rel=1e-3)


def test_several_crossings_alternate_and_ascend() -> None:
    found = judged(np.array([-1.0, -1, 1, 1, 1, -1, -1, 1]), 0.01)
    assert [place.rises for place in found.places] == [True, False, True]
    assert sorted(p.seq_len for p in found.places) == [p.seq_len for p in found.places]


@pytest.mark.parametrize(("side", "outcome"), [(1.0, "above"), (-1.0, "below")])
def test_a_band_on_one_side_throughout(side: float, outcome: str) -> None:
    found = judged(np.full(8, side), 0.01)
    assert found.outcome == outcome
    assert not found.places and found.undecided is None


def test_a_band_within_the_margin_throughout_is_equivalent() -> None:
    assert judged(np.full(8, 0.01), 0.002).outcome == "equivalent"


def test_what_is_undecided_up_to_the_end_is_open_there() -> None:
    found = judged(np.array([-1.0, -1, -1, -1, -1, -0.5, 0, 0]), 0.05)
    assert found.outcome == "uncertain"
    assert found.undecided is not None
    assert 1024 < found.undecided.low < 2048
    assert found.undecided.high == 4096
    assert found.undecided.high_open and not found.undecided.low_open


def test_one_context_can_be_judged_and_cannot_cross() -> None:
    assert judged(np.array([1.0]), 0.01).outcome == "above"


laws = st.lists(st.floats(-1, 1), min_size=8, max_size=8).map(np.array)


@settings(max_examples=60, deadline=None)
@given(law=laws, seed=st.integers(0, 1000))
def test_mirroring_the_contrast_mirrors_everything(law: Floats, seed: int) -> None:
    values = law + np.random.default_rng(seed).normal(0, 0.1, (5, 8))
    one, other = judge(values, CONTEXTS, 0.05), judge(-values, CONTEXTS, 0.05)
    mirror = {"above": "below", "below": "above"}
    assert other.outcome == mirror.get(one.outcome, one.outcome)
    assert [p.interval for p in one.places] == [p.interval for p in other.places]
    assert [p.rises for p in one.places] == [not p.rises for p in other.places]
    assert one.low == pytest.approx(-other.high)
    assert one.p_value == other.p_value


@settings(max_examples=60, deadline=None)
@given(law=laws, seed=st.integers(0, 1000))
def test_a_crossing_lies_in_its_interval_and_between_decided_contexts(
    law: Floats, seed: int
) -> None:
    found = judge(law + np.random.default_rng(seed).normal(0, 0.1, (5, 8)), CONTEXTS, 0.05)
    signs = np.where(found.low > 0, 1, 0) - np.where(found.high < 0, 1, 0)
    for place in found.places:
        assert place.interval.low <= place.seq_len <= place.interval.high
        below = signs[(place.interval.low > CONTEXTS) & (signs != 0)]
        above = signs[(place.interval.high < CONTEXTS) & (signs != 0)]
        assert below[-1] == -above[0]
        assert above[0] == (1 if place.rises else -1)


@settings(max_examples=40, deadline=None)
@given(law=laws, shift=st.permutations(range(5)))
def test_the_order_of_replicates_does_not_matter(law: Floats, shift: list[int]) -> None:
    values = law + np.random.default_rng(0).normal(0, 0.1, (5, 8))
    one, other = judge(values, CONTEXTS, 0.05), judge(values[shift], CONTEXTS, 0.05)
    assert one.outcome == other.outcome
    assert one.high == pytest.approx(other.high)
