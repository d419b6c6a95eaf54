"""The tests of claims: each takes an experiment's table and a claim's arguments, which are
selectors of rows mostly, and gives a number for every seed.

All raise `Untestable`, with the reason, where no seed has a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..measures.self_accuracy import self_accuracy
from .evidence import CELL, Evidence, Untestable, conditions_of, number

_LEAST_POINTS = 3


def level(table: Evidence, of: Mapping[str, Any]) -> np.ndarray:
    """A column over the chosen rows."""
    return table.demanded(lambda t: t.reduced(of))


def gap(
    table: Evidence,
    of: Mapping[str, Any],
    less: Mapping[str, Any],
    than: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """A column over the chosen rows, less another; less the same of `than`'s own two."""

    def statistic(t: Evidence) -> float:
        other = t.reduced(than["of"]) - t.reduced(than["less"]) if than else 0.0
        return t.reduced(of) - t.reduced(less) - other

    return table.demanded(statistic)


def lead(
    table: Evidence,
    of: Mapping[str, Any],
    over: Sequence[str],
    than: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """A method's mean less the best other method's; less the same of another selector."""

    def ahead(t: Evidence, of: Mapping[str, Any]) -> float:
        return t.reduced(of) - max(t.reduced({**of, "method": method}) for method in over)

    return table.demanded(lambda t: ahead(t, of) - (ahead(t, than) if than else 0.0))


def spread(table: Evidence, of: Mapping[str, Any], by: str) -> np.ndarray:
    """The largest less the smallest mean by a column that the selector may list."""

    def statistic(t: Evidence) -> float:
        found = list(_means(t, of, by).values())
        return max(found) - min(found)

    return table.demanded(statistic)


def trend(table: Evidence, of: Mapping[str, Any], along: str) -> np.ndarray:
    """Spearman correlation of the column's means with `along`."""

    def statistic(t: Evidence) -> float:
        return _trend([(number(k), v) for k, v in _means(t, of, along).items()])

    return table.demanded(statistic)


def _means(table: Evidence, of: Mapping[str, Any], by: str) -> dict[Any, float]:
    """The column's mean by the values of another; every listed one, and two, must be there."""
    groups = table.where(conditions_of(of)).groups(by)
    found = {key: m for (key,), g in groups.items() if not math.isnan(m := _mean(g, of["column"]))}
    if not found:
        table.reduced(of)  # says what is missing
    wanted = of[by] if isinstance(of.get(by), list) else ()
    if len(found) < 2 or any(value not in found for value in wanted):
        there = ", ".join(map(str, found))
        raise Untestable(f"of '{by}' there is '{of['column']}' for {there} only")
    return found


def directionality_trend(table: Evidence) -> np.ndarray:
    """Spearman correlation of (below - above the diagonal) with the number of functional terms."""

    def statistic(t: Evidence) -> float:
        groups = t.groups("functional_terms").items()
        return _trend([(n, _directionality(g)) for (n,), g in groups if n is not None])

    return table.demanded(statistic)


def _directionality(table: Evidence) -> float:
    sides = ("deep to shallow", "shallow to deep")
    below, above = (table.reduced({"column": "accuracy", "side": s}) for s in sides)
    return below - above


def self_accuracy_of(table: Evidence, of: Mapping[str, Any], averaged: bool) -> np.ndarray:
    """Self-Accuracy of a cross-layer matrix, directed or averaged."""
    return table.demanded(lambda t: _self_accuracy(t, of, averaged))


def averaging_gain(
    table: Evidence, of: Mapping[str, Any], less: Mapping[str, Any] | None = None
) -> np.ndarray:
    """How much averaging both directions adds to Self-Accuracy, mean over pairs; less the same of
    another selector."""

    def gain(t: Evidence, of: Mapping[str, Any]) -> float:
        pairs = [{**of, "pair": pair} for (pair,) in t.groups("pair")]
        gains = [_self_accuracy(t, p, True) - _self_accuracy(t, p, False) for p in pairs]
        return sum(gains) / len(gains)

    return table.demanded(lambda t: gain(t, of) - (gain(t, less) if less else 0.0))


def _self_accuracy(table: Evidence, of: Mapping[str, Any], averaged: bool) -> float:
    table.reduced(of)  # raises where there is no row
    matrix = table.where(conditions_of(of)).matrix(of["column"])
    if matrix.shape[0] != matrix.shape[1]:
        raise Untestable("fronts and ends have different numbers of sites: no matrix of layers")
    if empty := int(np.isnan(matrix).sum()):
        raise Untestable(f"{empty} of the matrix's {matrix.size} cells are not measured")
    return self_accuracy(matrix, averaged=averaged)


def drop_of(table: Evidence, of: Mapping[str, Any], by: str, which: str) -> np.ndarray:
    """One group's fall from shallow to deep sites, less the largest fall of the other groups."""

    def statistic(t: Evidence) -> float:
        sides = (_means(t, {**of, "depth": d}, by) for d in ("shallow", "deep"))
        shallow, deep = sides
        return _apart(lambda group: shallow[group] - deep[group], which, set(shallow) & set(deep))

    return table.demanded(statistic)


def least(table: Evidence, of: Mapping[str, Any], by: str, which: str) -> np.ndarray:
    """The least of the other groups' means less one group's: positive where that one is least."""

    def statistic(t: Evidence) -> float:
        means = _means(t, of, by)
        return _apart(lambda group: -means[group], which, set(means))

    return table.demanded(statistic)


def _apart(value: Callable[[Any], float], which: Any, groups: set) -> float:
    """One group's value less the largest of the others."""
    if which not in groups or len(groups) < 2:
        raise Untestable(f"only {len(groups)} groups have rows; '{which}' and another are needed")
    return value(which) - max(value(group) for group in groups - {which})


def relative_level(table: Evidence, of: Mapping[str, Any], to: str) -> np.ndarray:
    """A column over the chosen rows, as a share of another column."""
    return table.demanded(lambda t: t.reduced(of) / t.reduced({**of, "column": to}))


def trend_of_gap(
    table: Evidence, of: Mapping[str, Any], less: Mapping[str, Any], along: str
) -> np.ndarray:
    """Spearman correlation with `along` of a column over the chosen rows, less another."""

    def statistic(t: Evidence) -> float:
        first, second = _means(t, of, along), _means(t, less, along)
        both = [key for key in first if key in second]
        return _trend([(number(key), first[key] - second[key]) for key in both])

    return table.demanded(statistic)


def onset_lead(table: Evidence, of: Mapping[str, Any], over: str, lost: float) -> np.ndarray:
    """How many sites before another method's a method's accuracy falls: has lost `lost` of its
    largest at shallower sites. One that never falls does so after the last site."""

    def onset(t: Evidence, method: str) -> float:
        means = sorted(_means(t, {**of, "method": method}, "end_site").items())
        best = -math.inf
        for site, mean in means:
            if mean < best - lost:
                return site
            best = max(best, mean)
        return means[-1][0] + 1

    return table.demanded(lambda t: onset(t, over) - onset(t, of["method"]))


def largest_difference(
    table: Evidence, of: Mapping[str, Any], less: Mapping[str, Any]
) -> np.ndarray:
    """The largest difference between two selections in any cell that both have."""

    def statistic(t: Evidence) -> float:
        first, second = (
            {
                key: _mean(g, s["column"])
                for key, g in t.where(conditions_of(s)).groups(*CELL).items()
            }
            for s in (of, less)
        )
        found = [abs(first[key] - second[key]) for key in first if key in second]
        if not found:
            raise Untestable("no cell has both of what is compared")
        return max(found)

    return table.demanded(statistic)


def agreement(table: Evidence, a: str, b: str, keys: Sequence[str]) -> np.ndarray:
    """Spearman correlation of two columns' means over groups of rows."""

    def statistic(t: Evidence) -> float:
        groups = t.groups(*keys).values()
        return rank_correlation([(_mean(g, a), _mean(g, b)) for g in groups])

    return table.demanded(statistic)


def _trend(pairs: Sequence[tuple[float, float]]) -> float:
    """`rank_correlation`, of which none is 0: what is the same everywhere has no trend."""
    alike = len({y for _, y in pairs}) == 1
    return 0.0 if alike and len(pairs) >= _LEAST_POINTS else rank_correlation(pairs)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's correlation of pairs, those with a NaN left out.

    Raises `Untestable` for fewer than three, and where all of one kind are equal.
    """
    kept = np.array([p for p in pairs if not any(map(math.isnan, p))], dtype=float)
    if len(kept) < _LEAST_POINTS:
        raise Untestable(f"{len(kept)} points have no trend; it takes {_LEAST_POINTS}")
    x, y = (_ranks(column) for column in kept.T)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise Untestable("all points are equal: they have no order")
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean."""
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return below + (equal - 1) / 2


def _mean(table: Evidence, column: str) -> float:
    values = table.values(column)
    return float(values.mean()) if values.size else math.nan


TESTS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f
    for f in (
        level, gap, lead, spread, trend, directionality_trend, self_accuracy_of, averaging_gain,
        drop_of, least, relative_level, trend_of_gap, onset_lead, largest_difference, agreement,
    )
}  # fmt: skip
