"""Rows sorted into studies, and the numbers of their figures; nothing is drawn here.

A study is one pair of donors under one setting (protocol, attack share, shortcut, ...). Its
stitching plot shows the same-site cells, its heat maps all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..methods import methods
from ..store.tables import SETTING
from ..study.expand import same_sites

Row = dict[str, Any]
Seed = tuple[Any, Any]
"""Of the stitch's start, and of the data's order."""

UNSET = (None, "", "none")

METRICS = {
    "accuracy": "Accuracy",
    "robust_accuracy": "Robust accuracy",
    "shortcut_accuracy": "Accuracy with shortcut",
    "clean_accuracy": "Accuracy without shortcut",
    "rolled_accuracy": "Accuracy with rolled shortcut",
    "agreement_soft": "Soft agreement",
}
"""What a stitching plot can show, in this order: column -> title."""


@dataclass(frozen=True)
class Curve:
    """A method's line in a stitching plot: one entry per depth; NaN where no cell is done."""

    depths: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


@dataclass(frozen=True)
class Study:
    """The `ok` rows of one pair under one setting.

    `setting`: the columns that tell it apart, unset ones left out. `sites`: (front, end) counts.
    """

    front: str
    end: str
    setting: tuple[tuple[str, Any], ...]
    sites: tuple[int, int]
    rows: tuple[Row, ...]

    @property
    def methods(self) -> list[str]:
        """Methods present, those of the registry first."""
        present = dict.fromkeys(row["method"] for row in self.rows)
        known = [each.name for each in methods()]
        return [m for m in known if m in present] + [m for m in present if m not in known]

    def metrics(self) -> list[str]:
        """The metrics that some row has."""
        found = [m for m in METRICS if any(_number(row, m) for row in self.rows)]
        return [m for m in found if m != "accuracy" or not self._is_the_shortcut_set()]

    def _is_the_shortcut_set(self) -> bool:
        """A cell with a shortcut is tested with it: then `accuracy` would be drawn twice."""
        pairs = [(row.get("accuracy"), row.get("shortcut_accuracy")) for row in self.rows]
        return all(a == b for a, b in pairs) and any(b is not None for _, b in pairs)

    def same_site(self) -> list[Row]:
        """The rows that stitch corresponding sites."""
        pairs = set(same_sites(*self.sites))
        return [row for row in self.rows if (row["front_site"], row["end_site"]) in pairs]

    def curve(self, method: str, metric: str) -> Curve:
        """The same-site cells of a method against depth 0 ... k+1, donors at both ends.

        Depth 0 is the whole end model, depth k+1 the whole front model; between them a depth is
        the end's site. Where several seeds ran: their mean, lowest and highest.
        """
        rows = [row for row in self.same_site() if row["method"] == method]
        values: dict[int, list[float]] = {depth: [] for depth in range(self.sites[1] + 2)}
        for row in rows:
            values[row["end_site"]] += _number(row, metric)
        values[0], values[self.sites[1] + 1] = self.end_points(metric)
        count = max((len(values[row["end_site"]]) for row in rows), default=0)
        reduced = [[f(v) if v else np.nan for v in values.values()] for f in (np.mean, min, max)]
        return Curve(np.array(list(values)), *map(np.array, reduced), seeds=count)

    def end_points(self, metric: str) -> tuple[list[float], list[float]]:
        """The end donor's and the front donor's own values, as lists of at most one number."""
        ends = [n for row in self.rows for n in _number(row, f"end_{metric}")]
        fronts = [n for row in self.rows for n in _number(row, f"front_{metric}")]
        if metric == "agreement_soft":
            ends = [1.0]  # the end model agrees with itself
        return ends[:1], fronts[:1]

    @property
    def cross_layer(self) -> bool:
        """Whether there are cells off the diagonal."""
        return len(self.same_site()) < len(self.rows)

    def matrix(self, method: str, metric: str) -> np.ndarray:
        """(front sites, end sites): mean over seeds, NaN where no cell is done."""
        return self._matrix((row for row in self.rows if row["method"] == method), metric)

    def matrices(self, method: str, metric: str) -> dict[Seed, np.ndarray]:
        """`matrix` of every seed by itself."""
        by_seed: dict[Seed, list[Row]] = {}
        for row in self.rows:
            if row["method"] == method:
                by_seed.setdefault((row.get("seed"), row.get("data_seed")), []).append(row)
        return {seed: self._matrix(rows, metric) for seed, rows in by_seed.items()}

    def _matrix(self, rows: Iterable[Row], metric: str) -> np.ndarray:
        gathered: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            place = row["front_site"] - 1, row["end_site"] - 1
            gathered.setdefault(place, []).extend(_number(row, metric))
        matrix = np.full(self.sites, np.nan)
        for place, values in gathered.items():
            matrix[place] = np.mean(values) if values else np.nan
        return matrix


