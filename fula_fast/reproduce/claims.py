"""What the papers say, tested on rows: from a table to verdicts.

A test of `claim_tests` computes a number for every seed by itself; a claim holds if the mean meets
its bound and so do most of the seeds. A claim about every one of some values holds if it does for
each, and shows the worst. Nothing is marked by hand; a claim without rows is not testable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..errors import FulaError, nearest
from .claim_tests import TESTS
from .evidence import Evidence, Untestable, conditions_of
from .recipe import ClaimSpec, ExperimentRecipe, tables_in

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not testable"
_BOUNDS = ("more_than", "less_than", "within")


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome: `number` is the mean over `seeds` seeds, `low` and `high` their range.

    `bound`: what the number must meet, in words. `reason`: why a claim is not testable, or that
    what it rests on does not hold. `worst`: of a claim about every one, the values whose number
    this is. `ours`: no paper says it.
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
    worst: str = ""
    ours: bool = False

    @property
    def shown(self) -> str:
        """The number with its range and whose it is, or a dash."""
        if self.number is None:
            return "–"
        spread = f" ({self.low:.3f} … {self.high:.3f})" if self.seeds > 1 else ""
        return f"{self.number:.3f}{spread}" + (f", {self.worst}" if self.worst else "")


def verdicts(recipe: ExperimentRecipe, table: Evidence) -> tuple[Verdict, ...]:
    """Every claim of the recipe, tested on the table; one whose premise fails says so."""
    found = [judged(claim, table, claim.figure or recipe.figure) for claim in recipe.claims]
    by_key = {c.key: v for c, v in zip(recipe.claims, found, strict=True) if c.key}
    premises = [by_key.get(claim.premise) for claim in recipe.claims]
    return tuple(map(_granted, found, premises))


def counted(found: Sequence[Verdict]) -> tuple[int, int]:
    """How many hold, of how many that could be tested."""
    tested = [verdict.outcome for verdict in found if verdict.outcome != UNTESTED]
    return tested.count(HOLDS), len(tested)


def _granted(verdict: Verdict, premise: Verdict | None) -> Verdict:
    if premise is None or premise.outcome == HOLDS or verdict.outcome == UNTESTED:
        return verdict
    return replace(verdict, reason=f"but it rests on “{premise.says}”: {premise.outcome}")


def judged(claim: ClaimSpec, table: Evidence, figure: str) -> Verdict:
    """One claim, tested; raises `FulaError` for an unknown test."""
    if claim.test not in TESTS:
        raise FulaError(f"claim test '{claim.test}' is unknown{nearest(claim.test, TESTS)}")
    args = {k: v for k, v in claim.args.items() if k not in _BOUNDS}
    bound, margin = _bound(claim.args)
    start = Verdict(figure, claim.says, UNTESTED, bound=bound, ours=claim.ours)
    cases = [
        replace(_case(claim.test, table, case, margin, start), worst=", ".join(words))
        for case, words in every_one(args, claim.each, table)
    ]
    order = {FAILS: 0, UNTESTED: 1, HOLDS: 2}
    return min(cases, key=lambda v: (order[v.outcome], margin(v.number or 0.0)))


def _case(
    test: str,
    table: Evidence,
    args: Mapping[str, Any],
    margin: Callable[[float], float],
    start: Verdict,
) -> Verdict:
    try:
        values = TESTS[test](table, **args)
    except Untestable as reason:
        return replace(start, reason=str(reason))
    mean, most = float(values.mean()), sum(margin(v) > 0 for v in values) * 2 > len(values)
    return replace(
        start,
        outcome=HOLDS if margin(mean) > 0 and most else FAILS,
        number=mean,
        low=float(values.min()),
        high=float(values.max()),
        seeds=len(values),
    )


def _bound(args: Mapping[str, Any]) -> tuple[str, Callable[[float], float]]:
    """The claim's bound in words, and by how much a number meets it; above zero where none is
    given."""
    if "within" in args:
        return f"|n| < {args['within']:g}", lambda v: args["within"] - abs(v)
    if "less_than" in args:
        return f"n < {args['less_than']:g}", lambda v: args["less_than"] - v
    least = args.get("more_than", 0.0)
    return f"n > {least:g}", lambda v: v - least


def every_one(
    args: Mapping[str, Any], columns: Sequence[str], table: Evidence
) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """The arguments with one value of each of `columns` in place of several, and that in words.

    Selectors that list the same values take the same one; of different lists, every value meets
    every other. A column that none lists takes the values in the rows of the first selector.
    """
    axes = [axis for column in columns for axis in _axes(args, column, table)]
    for chosen in product(*(values for _, _, values in axes)):
        case = args
        for (column, given, _), value in zip(axes, chosen, strict=True):
            case = _narrowed(case, column, given, value)
        yield case, [_named(axis[0], value) for axis, value in zip(axes, chosen, strict=True)]


def _axes(args: Mapping[str, Any], column: str, table: Evidence) -> list[tuple[str, Any, Any]]:
    """(column, what selectors give for it, its values): one for each different list."""
    lists: list[list[Any]] = []
    for given in (t.get(column) for t in tables_in(args)):
        if isinstance(given, list) and given not in lists:
            lists.append(given)
    if lists:
        return [(column, given, given) for given in lists]
    about = table.where(conditions_of(next(t for t in tables_in(args) if "column" in t)))
    there = [value for (value,) in about.groups(column) if value is not None]
    return [(column, None, there)] if there else []


def _narrowed(args: Mapping[str, Any], column: str, given: Any, value: Any) -> dict[str, Any]:
    """The arguments, where selectors that give `given` for the column have this value."""
    out = {
        k: _narrowed(v, column, given, value) if isinstance(v, Mapping) else v
        for k, v in args.items()
    }
    if "column" in args and args.get(column) == given:
        out[column] = value
    return out


def _named(column: str, value: Any) -> str:
    return value if isinstance(value, str) else f"{column} {value:g}"
