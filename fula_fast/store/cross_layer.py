"""Self-Accuracy as columns: that of the cross-layer matrix to which a row belongs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measures.self_accuracy import self_accuracy
from ..study.cells import combined
from .tables import SETTING, with_columns

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

_MATRIX = ("front", "end", "method", "seed", "data_seed", *SETTING)
"""Columns whose values tell the matrices of a run apart, beside its own axes."""
_NUMBERS = ("front_sites", "end_sites", "front_site", "end_site", "accuracy")
COLUMNS = ("self_accuracy", "self_accuracy_averaged")


def with_self_accuracy(rows: Iterable[Row], axes: Sequence[str] = ()) -> list[Row]:
    """The rows, those of a whole cross-layer matrix with their matrix's two numbers.

    Columns `self_accuracy` and `self_accuracy_averaged` (directed, and of (M + M^T) / 2 of the
    accuracies M) for every front, end, method, setting and seed of which all k x k cells are done,
    k > 1. `axes`: further columns that tell settings apart.
    """
    rows = list(rows)
    texts = ([str(row.get(name)) for row in rows] for name in (*_MATRIX, *axes))
    numbers = {name: _numbers([row.get(name) for row in rows]) for name in _NUMBERS}
    ok = np.array([row.get("status") == "ok" for row in rows], bool)
    found = dict(_matrices([_codes(text) for text in texts], numbers, ok))
    return [row | found.get(place, {}) for place, row in enumerate(rows)]


def with_self_accuracy_columns(found: pyarrow.Table, axes: Sequence[str] = ()) -> pyarrow.Table:
    """The same of a table of results; without such a matrix, without the columns."""
    from pyarrow import compute

    names = [name for name in (*_MATRIX, *axes) if name in found.column_names]
    numbers = {
        name: found[name].to_numpy().astype(float)
        if name in found.column_names
        else np.full(len(found), np.nan)
        for name in _NUMBERS
    }
    ok = compute.equal(found["status"], "ok").fill_null(False).to_numpy().astype(bool)
    values = {name: [None] * len(found) for name in COLUMNS}
    for place, row in _matrices([_codes(found[name]) for name in names], numbers, ok):
        for name, value in row.items():
            values[name][place] = value
    known = {n: column for n, column in values.items() if any(v is not None for v in column)}
    return with_columns(found, known) if known else found


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _codes(values: Any) -> np.ndarray:
    """Equal numbers for equal values of a column."""
    import pyarrow
    from pyarrow import compute

    column = pyarrow.chunked_array([values]) if isinstance(values, list) else values
    coded = compute.dictionary_encode(column.combine_chunks())
    return coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def _matrices(
    codes: Sequence[np.ndarray], numbers: dict[str, np.ndarray], ok: np.ndarray
) -> Iterator[tuple[int, Row]]:
    """Positions of rows in whole matrices, with their matrix's columns."""
    (places,) = np.nonzero(ok)
    if not len(places):
        return
    group = combined(*(code[places] for code in codes))
    order = places[np.argsort(group, kind="stable")]
    for rows in np.split(order, np.cumsum(np.bincount(group))[:-1]):
        yield from ((int(row), found) for found in _columns(rows, numbers) for row in rows)


def _columns(rows: np.ndarray, numbers: dict[str, np.ndarray]) -> list[Row]:
    """The columns of one matrix; nothing where it is not whole and square."""
    fronts, ends, front, end, accuracy = (numbers[name][rows] for name in _NUMBERS)
    size = fronts[0]
    alike = (fronts == size).all() and (ends == size).all()
    if not (alike and size > 1 and len(rows) == size * size) or np.isnan(accuracy).any():
        return []
    matrix = np.full((int(size), int(size)), np.nan)
    matrix[front.astype(int) - 1, end.astype(int) - 1] = accuracy
    if np.isnan(matrix).any():  # a cell twice, another not at all
        return []
    return [
        dict(
            zip(COLUMNS, (self_accuracy(matrix), self_accuracy(matrix, averaged=True)), strict=True)
        )
    ]
