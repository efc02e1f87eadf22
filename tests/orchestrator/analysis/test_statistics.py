"""The statistics against published tables, scipy, and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis import statistics
from orchestrator.analysis.derived import MetricFacts
from orchestrator.analysis.summary import estimate, interval


@pytest.mark.parametrize(
    ("count", "freedom", "published"),
    [(2, 5, 3.09), (3, 10, 2.83), (8, 20, 3.02), (4, 5, 3.62), (1, 4, 2.776)],
)
def test_maximum_modulus_agrees_with_the_table_of_stoline_and_ury(
    count: int, freedom: int, published: float
) -> None:
    assert statistics.maximum_modulus(count, float(freedom)) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize(
    ("count", "freedom", "published"), [(1, 10, 1.81), (2, 5, 2.44), (3, 10, 2.34)]
)
def test_one_sided_value_agrees_with_the_table_of_dunnett(
    count: int, freedom: int, published: float
) -> None:
    found = statistics.one_sided_dunnett(count, float(freedom))
    assert found == pytest.approx(published, abs=0.006)


def test_maximum_modulus_agrees_with_simulation_at_few_degrees_of_freedom() -> None:
    random = np.random.default_rng(0)
    normals = np.abs(random.standard_normal((200_000, 8))).max(1)
    scales = np.sqrt(random.chisquare(4, 200_000) / 4)
    assert statistics.maximum_modulus(8, 4.0) == pytest.approx(
        np.quantile(normals / scales, 0.95), rel=0.01
    )


def test_bartlett_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(0, [[1, 2, 1, 1]], (6, 4))
    ours = statistics.bartlett(values.var(0, ddof=1), np.full(4, 5.0))
    assert ours == pytest.approx(stats.bartlett(*values.T).pvalue)


def test_some_variances_of_zero_are_unequal_and_all_of_zero_are_equal() -> None:
    freedom = np.full(2, 4.0)
    assert statistics.bartlett(np.array([0.0, 1.0]), freedom) == 0
    assert statistics.bartlett(np.zeros(2), freedom) == 1


def test_variance_is_pooled_over_contexts_where_it_is_equal() -> None:
    values = np.random.default_rng(2).normal(0, 1, (5, 8))
    found = statistics.noise(values)
    assert found.pooled
    assert found.errors == pytest.approx(np.sqrt(values.var(0, ddof=1).mean() / 5) * np.ones(8))
    assert found.freedom[0] == 32


def test_variance_is_not_pooled_where_one_context_is_ten_times_noisier() -> None:
    values = np.random.default_rng(2).normal(0, [[10] + [1] * 7], (5, 8))
    found = statistics.noise(values)
    assert not found.pooled
    assert found.errors == pytest.approx(values.std(0, ddof=1) / np.sqrt(5))
    assert (found.freedom == 4).all()


def test_replicates_that_move_together_leave_few_degrees_of_freedom() -> None:
    random = np.random.default_rng(3)
    values = random.normal(0, 0.1, (5, 8)) + random.normal(0, 1, (5, 1))
    found = statistics.noise(values)
    assert found.freedom[0] < 5
    assert found.shared == pytest.approx(found.errors[0] ** 2, rel=0.1)


def test_a_missing_replicate_counts_where_it_is_missing_only() -> None:
    values = np.random.default_rng(2).normal(0, 1, (6, 3))
    values[0, 1] = np.nan
    found = statistics.noise(values)
    assert found.freedom[0] == 14
    assert found.errors[1] / found.errors[0] == pytest.approx(np.sqrt(6 / 5))
    assert statistics.means(values)[1] == pytest.approx(values[1:, 1].mean())


def test_detectable_difference_is_found_with_its_probability() -> None:
    (effect,) = statistics.detectable(np.array([2.0]), np.array([28.0]), np.array([2.9]))
    assert stats.nct.sf(2.9, 28, effect / 2) == pytest.approx(0.8)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.04, 0.01, None, 0.03]) == [
        pytest.approx(0.06),
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
    ]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([None]) == [None]


def test_p_value_is_5_percent_where_the_band_touches_zero() -> None:
    values = np.random.default_rng(4).normal(0, 1, (5, 8))
    noise = statistics.noise(values)
    means = np.zeros(8)
    means[3] = statistics.band(noise)[3] * noise.errors[3]
    assert statistics.any_difference(means, noise) == pytest.approx(0.05, abs=1e-6)


def test_summary_interval_holds_the_median_and_covers_in_95_percent() -> None:
    draws = np.exp(np.random.default_rng(5).normal(0, 0.1, (1000, 5)))
    intervals = np.array([interval(values, logs=True) for values in draws], dtype=float)
    medians = np.median(draws, axis=1)
    assert ((intervals[:, 0] <= medians) & (medians <= intervals[:, 1])).all()
    assert 0.935 <= ((intervals[:, 0] <= 1) & (intervals[:, 1] >= 1)).mean() <= 0.965


def test_summary_interval_of_no_values_is_unknown_and_of_equal_values_is_exact() -> None:
    assert interval(np.array([3.0, 3.0]), logs=True) == (3.0, 3.0)
    assert interval(np.array([]), logs=True) == (None, None)


@pytest.mark.parametrize("trials", [1, 3, 8, 200])
def test_share_has_the_score_interval_that_scipy_gives(trials: int) -> None:
    for successes in range(0, trials + 1, max(1, trials // 8)):
        theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        ours = statistics.wilson(successes, trials)
        assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert 0 <= ours[0] <= successes / trials <= ours[1] <= 1


@pytest.mark.parametrize(
    ("facts", "bounded"),
    [
        (MetricFacts("accuracy", "1", "greater", "difference"), True),
        (MetricFacts("word error rate", "1", "smaller", "difference"), False),
        (MetricFacts("BLEU", "BLEU (0-100)", "greater", "difference"), False),
    ],
)
def test_an_accuracy_is_never_more_than_all(facts: MetricFacts, bounded: bool) -> None:
    values = np.array([1.0, 1.0, 0.98, 0.4])
    centre, low, high = estimate(values, facts)
    assert centre == pytest.approx(0.99)
    assert low is not None and high is not None and low < high
    assert (high == 1.0) is bounded
