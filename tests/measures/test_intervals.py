"""Intervals, paired differences and rank agreement against SciPy and written-out formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.measures.intervals import kendall, over_images, over_seeds, paired_difference
from fula_fast.measures.registry import measure

RNG = np.random.default_rng(0)


def test_over_images_removes_the_bias_of_half_samples() -> None:
    draws = 0.5 + np.linspace(-0.1, 0.1, 1001)  # centred 0.1 above the value: the whole's bias
    found = over_images(measure("linear_cka"), 0.4, draws)
    assert (found.low, found.high) == pytest.approx((0.3 - 0.095, 0.3 + 0.095), abs=1e-3)


def test_over_images_keeps_the_level_of_neighbourhoods() -> None:
    draws = 0.5 + np.linspace(-0.1, 0.1, 1001)
    found = over_images(measure("mutual_knn"), 0.4, draws)
    assert (found.low, found.high) == pytest.approx((0.4 - 0.095, 0.4 + 0.095), abs=1e-3)


def test_over_images_stays_in_the_range_and_takes_matrices() -> None:
    found = over_images(measure("linear_cka"), np.ones((2, 3)), np.full((50, 2, 3), 0.9))
    np.testing.assert_array_equal(found.low, np.ones((2, 3)))
    np.testing.assert_array_equal(found.high, np.ones((2, 3)))
    over_images(measure("linear_cka"), 0.4, [0.4] * 39)
    with pytest.raises(FulaError, match="38 half samples: a level of 0.95 needs at least 39"):
        over_images(measure("linear_cka"), 0.4, [0.4] * 38)
    with pytest.raises(FulaError, match="level 95"):
        over_images(measure("linear_cka"), 0.4, [0.4], level=95)


def test_half_samples_vary_as_a_mean_does() -> None:
    """The interval of a mean of n numbers is Student's, whose half width is known."""
    from fula_fast.measures.sampling import halves

    values = RNG.uniform(size=400)
    draws = values[halves(400, 4000)].mean(1)
    found = over_images(measure("agreement_top1"), values.mean(), draws)
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_over_seeds() -> None:
    values = RNG.normal(size=(5, 3))
    found = over_seeds(values, level=0.9)
    for column in range(3):
        own = values[:, column]
        low, high = stats.t.interval(0.9, 4, loc=own.mean(), scale=stats.sem(own))
        assert (found.low[column], found.high[column]) == pytest.approx((low, high))
    with pytest.raises(FulaError, match=r"1 seed\(s\)"):
        over_seeds([0.3])


def test_paired_difference() -> None:
    a, b = RNG.normal(size=8), RNG.normal(size=8)
    found, expected = paired_difference(a, b), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert paired_difference(a, a).p == 1
    assert paired_difference([1.0, 2.0], [0.0, 1.0]).p == 0
    assert paired_difference([3 / 9, 1 / 9], [2 / 9, 0.0]).p == 0  # equal but for rounding
    assert paired_difference([0.1 + 0.2, 0.7], [0.3, 0.7]).p == 1
    with pytest.raises(FulaError, match="two equal lists"):
        paired_difference([1.0, 2.0], [1.0])


def test_kendall() -> None:
    a, b = RNG.normal(size=(4, 4)), RNG.normal(size=(4, 4))
    a[0, 0] = a[1, 1]
    found, expected = kendall(a, b), stats.kendalltau(a.ravel(), b.ravel())
    assert (found.tau, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    b[2, 2] = np.nan
    known = ~np.isnan(b)
    assert kendall(a, b).tau == pytest.approx(stats.kendalltau(a[known], b[known]).statistic)
    assert kendall(a, np.ones((4, 4))).tau == 0
    assert kendall(a, np.ones((4, 4))).p == 1
    with pytest.raises(FulaError, match="16 and 3 cells"):
        kendall(a, [1, 2, 3])
