"""Representational similarity analysis: do two representations place the samples alike?

Kriegeskorte et al. 2008. One side becomes the matrix of dissimilarities between its samples; the
entries above the diagonal of two such matrices are correlated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FulaError, nearest
from .distances import above_diagonal, cosines, levelled, squared_distances
from .pair import as_rows, centred


def standardised(
    x: Tensor,
    *,
    dissimilarity: str = "correlation",
    compared: str = "spearman",
    center: bool = True,
) -> Tensor:
    """Dissimilarities of the rows of x, (n, n), or their ranks, with mean 0 and norm 1 above the
    diagonal and 0 on it; zero throughout where all are alike.

    `dissimilarity`: `correlation` (1 - Pearson), `cosine` (1 - cosine), `euclidean`. `compared`:
    `spearman` takes ranks (ties get their mean), `pearson` the numbers. `center`: whether columns
    are centred first; Euclidean distances do not see it. Raises `FulaError` for another `compared`
    or `dissimilarity`.
    """
    found = dissimilarities(x, dissimilarity, center)
    upper = above_diagonal(found)
    if compared not in _COMPARED:
        raise FulaError(f"unknown comparison {compared!r}{nearest(compared, _COMPARED)}")
    values = _COMPARED[compared](upper)
    values = torch.where((upper == upper[:1]).all(), 0, values - values.mean())
    values = values / values.norm().clamp(min=torch.finfo(values.dtype).tiny)
    out = torch.zeros_like(found)
    rows, columns = torch.triu_indices(*found.shape, offset=1, device=found.device)
    out[rows, columns] = values
    out[columns, rows] = values
    return out


def rsa(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of two `standardised` matrices above their diagonals, in [-1, 1].

    Symmetric. Invariant to scale, to shift (with `center`; Euclidean always), and to rotation (all
    but 1 - Pearson, which averages over features). 0 where all dissimilarities of a side are alike.
    """
    return ((a * b).sum((-2, -1)) / 2).clamp(-1, 1)


def dissimilarities(x: Tensor, dissimilarity: str, center: bool = True) -> Tensor:
    """(n, n) of the named dissimilarity between rows; see `standardised`.

    Raises `FulaError` for an unknown name.
    """
    if dissimilarity not in _DISSIMILARITIES:
        raise FulaError(
            f"unknown dissimilarity {dissimilarity!r}{nearest(dissimilarity, _DISSIMILARITIES)}"
        )
    x = centred(x) if center else as_rows(x)
    return _DISSIMILARITIES[dissimilarity](x)


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 on of (m,), ties the mean of theirs, float64."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def _correlation(x: Tensor) -> Tensor:
    constant = (x == x[:, :1]).all(1, keepdim=True)
    return 1 - cosines(torch.where(constant, 0, x - x.mean(1, keepdim=True)))


_DISSIMILARITIES = {
    "correlation": _correlation,
    "cosine": lambda x: 1 - cosines(x),
    "euclidean": lambda x: levelled(squared_distances(x).sqrt()),
}
_COMPARED = {"spearman": ranks, "pearson": lambda values: values}
