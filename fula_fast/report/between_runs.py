"""Two runs side by side: the differences of what both measured, with intervals over seeds.

A cell of one run meets the cell of the other with the same donors, sites, method and seeds, and the
same values of the settings that vary within a run. Settings that differ between the runs as wholes,
and donors with other weights, are what is compared: they are told, and keep no cells apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import FulaError
from ..measures.chance import holm
from ..measures.intervals import Difference, paired_difference
from ..store import Store
from ..store.tables import SETTING
from .studies import METRICS, Row, Seed
from .style import label
from .summary import aligned

_SETTINGS = (*SETTING, "precision")
CELL = ("front", "end", "front_site", "end_site", "method", "seed", "data_seed")
HEADINGS = (
    "", "measure", "cells", "seeds", "first", "second", "difference", "95 % interval", "p",
    "p after Holm",
)  # fmt: skip


@dataclass(frozen=True)
class RunDifference:
    """One measure of one group of cells in both runs: means over the cells and seeds that both
    have, and the first's less the second's, paired by seed.

    `group`: donors, method and varying settings in words. `cells`: for each seed. `difference`: its
    interval and p are NaN with fewer than two `seeds`; `adjusted`: p after Holm among all
    differences of the two runs.
    """

    group: str
    measure: str
    cells: int
    seeds: int
    first: float
    second: float
    difference: Difference
    adjusted: float = float("nan")


def differences(
    first: Sequence[Row], second: Sequence[Row], axes: Sequence[str] = ()
) -> list[RunDifference]:
    """By group of cells and measure; `axes`: further columns that vary within a run.

    Raises `FulaError` where the runs share no finished cell.
    """
    keys = (*CELL, *apart([first, second], (*_SETTINGS, *axes)))
    cells = [
        {_key(row, keys): row for row in rows if row["status"] == "ok"} for rows in (first, second)
    ]
    groups: dict[str, list[tuple[Row, Row]]] = {}
    for key, row in cells[0].items():
        if key in cells[1]:
            groups.setdefault(_words(row, keys), []).append((row, cells[1][key]))
    if not groups:
        raise FulaError(
            "the runs share no finished cell: none has the same donors' names, sites, method and "
            f"seeds, and the same {', '.join(keys[len(CELL) :]) or 'settings'}, in both"
        )
    found = [
        each
        for group, pairs in groups.items()
        for measure in METRICS
        if (each := _difference(group, measure, pairs)) is not None
    ]
    return adjusted(found)


def apart(runs: Sequence[Sequence[Row]], columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that tell rows of one run's donors, sites, method and seeds apart."""
    cells: dict[tuple, list[Row]] = {}
    for number, rows in enumerate(runs):
        for row in rows:
            cells.setdefault((number, *_key(row, CELL)), []).append(row)
    several = [rows for rows in cells.values() if len(rows) > 1]
    return tuple(c for c in columns if any(len(_values(rows, c)) > 1 for rows in several))


def _values(rows: Sequence[Row], column: str) -> list[str]:
    return sorted({str(row.get(column)) for row in rows})


def _key(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row.get(key)) for key in keys)


def _words(row: Row, keys: Sequence[str]) -> str:
    more = (f"{key} {row[key]}" for key in keys[len(CELL) :] if row.get(key) not in (None, ""))
    return ", ".join([f"{row['front']} → {row['end']}", label(row["method"]), *more])


def _difference(group: str, measure: str, pairs: Sequence[tuple[Row, Row]]) -> RunDifference | None:
    """Of the seeds that have all the group's cells; None where none has."""
    by_seed: dict[Seed, dict[tuple[int, int], tuple[float, float]]] = {}
    for row, other in pairs:
        a, b = row.get(measure), other.get(measure)
        if a is not None and b is not None and not np.isnan(a + b):
            of_seed = by_seed.setdefault((row.get("seed"), row.get("data_seed")), {})
            of_seed[row["front_site"], row["end_site"]] = (a, b)
    cells = {place for of_seed in by_seed.values() for place in of_seed}
    whole = [list(of_seed.values()) for of_seed in by_seed.values() if of_seed.keys() == cells]
    if not whole:
        return None
    first, second = np.array(whole, dtype=float).mean(1).T
    found = _paired(first, second)
    return RunDifference(
        group, measure, len(cells), len(whole), float(first.mean()), float(second.mean()), found
    )


