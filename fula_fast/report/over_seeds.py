"""What differs between methods and measures, over the seeds of a run: intervals and paired tests.

Seeds are those of the stitches; the donors are the same ones throughout, so that a measure of
donors has one value, which stands against every seed of a method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..measures.chance import holm
from ..measures.intervals import Difference, over_seeds, paired_difference
from .studies import Seed, Study
from .style import label

SEED_HEADINGS = ("", "seeds", "mean", "95 % interval", "p", "p after Holm")

Values = Mapping[Seed, float] | float
"""A number for every seed, or one that no seed changes."""


@dataclass(frozen=True)
class Comparison:
    """Two of what is compared: their paired difference over `seeds` seeds, and its p after Holm
    among all of the same table."""

    first: str
    second: str
    seeds: int
    difference: Difference
    adjusted: float


def comparisons(values: Mapping[str, Values]) -> list[Comparison]:
    """Every two by name that share two seeds at least, one of them changing with the seeds."""
    found = [
        (a, b, len(pairs), paired_difference(*np.array(pairs).T))
        for a, b in combinations(values, 2)
        if len(pairs := _paired(values[a], values[b])) > 1
    ]
    adjusted = holm([difference.p for *_, difference in found])
    return [Comparison(*each, float(p)) for each, p in zip(found, adjusted, strict=True)]


def _paired(a: Values, b: Values) -> list[tuple[float, float]]:
    seeds = [v for v in (a, b) if isinstance(v, Mapping)]
    if not seeds:
        return []
    shared = [s for s in seeds[0] if all(s in other for other in seeds)]
    pairs = [(_of(a, s), _of(b, s)) for s in shared]
    return [pair for pair in pairs if not np.isnan(pair).any()]


def _of(values: Values, seed: Seed) -> float:
    return values[seed] if isinstance(values, Mapping) else values


def seed_rows(values: Mapping[str, Values]) -> list[tuple[str, ...]]:
    """Under `SEED_HEADINGS`: the means over seeds, then the differences, as shares in percent,
    intervals cut to what is possible; none without two seeds."""
    return [*_means(values), *(_difference(each) for each in comparisons(values))]


def _means(values: Mapping[str, Values]) -> Iterator[tuple[str, ...]]:
    for name, of_seeds in values.items():
        if not isinstance(of_seeds, Mapping) or len(of_seeds) < 2:
            continue
        found = over_seeds(list(of_seeds.values()))
        numbers = _interval(float(found.value), max(float(found.low), 0), min(float(found.high), 1))
        yield name, str(len(of_seeds)), *numbers, "", ""


def _difference(each: Comparison) -> tuple[str, ...]:
    found = each.difference
    numbers = _interval(found.mean, max(found.low, -1), min(found.high, 1), "+")
    tested = f"{found.p:.2g}", f"{each.adjusted:.2g}"
    return f"{each.first} − {each.second}", str(each.seeds), *numbers, *tested


def _interval(mean: float, low: float, high: float, sign: str = "") -> tuple[str, str]:
    return f"{100 * mean:{sign}.1f} %", f"{100 * low:{sign}.1f} … {100 * high:{sign}.1f} %"


def accuracies(study: Study) -> dict[str, Values]:
    """By method: every seed's mean accuracy over the same-site cells, or all where there are none;
    seeds that lack a cell are left out."""
    rows = study.same_site() or study.rows
    cells = {(row["front_site"], row["end_site"]) for row in rows}
    found: dict[str, dict[Seed, dict[tuple[int, int], float]]] = {m: {} for m in study.methods}
    for row in rows:
        if row.get("accuracy") is not None:
            of_seed = found[row["method"]].setdefault((row.get("seed"), row.get("data_seed")), {})
            of_seed[row["front_site"], row["end_site"]] = row["accuracy"]
    return {
        label(method): {s: float(np.mean(list(v.values()))) for s, v in seeds.items()
                        if v.keys() == cells}
        for method, seeds in found.items()
    }  # fmt: skip


def interval_of(matrices: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the 95 % interval over seeds of matrices (n, m); NaN for fewer than
    two."""
    if len(matrices) < 2:
        nothing = np.full(np.shape(matrices[0]) if matrices else (), np.nan)
        return nothing, nothing
    found = over_seeds(np.stack(matrices))
    return found.low, found.high
