"""Do two representations give a sample the same neighbours?

A side's neighbourhoods are a matrix (n, n): row i holds 1 for each of the k nearest samples of i,
and samples tied at the kth place share what is left of k evenly, so that neither the order of the
samples nor duplicates decide. Without ties these are plain sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FulaError, nearest
from .distances import cosines, squared_distances
from .pair import centred


def neighbourhoods(x: Tensor, *, k: int = 10, distance: str = "euclidean") -> Tensor:
    """(n, n) of the rows of x, each row summing to k.

    `distance`: `euclidean`, or `cosine` of rows centred by column. Raises `FulaError` for another
    distance.
    """
    if distance not in ("euclidean", "cosine"):
        raise FulaError(
            f"unknown distance {distance!r}{nearest(distance, ('euclidean', 'cosine'))}"
        )
    return _nearest(squared_distances(x) if distance == "euclidean" else -cosines(centred(x)), k)


def mutual_knn(a: Tensor, b: Tensor) -> Tensor:
    """Mean share of common neighbours, |N_x(i) and N_y(i)| / k, in [0, 1] (Huh et al. 2024).

    Symmetric; invariant to shift, scale and rotation. Chance is k / (n - 1).
    """
    common = torch.minimum(a, b).sum((-2, -1))
    return common / a.sum()


def neighbourhood_jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Mean of |N_x(i) and N_y(i)| / |N_x(i) or N_y(i)|, in [0, 1]; invariances as `mutual_knn`
    (Wang et al. 2020; Klabunde et al. 2024)."""
    return (torch.minimum(a, b).sum(-1) / torch.maximum(a, b).sum(-1)).mean(-1)


def similar_neighbours(x: Tensor, *, k: int = 10, center: bool = False) -> tuple[Tensor, Tensor]:
    """For `cknna`: cosines of the rows (n, n), zero on the diagonal, and the k nearest by them.

    `center`: whether columns are centred first; the published measure does not.
    """
    found = cosines(centred(x) if center else x)
    return found.clone().fill_diagonal_(0), _nearest(-found, k)


def cknna(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """CKA of the cosines between mutual nearest neighbours (Huh et al. 2024, and their code).

    Align(K, L) / sqrt(Align(K, K) Align(L, L)), where Align is the unbiased HSIC (Song et al. 2012)
    of both kernels with only the entries kept that are among the k nearest on both sides. About in
    [-1, 1]; clamped to it. Invariant to scale and rotation. Not quite symmetric: neighbourhoods are
    not. 0 where Align of a side with itself is not positive. Raises `FulaError` below four samples.
    """
    own = _align(a, a).clamp(min=0) * _align(b, b).clamp(min=0)
    good = own > 0
    found = torch.where(good, _align(a, b) / torch.where(good, own, 1).sqrt(), 0)
    return found.clamp(-1, 1)


def _align(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """n (n - 3) times the unbiased HSIC of the kernels among mutual neighbours."""
    n = a[0].shape[-1]
    if n < 4:
        raise FulaError(f"{n} samples: CKNNA is defined from 4 on; give more images")
    mutual = torch.minimum(a[1], b[1])
    first, second = mutual * a[0], mutual * b[0]
    totals = first.sum((-2, -1)) * second.sum((-2, -1)) / ((n - 1) * (n - 2))
    middle = (first.sum(-2) * second.sum(-1)).sum(-1)
    return (first * second.mT).sum((-2, -1)) + totals - 2 / (n - 2) * middle


def _nearest(distances: Tensor, k: int) -> Tensor:
    """Shares of the k smallest of each row, its own entry left out: (n, n) -> (n, n)."""
    n = len(distances)
    if not 1 <= k < n:
        raise FulaError(f"k {k} must lie in 1 ... {n - 1}: a sample has that many others")
    found = distances.clone().fill_diagonal_(float("inf"))
    last = found.kthvalue(k, dim=1, keepdim=True).values
    closer, tied = (found < last).double(), (found == last).double()
    left = k - closer.sum(1, keepdim=True)
    return closer + tied * left / tied.sum(1, keepdim=True)