def _paired(first: np.ndarray, second: np.ndarray) -> Difference:
    if len(first) > 1:
        return paired_difference(first, second)
    return Difference(float((first - second).mean()), *[float("nan")] * 3)


def adjusted(found: Sequence[RunDifference]) -> list[RunDifference]:
    """The differences with their p after Holm's correction for all of them."""
    tested = [k for k, each in enumerate(found) if not np.isnan(each.difference.p)]
    held = dict(zip(tested, holm([found[k].difference.p for k in tested]), strict=True))
    return [replace(each, adjusted=float(held.get(k, np.nan))) for k, each in enumerate(found)]


@dataclass(frozen=True)
class RunRows:
    """What is compared: its `name` for the reader, rows, and further columns that vary in it."""

    name: str
    rows: Sequence[Row]
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compared:
    """Two sides: their differences, and in lines of text what they were and were asked for."""

    found: tuple[RunDifference, ...]
    told: tuple[str, ...]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Under `HEADINGS`."""
        return [_cells(each) for each in self.found]

    def __str__(self) -> str:
        return "\n".join([*aligned([HEADINGS, *self.rows]), "", *self.told])


def run_rows(folder: str | Path) -> RunRows:
    """A run's; raises `FulaError` where there is none."""
    store = Store.open(folder)
    return RunRows(
        str(store.folder), store.rows(), tuple(store.spec.get("grid", {}).get("axes", {}))
    )


def compared(first: RunRows, second: RunRows) -> Compared:
    """What differs between two sides. Raises `FulaError` where nothing was measured in both."""
    runs = [first.rows, second.rows]
    axes = sorted({*first.axes, *second.axes})
    found = differences(first.rows, second.rows, axes)
    told = [f"first: {first.name}", f"second: {second.name}"]
    told += [f"{name}: {a} | {b}" for name, a, b in _unlike(runs, (*_SETTINGS, *axes))]
    left = [len(rows) - sum(r["status"] == "ok" for r in rows) for rows in runs]
    told += [f"failed cells left out: {left[0]} | {left[1]}"] if any(left) else []
    return Compared(tuple(found), tuple(told))


def _unlike(
    runs: Sequence[Sequence[Row]], columns: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Columns, and donors' weights, that are not the same in both runs."""
    for column in columns:
        a, b = (", ".join(_values(rows, column)) for rows in runs)
        if a != b:
            yield column, a, b
    weights = [_weights(rows) for rows in runs]
    for name in weights[0]:
        a, b = weights[0][name], weights[1].get(name)
        if b is not None and a != b:
            yield f"weights of {name}", a[:16], b[:16]


def _weights(rows: Sequence[Row]) -> Mapping[str, str]:
    sides = ("front", "end")
    return {
        row[s]: str(row.get(f"{s}_hash")) for row in rows for s in sides if row["status"] == "ok"
    }


def _cells(each: RunDifference) -> tuple[str, ...]:
    """Under `HEADINGS`; shares in percent, differences in points."""
    found = each.difference
    known = not np.isnan(found.p)
    return (
        each.group, METRICS[each.measure].lower(), str(each.cells), str(each.seeds),
        f"{each.first:.1%}", f"{each.second:.1%}", f"{100 * found.mean:+.1f}",
        f"{100 * found.low:+.1f} … {100 * found.high:+.1f}" if known else "–",
        f"{found.p:.2g}" if known else "–",
        f"{each.adjusted:.2g}" if known else "–",
    )  # fmt: skip
