"""Self-Accuracy as columns: that of the cross-layer matrix to which a row belongs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..measures.self_accuracy import self_accuracy
from .tables import SETTING

Row = dict[str, Any]

_MATRIX = ("front", "end", "method", "seed", "data_seed", *SETTING)
"""Columns whose values tell the matrices of a run apart, beside its own axes."""


def with_self_accuracy(rows: Iterable[Row], axes: Sequence[str] = ()) -> list[Row]:
    """The rows, those of a whole cross-layer matrix with their matrix's two numbers.

    Columns `self_accuracy` and `self_accuracy_averaged` (directed, and of (M + M^T) / 2 of the
    accuracies M) for every front, end, method, setting and seed of which all k x k cells are done,
    k > 1. `axes`: further columns that tell settings apart.
    """
    rows = list(rows)
    matrices: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.get("status") == "ok":
            key = tuple(str(row.get(name)) for name in (*_MATRIX, *axes))
            matrices.setdefault(key, []).append(row)
    columns = {id(row): found for part in matrices.values() for row, found in _columns(part)}
    return [row | columns.get(id(row), {}) for row in rows]


def _columns(rows: list[Row]) -> list[tuple[Row, Row]]:
    """The rows of one matrix with their columns; nothing where it is not whole and square."""
    sites = {(row.get("front_sites"), row.get("end_sites")) for row in rows}
    ((height, width), *others) = sites
    cells = {(row.get("front_site"), row.get("end_site")): row.get("accuracy") for row in rows}
    if others or height != width or not height or height < 2 or None in cells.values():
        return []
    if not len(rows) == len(cells) == height * width:
        return []
    places = range(1, height + 1)
    matrix = [[cells[front, end] for end in places] for front in places]
    found = {
        "self_accuracy": self_accuracy(matrix),
        "self_accuracy_averaged": self_accuracy(matrix, averaged=True),
    }
    return [(row, found) for row in rows]
