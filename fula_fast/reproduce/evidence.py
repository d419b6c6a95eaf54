"""The rows of an experiment, with columns that claims and plots speak of, and ways to
choose rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .experiment import FRONT_COPY

Row = dict[str, Any]

CELL = ("front", "end", "front_site", "end_site", "alpha", "shortcut", "subset", "seed")
"""Columns that, with the method, tell the cells of a part."""

_HALF, _FAR = 0.5, 0.6
_NEAR, _CORNER = 0.25, 0.4


class Untestable(Exception):
    """Why some rows have no number."""


@dataclass(frozen=True)
class Evidence:
    """Finished rows of an experiment. Empty selections are allowed; their numbers are NaN."""

    rows: tuple[Row, ...]

    def where(self, conditions: Mapping[str, Any]) -> Evidence:
        """Rows that meet all `conditions`: column = value, or a list of values.

        `depth` is `shallow`, `deep` or `last` (of the end's site). `side` is a part of a
        cross-layer matrix by relative depth: `deep to shallow` (below the diagonal), of it
        `near below` and `bottom left`; `shallow to deep`, `near above` and `top right`.
        """
        return Evidence(
            tuple(r for r in self.rows if all(_meets(r, *c) for c in conditions.items()))
        )

    def values(self, column: str) -> np.ndarray:
        """The column's numbers, rows without one left out."""
        found = [number(row.get(column)) for row in self.rows]
        return np.array([v for v in found if not math.isnan(v)])

    def reduced(self, selector: Mapping[str, Any]) -> float:
        """One number of a selector: `column`, `reduce` (mean, max, min), and conditions.

        Raises `Untestable` where no row has one.
        """
        conditions = conditions_of(selector)
        values = self.where(conditions).values(selector["column"])
        if not values.size:
            raise Untestable(f"no row has '{selector['column']}'{_words(conditions)}")
        how = {"mean": np.mean, "max": np.max, "min": np.min}[selector.get("reduce", "mean")]
        return float(how(values))

    def groups(self, *columns: str) -> dict[tuple[Any, ...], Evidence]:
        """Tables by the values of some columns, in the order of the rows."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            found.setdefault(tuple(row.get(c) for c in columns), []).append(row)
        return {key: Evidence(tuple(rows)) for key, rows in found.items()}

    @cached_property
    def seeds(self) -> tuple[Any, ...]:
        """The seeds that occur, each with its own rows; rows without one belong to all."""
        return tuple(dict.fromkeys(r["seed"] for r in self.rows if r.get("seed") is not None))

    def per_seed(self, statistic: Callable[[Evidence], float]) -> np.ndarray:
        """The statistic of each seed's rows; seeds for which it has no number are left out."""
        return np.array([v for v in self._tried(statistic) if isinstance(v, float)])

    def demanded(self, statistic: Callable[[Evidence], float]) -> np.ndarray:
        """`per_seed`, but raises `Untestable` where no seed has a number."""
        tried = self._tried(statistic)
        if all(isinstance(v, Untestable) for v in tried):
            raise tried[0]
        return np.array([v for v in tried if isinstance(v, float)])

    def _tried(self, statistic: Callable[[Evidence], float]) -> list[float | Untestable]:
        found: list[float | Untestable] = []
        for part in self._parts:
            try:
                found.append(float(statistic(part)))
            except Untestable as reason:
                found.append(reason)
        return found

    @cached_property
    def _parts(self) -> tuple[Evidence, ...]:
        if not self.seeds:
            return (self,)
        return tuple(
            Evidence(tuple(r for r in self.rows if r.get("seed") in (seed, None)))
            for seed in self.seeds
        )

    def matrix(self, column: str = "accuracy") -> np.ndarray:
        """(front sites, end sites): means, NaN where there is no row."""
        placed = Evidence(tuple(r for r in self.rows if r.get("front_site") and r.get("end_site")))
        sites = (max((r[f"{s}_sites"] for r in placed.rows), default=0) for s in ("front", "end"))
        out = np.full(tuple(sites), np.nan)
        for (front, end), cells in placed.groups("front_site", "end_site").items():
            values = cells.values(column)
            if values.size:
                out[front - 1, end - 1] = values.mean()
        return out


def conditions_of(selector: Mapping[str, Any]) -> dict[str, Any]:
    """Which rows a selector is about."""
    return {k: v for k, v in selector.items() if k not in ("column", "reduce")}


def number(value: Any) -> float:
    """A number as a float; NaN for anything else."""
    return float(value) if isinstance(value, int | float) else float("nan")


def gathered(rows_by_part: Mapping[str, Iterable[Row]]) -> Evidence:
    """All `ok` rows with their part's name and the derived columns."""
    rows = [
        _derived({**row, "part": part})
        for part, found in rows_by_part.items()
        for row in found
        if row.get("status", "ok") == "ok"
    ]
    _add_clean_loss(rows)
    _add_accuracy_loss(rows)
    return Evidence(tuple(rows))


def _derived(row: Row) -> Row:
    row |= _donors(row.get("front", ""), row.get("end", ""))
    if row.get("front_accuracy"):
        row["relative_accuracy"] = number(row["accuracy"]) / row["front_accuracy"]
    if "shortcut" in row and "clean_accuracy" in row:
        row |= _marked(row)
    if "subset" in row:
        row |= _classes(row["subset"] or 10)
    for kind in ("", "robust_"):
        row[f"{kind}outside"] = _outside(row, f"{kind}accuracy")
    row["surplus"] = _surplus(row)
    if str(row.get("weighting", "")).startswith("cutoff="):
        row["functional_terms"] = int(row["weighting"].removeprefix("cutoff="))
    if "dm_samples" in row:
        row["dm_samples"] = str(row["dm_samples"])
        row["setting"] = f"DM, {row['dm_samples']} images, {row['dm_stats']}"
    row.setdefault("setting", row.get("method", ""))
    return row


def _donors(front: str, end: str) -> Row:
    """What the donors' names tell. A front of another architecture than its namesake is not it."""
    if not (front and end):
        return {}
    names = front.removesuffix(FRONT_COPY), end.removesuffix(FRONT_COPY)
    other = " (other architecture)" if front.endswith(FRONT_COPY) else ""
    return {
        "front": names[0],
        "end": names[1],
        "pair": f"{names[0]}{other} → {names[1]}",
        "kind": "-".join("robust" if n.endswith("robust") else "plain" for n in names),
        "self": front == end,
    }


def _marked(row: Row) -> Row:
    """`shortcut_gain`: over clean images. `exploited`: over images with another class's marker,
    which hides as much of them."""
    found = {"marked": row["shortcut"] != "none", "marked_accuracy": row["accuracy"]}
    for name, other in (("shortcut_gain", "clean_accuracy"), ("exploited", "rolled_accuracy")):
        if row.get(other) is not None:
            found[name] = number(row["accuracy"]) - row[other]
    return found


def _outside(row: Row, column: str) -> float | None:
    """How far a stitched model is from the range between its donors; None where one is unknown."""
    value, *donors = _beside(row, column)
    if math.isnan(value + sum(donors)):
        return None
    return max(value - max(donors), min(donors) - value, 0.0)


def _surplus(row: Row) -> float | None:
    """How far a stitched model is above the better of its donors; None where one is unknown."""
    value, *donors = _beside(row, "accuracy")
    return None if math.isnan(value + sum(donors)) else value - max(donors)


def _beside(row: Row, column: str) -> tuple[float, ...]:
    """The column of the stitched model, of the front and of the end."""
    return tuple(number(row.get(f"{side}{column}")) for side in ("", "front_", "end_"))


def _classes(count: int) -> Row:
    return {"classes": count, "full": count == 10, "few": count <= 5, "several": 1 < count < 10}


_SAME = (*(c for c in CELL if c != "shortcut"), "method", "part")


def _add_clean_loss(rows: list[Row]) -> None:
    """What training under a shortcut costs on clean images, against the same cell without one."""
    plain = {
        tuple(r.get(c) for c in _SAME): r["accuracy"] for r in rows if r.get("shortcut") == "none"
    }
    for row in rows:
        before = plain.get(tuple(row.get(c) for c in _SAME))
        if row.get("marked") and before is not None:
            row["clean_loss"] = before - number(row["clean_accuracy"])


def _add_accuracy_loss(rows: list[Row]) -> None:
    """What stitching costs: against the end donor on the same images where an `identity` part
    measured it, else against the donor's own test accuracy."""
    same = {r["end"]: r["accuracy"] for r in rows if r["part"] == "identity"}
    for row in rows:
        reference = same.get(row.get("end"), row.get("end_accuracy"))
        if reference is not None and "accuracy" in row:
            row["accuracy_loss"] = reference - number(row["accuracy"])


def _words(conditions: Mapping[str, Any]) -> str:
    """Conditions to read: ` where method = slm, tlm and alpha = 1.0`."""
    listed = {k: v if isinstance(v, list | tuple) else (v,) for k, v in conditions.items()}
    told = " and ".join(f"{k} = {', '.join(map(str, v))}" for k, v in listed.items())
    return f" where {told}" if told else ""


def _meets(row: Row, column: str, wanted: Any) -> bool:
    if column in _PLACES:
        placed = row.get("front_site") and row.get("end_site")
        return bool(placed) and _PLACES[column][wanted](*_depths(row))
    values = wanted if isinstance(wanted, list | tuple) else (wanted,)
    return row.get(column) in values


def _depths(row: Row) -> tuple[float, float]:
    """Relative depths of the front's and the end's site, in (0, 1]."""
    return tuple(row[f"{s}_site"] / (row.get(f"{s}_sites") or 1) for s in ("front", "end"))


_PLACES: dict[str, dict[str, Callable[[float, float], bool]]] = {
    "depth": {
        "shallow": lambda front, end: end <= _HALF,
        "deep": lambda front, end: end >= _FAR,
        "last": lambda front, end: end == 1,
    },
    "side": {
        "deep to shallow": lambda front, end: front > end + 1e-9,
        "shallow to deep": lambda front, end: front < end - 1e-9,
        "near below": lambda front, end: 1e-9 < front - end <= _NEAR,
        "near above": lambda front, end: 1e-9 < end - front <= _NEAR,
        "bottom left": lambda front, end: front - end > _CORNER,
        "top right": lambda front, end: end - front > _CORNER,
    },
}
