"""Self-Accuracy of a cross-layer matrix, as a function and as columns of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_TIE = 1e-9

Row = dict[str, Any]

_MATRIX = (
    "front", "end", "method", "protocol", "alpha", "shortcut", "subset", "seed", "data_seed",
    "weighting", "bn", "epochs",
)  # fmt: skip
"""Columns whose values tell the matrices of a run apart, beside its own axes."""


def self_accuracy(matrix: ArrayLike, *, averaged: bool = False) -> float:
    """How often a layer is most similar to itself: the share of rows that peak on the diagonal.

    `matrix` (k, k): similarity, rows are front sites and columns end sites. `averaged`: of
    (M + M^T) / 2, the non-directional mode in the parentheses of the FuLA preprint's Fig. 10. A
    row whose diagonal ties with n - 1 others counts 1/n, what a fair draw among them would give,
    so a matrix of equal numbers scores chance. Rows with a NaN do not count; NaN if none does.
    Raises `ValueError` unless the matrix is square.
    """
    m = np.asarray(matrix, dtype=np.float64)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise ValueError(f"Self-Accuracy needs a square matrix, got shape {m.shape}")
    if averaged:
        m = (m + m.T) / 2
    m = m.copy()
    whole = ~np.isnan(m).any(axis=1)
    if not whole.any():
        return float("nan")
    peaks = m >= np.nanmax(m, axis=1, keepdims=True, where=~np.isnan(m), initial=-np.inf) - _TIE
    credit = np.diag(peaks) / np.maximum(peaks.sum(axis=1), 1)
    return float(credit[whole].mean())


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