def studies(rows: Iterable[Row], axes: Sequence[str] = ()) -> list[Study]:
    """The studies of a run's rows, failed ones left out; `axes`: further columns that vary."""
    rows = list(rows)
    keys = (*SETTING, *axes)
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row["front"], row["end"]), []).append(row)
    return [
        Study(*pair, setting, _sites(of_pair), tuple(chosen))
        for pair, of_pair in pairs.items()
        for setting, chosen in _settings(of_pair, keys)
    ]


def varying(found: Iterable[Study]) -> set[str]:
    """The columns in which studies of a run differ: what a title must tell."""
    found = list(found)
    names = {name for study in found for name, _ in study.setting}
    return {n for n in names if len({str(dict(study.setting).get(n)) for study in found}) > 1}


def title(study: Study, shown: set[str]) -> str:
    """`alpha = 0.5, shortcut: pixel` for the shown columns; empty if none of them is set."""
    return ", ".join(_words(name, value) for name, value in study.setting if name in shown)


def _words(name: str, value: Any) -> str:
    if name == "alpha":
        return f"α = {value:g}"
    if name == "subset":
        return f"first {value} classes" if value != 1 else "first class"
    if isinstance(value, (int, float)):
        return f"{name} = {value:g}"
    return f"{name}: {value}" if name != "protocol" else str(value)


def _settings(rows: list[Row], keys: Sequence[str]) -> Iterator[tuple[tuple, list[Row]]]:
    """Each setting of a pair with its `ok` rows.

    A row without a value for weighting, batch norm or epochs (methods on which these do not act)
    belongs to every setting that agrees with it otherwise.
    """
    full = dict.fromkeys(_setting(row, keys) for row in rows)
    for setting in full:
        if any(setting != other and _covers(other, setting) for other in full):
            continue
        chosen = [r for r in rows if r["status"] == "ok" and _covers(setting, _setting(r, keys))]
        if chosen:
            yield setting, chosen


_IDLE = {"weighting", "bn", "epochs"}


def _setting(row: Row, keys: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((k, _hashable(row.get(k))) for k in keys if row.get(k) not in UNSET)


def _covers(setting: tuple, other: tuple) -> bool:
    """Whether `other` equals `setting` but for idle columns that it leaves unset."""
    mine, theirs = dict(setting), dict(other)
    missing = mine.keys() - theirs.keys()
    return theirs.items() <= mine.items() and missing <= _IDLE


def _sites(rows: list[Row]) -> tuple[int, int]:
    """Site counts of front and end: told by the rows, else the deepest sites seen."""
    return tuple(
        max(row.get(f"{side}_sites") or row[f"{side}_site"] for row in rows)
        for side in ("front", "end")
    )


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict)) else value


def _number(row: Row, name: str) -> list[float]:
    """The row's value as a list of one number, or of none."""
    value = row.get(name)
    return [] if value is None or math.isnan(value) else [float(value)]
