"""What the papers say, tested on rows: small functions from a table to a verdict.

Each test takes the experiment's table and the claim's arguments. A number is computed for every
seed by itself; a claim holds if the mean meets the claim's bound and so do most of the seeds.
Nothing is marked by hand, and a claim without rows is not testable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FulaError, nearest
from ..measures.self_accuracy import self_accuracy
from .evidence import Table, number
from .recipe import ClaimSpec, Recipe

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not testable"
_BOUNDS = ("more_than", "less_than", "within")


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome: `number` is the mean over `seeds` seeds, `low` and `high` their range.

    `bound`: what the number must meet, in words. `reason`: why a claim is not testable.
    """

    figure: str
    says: str
    outcome: str
    number: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    bound: str = ""
    reason: str = ""

    @property
    def shown(self) -> str:
        """The number with its range, or a dash."""
        if self.number is None:
            return "–"
        spread = f" ({self.low:.3f} … {self.high:.3f})" if self.seeds > 1 else ""
        return f"{self.number:.3f}{spread}"


def verdicts(recipe: Recipe, table: Table) -> tuple[Verdict, ...]:
    """Every claim of the recipe, tested on the table."""
    return tuple(judged(claim, table, claim.figure or recipe.figure) for claim in recipe.claims)


def judged(claim: ClaimSpec, table: Table, figure: str) -> Verdict:
    """One claim, tested; raises `FulaError` for an unknown test."""
    if claim.test not in TESTS:
        raise FulaError(f"claim test '{claim.test}' is unknown{nearest(claim.test, TESTS)}")
    arguments = {k: v for k, v in claim.args.items() if k not in _BOUNDS}
    values = TESTS[claim.test](table, **arguments)
    bound, meets = _bound(claim.args)
    if not values.size:
        reason = "the table has no rows that this is about"
        return Verdict(figure, claim.says, UNTESTED, bound=bound, reason=reason)
    mean, most = float(values.mean()), sum(map(meets, values)) * 2 > len(values)
    outcome = HOLDS if meets(mean) and most else FAILS
    span = float(values.min()), float(values.max())
    return Verdict(figure, claim.says, outcome, mean, *span, len(values), bound)


def _bound(args: Mapping[str, Any]) -> tuple[str, Callable[[float], bool]]:
    """The claim's bound in words and as a test; above zero where none is given."""
    if "within" in args:
        return f"|n| < {args['within']:g}", lambda v: abs(v) < args["within"]
    if "less_than" in args:
        return f"n < {args['less_than']:g}", lambda v: v < args["less_than"]
    least = args.get("more_than", 0.0)
    return f"n > {least:g}", lambda v: v > least


def level(table: Table, of: Mapping[str, Any]) -> np.ndarray:
    """A column over the chosen rows."""
    return table.per_seed(lambda t: t.reduced(of))


def gap(table: Table, of: Mapping[str, Any], less: Mapping[str, Any]) -> np.ndarray:
    """A column over the chosen rows, less another."""
    return table.per_seed(lambda t: t.reduced(of) - t.reduced(less))


def lead(table: Table, of: str, over: Sequence[str], column: str, **where: Any) -> np.ndarray:
    """A method's mean less the best other method's."""

    def statistic(t: Table) -> float:
        others = [_method(t, m, column, where) for m in over]
        return _method(t, of, column, where) - max(others, default=math.nan)

    return table.per_seed(statistic)


def spread(table: Table, among: Sequence[str], column: str, **where: Any) -> np.ndarray:
    """The best method's mean less the worst one's."""

    def statistic(t: Table) -> float:
        found = np.array([_method(t, m, column, where) for m in among])
        return float(found.max() - found.min())

    return table.per_seed(statistic)


def _method(t: Table, method: str, column: str, where: Mapping[str, Any]) -> float:
    return t.reduced({"column": column, "method": method, **where})


def trend(table: Table, of: Mapping[str, Any], along: str) -> np.ndarray:
    """Spearman correlation of the column's means with `along`."""

    def statistic(t: Table) -> float:
        conditions = {k: v for k, v in of.items() if k != "column"}
        groups = t.where(conditions).groups(along)
        pairs = [(number(key[0]), _mean(g.values(of["column"]))) for key, g in groups.items()]
        return rank_correlation(pairs)

    return table.per_seed(statistic)


def directionality_trend(table: Table) -> np.ndarray:
    """Spearman correlation of (below - above the diagonal) with the number of functional terms."""

    def statistic(t: Table) -> float:
        return rank_correlation(
            [
                (terms, _directionality(g))
                for (terms,), g in t.groups("functional_terms").items()
                if terms is not None
            ]
        )

    return table.per_seed(statistic)


def _directionality(table: Table) -> float:
    sides = ("deep to shallow", "shallow to deep")
    below, above = (table.reduced({"column": "accuracy", "side": s}) for s in sides)
    return below - above


