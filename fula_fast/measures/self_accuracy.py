"""Self-Accuracy of a cross-layer matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_TIE = 1e-9


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
