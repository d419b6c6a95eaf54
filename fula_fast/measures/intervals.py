"""Intervals over images and over seeds, paired differences, and agreement between measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ..errors import FulaError
from .registry import Measure

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Interval:
    """An estimate and the interval around it, arrays of one shape or plain numbers."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Difference:
    """Mean paired difference a - b, its interval, and the p value of no difference."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class RankAgreement:
    """Kendall's tau-b of two measures over cells, and the p value of no association."""

    tau: float
    p: float


def over_images(
    measure: Measure, value: ArrayLike, draws: ArrayLike, level: float = 0.95
) -> Interval:
    """Interval of scores (...) from their values on half samples (D, ...), `sampling.halves`.

    Half of n samples, drawn without replacement, vary around the whole as the whole varies around
    the population (Politis & Romano 1994; Shao & Wu 1989), and no image is drawn twice: copies
    would be each other's neighbours on both sides. Their bias is twice the whole's, so the interval
    is 2 value - quantiles, which removes it; for a measure that does not settle (neighbourhoods of
    k samples) the draws are centred on the value instead. Clipped to the range. Raises `FulaError`
    where there are too few draws to see the tails, 39 for a level of 0.95.
    """
    value, draws = np.asarray(value, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    _check_level(level)
    least = int(np.ceil(2 / (1 - level) - 1 - 1e-9))
    if len(draws) < least:
        raise FulaError(f"{len(draws)} half samples: a level of {level} needs at least {least}")
    centre = value if measure.settles else draws.mean(0)
    ends = [(1 + level) / 2, (1 - level) / 2]
    # the (D + 1) p-th in order: a new draw lies beyond it with probability 1 - p
    tails = np.quantile(draws - centre, ends, axis=0, method="weibull")
    low, high = np.clip(value - tails, measure.low, measure.high)
    return Interval(value, low, high)


def over_seeds(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of the mean over the first axis (seeds, ...), at least two of them.

    Raises `FulaError` for fewer.
    """
    values = np.asarray(values, dtype=np.float64)
    _check_level(level)
    if len(values) < 2:
        raise FulaError(f"{len(values)} seed(s): an interval over seeds needs at least 2")
    mean, half = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
    half = half * stats.t.ppf((1 + level) / 2, len(values) - 1)
    return Interval(mean, mean - half, mean + half)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """Of two methods or measures with one value per seed: Student's paired t test.

    Where all differences are equal but for rounding, p is 1 if they are 0 and 0 otherwise. Raises
    `FulaError` unless both are (n,).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise FulaError(f"paired values of shapes {a.shape} and {b.shape} must be two equal lists")
    found = over_seeds(a - b, level)
    mean, low, high = float(found.value), float(found.low), float(found.high)
    rounding = _ROUNDING * max(np.abs(a).max(), np.abs(b).max())
    if np.ptp(a - b) <= rounding:
        return Difference(mean, low, high, 1.0 if abs(mean) <= rounding else 0.0)
    return Difference(mean, low, high, float(stats.ttest_rel(a, b).pvalue))


def kendall(a: ArrayLike, b: ArrayLike) -> RankAgreement:
    """Of two measures' values on the same cells, of any shape; cells with a NaN are left out.

    Give distances through `chance.oriented`. 0 with p = 1 where a measure ranks nothing: all equal,
    or fewer than two cells. Raises `FulaError` for unequal counts of cells.
    """
    a, b = np.ravel(np.asarray(a, dtype=np.float64)), np.ravel(np.asarray(b, dtype=np.float64))
    if a.shape != b.shape:
        raise FulaError(f"{a.size} and {b.size} cells: tau compares measures on the same cells")
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return RankAgreement(0.0, 1.0)
    found = stats.kendalltau(a, b)
    return RankAgreement(float(found.statistic), float(found.pvalue))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise FulaError(f"level {level} must lie between 0 and 1, as 0.95 does")