def self_accuracy_of(
    table: Table, method: str, averaged: bool, column: str = "accuracy", **where: Any
) -> np.ndarray:
    """Self-Accuracy of a method's cross-layer matrix, directed or averaged."""
    chosen = table.where({"method": method, **where})
    return chosen.per_seed(lambda t: _self_accuracy(t, column, averaged))


def averaging_gain(
    table: Table, methods: Sequence[str], against: Sequence[str] = (), column: str = "accuracy"
) -> np.ndarray:
    """How much averaging both directions adds to Self-Accuracy, mean over methods and pairs; less
    the same of the methods in `against`."""

    def gain(t: Table, names: Sequence[str]) -> float:
        parts = t.where({"method": list(names)}).groups("method", "pair").values()
        found = [_self_accuracy(p, column, True) - _self_accuracy(p, column, False) for p in parts]
        return _mean(np.array(found))

    return table.per_seed(lambda t: gain(t, methods) - (gain(t, against) if against else 0.0))


def _self_accuracy(table: Table, column: str, averaged: bool) -> float:
    matrix = table.matrix(column)
    if matrix.shape[0] != matrix.shape[1] or not matrix.size or np.isnan(matrix).any():
        return math.nan
    return self_accuracy(matrix, averaged=averaged)


def drop_of(table: Table, column: str, by: str, which: str, **where: Any) -> np.ndarray:
    """One group's fall from shallow to deep sites, less the mean fall of the other groups."""

    def statistic(t: Table) -> float:
        falls = {key[0]: _fall(g, column) for key, g in t.where(where).groups(by).items()}
        others = [v for k, v in falls.items() if k != which]
        return falls.get(which, math.nan) - _mean(np.array(others))

    return table.per_seed(statistic)


def _fall(table: Table, column: str) -> float:
    shallow, deep = (table.reduced({"column": column, "depth": d}) for d in ("shallow", "deep"))
    return shallow - deep


def least(table: Table, column: str, by: str, which: str, **where: Any) -> np.ndarray:
    """The least of the other groups' means less one group's: positive where that one is least."""

    def statistic(t: Table) -> float:
        means = {key[0]: _mean(g.values(column)) for key, g in t.where(where).groups(by).items()}
        others = [v for k, v in means.items() if k != which]
        return min(others, default=math.nan) - means.get(which, math.nan)

    return table.per_seed(statistic)


def worst_best(table: Table, column: str, by: str, **where: Any) -> np.ndarray:
    """Of every group's best row the worst."""

    def statistic(t: Table) -> float:
        bests = [g.values(column) for g in t.where(where).groups(by).values()]
        return min((float(b.max()) for b in bests if b.size), default=math.nan)

    return table.per_seed(statistic)


def relative_level(table: Table, of: Mapping[str, Any], to: str) -> np.ndarray:
    """A column over the chosen rows, as a share of another column."""
    return table.per_seed(lambda t: t.reduced(of) / t.reduced({**of, "column": to}))


def trend_of_gap(
    table: Table, column: str, split: str, of: Any, less: Any, along: str, **where: Any
) -> np.ndarray:
    """Spearman correlation with `along` of the gap between two values of the column `split`."""

    def gap_in(t: Table) -> float:
        return t.reduced({"column": column, split: of}) - t.reduced({"column": column, split: less})

    def statistic(t: Table) -> float:
        groups = t.where(where).groups(along)
        return rank_correlation([(number(key[0]), gap_in(g)) for key, g in groups.items()])

    return table.per_seed(statistic)


_CELL = ("front", "end", "front_site", "end_site", "alpha", "shortcut", "subset", "seed")


def largest_difference(table: Table, column: str, a: str, b: str, **where: Any) -> np.ndarray:
    """The largest difference between two methods in any cell that both have."""

    def statistic(t: Table) -> float:
        cells = t.where(where).groups(*_CELL).values()
        pairs = [[_method(c, m, column, {}) for m in (a, b)] for c in cells]
        found = [abs(x - y) for x, y in pairs if not math.isnan(x - y)]
        return max(found, default=math.nan)

    return table.per_seed(statistic)


def agreement(table: Table, a: str, b: str, keys: Sequence[str]) -> np.ndarray:
    """Spearman correlation of two columns' means over groups of rows."""

    def statistic(t: Table) -> float:
        groups = t.groups(*keys).values()
        return rank_correlation([(_mean(g.values(a)), _mean(g.values(b))) for g in groups])

    return table.per_seed(statistic)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's correlation of pairs, those with a NaN left out; NaN for fewer than three."""
    kept = np.array([p for p in pairs if not any(map(math.isnan, p))], dtype=float)
    if len(kept) < 3:
        return math.nan
    x, y = (_ranks(column) for column in kept.T)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean."""
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return below + (equal - 1) / 2


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


TESTS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f
    for f in (
        level, gap, lead, spread, trend, directionality_trend, self_accuracy_of, averaging_gain,
        drop_of, least, worst_best, relative_level, trend_of_gap, largest_difference, agreement,
    )
}  # fmt: skip
