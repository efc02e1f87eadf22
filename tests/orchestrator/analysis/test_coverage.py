"""The statistics hold what they promise, in thousands of simulated sweeps with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import coverage
from tests.benchmarks.coverage import CONTEXTS, KINKED, UNLIKE, straight_law
from tests.simulated_world import line_crossings


@pytest.mark.parametrize(
    ("law", "sigma"),
    [
        (KINKED, 0.03),
        pytest.param(straight_law(0.1, 450), 0.05, marks=pytest.mark.slow),
        pytest.param(straight_law(0.3, 700), 0.03, marks=pytest.mark.slow),
    ],
)
def test_interval_covers_a_crossing_of_straight_lines_in_93_to_97_percent(
    law: coverage.Floats, sigma: float
) -> None:
    (truth,) = line_crossings(law, CONTEXTS.tolist())
    found = coverage.crossing_coverage(law, truth, sigma)
    assert found.found >= 0.99
    assert found.open_ended == 0
    assert 0.93 <= found.covered <= 0.97
    assert 0.93 <= found.covered_of_all <= 0.97
    assert found.median_width <= 1.3
    assert found.mean_width <= 1.3


@pytest.mark.slow
def test_interval_covers_where_two_power_laws_cross() -> None:
    found = coverage.crossing_coverage(*coverage.smooth_law(), 0.03)
    assert 0.93 <= found.covered_of_all <= 0.97
    assert found.median_width <= 1.3


@pytest.mark.slow
def test_interval_covers_where_noise_differs_by_context_or_rounds_correlate() -> None:
    law = straight_law(0.3, 450)
    assert coverage.crossing_coverage(law, 450, 0.05 * UNLIKE).covered >= 0.93
    assert coverage.crossing_coverage(law, 450, 0.05, shared=0.07).covered >= 0.92


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.05 * UNLIKE], ids=["0.5 %", "5 %", "unlike"])
def test_one_law_under_two_labels_gives_a_false_verdict_in_5_percent_at_most(
    sigma: coverage.Floats | float,
) -> None:
    shares = coverage.outcomes(np.zeros(len(CONTEXTS)), sigma)
    assert coverage.false_verdicts(shares) <= 0.05


def test_the_band_excludes_zero_somewhere_in_5_percent_of_nothing() -> None:
    shares = coverage.outcomes(np.zeros(len(CONTEXTS)), 0.05)
    assert 0.035 <= shares["any_difference"] <= 0.065


@pytest.mark.slow
def test_the_smallest_effect_is_found_as_often_as_it_says() -> None:
    found = coverage.power(0.05)
    assert 0.8 <= found.one_context <= 0.95
    assert found.step >= 0.8
