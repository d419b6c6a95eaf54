"""Distances between the samples of one representation: (n, p) -> (n, n), in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .pair import as_rows, centred

_SAME = 1e-12
"""Squared distances below this share of the largest are rounding: the samples are the same."""


def squared_distances(x: Tensor) -> Tensor:
    """||x_i - x_j||^2, (n, n), exactly 0 between equal rows.

    Of x (n, d). Distances that agree but for rounding are made equal, so that ties do not depend on
    the order of the samples.
    """
    x = centred(x)
    gram = x @ x.T
    norms = gram.diag()
    found = (norms[:, None] + norms - 2 * gram).clamp(min=0)
    return levelled(found.fill_diagonal_(0))


def cosines(x: Tensor) -> Tensor:
    """Cosines (n, n) between rows (n, d) as they are; a row of zeros has 0 with all others, 1 with
    itself."""
    x = as_rows(x)
    norms = x.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, x / torch.where(norms > 0, norms, 1), 0)
    return torch.round((unit @ unit.T).clamp(-1, 1), decimals=12).fill_diagonal_(1)


def levelled(distances: Tensor) -> Tensor:
    """Distances (n, n) rounded to `_SAME` of the largest."""
    step = _SAME * distances.amax().clamp(min=torch.finfo(distances.dtype).tiny / _SAME)
    return (distances / step).round() * step


def above_diagonal(matrix: Tensor) -> Tensor:
    """The entries i < j of (n, n): (n (n - 1) / 2,)."""
    n = len(matrix)
    return matrix[torch.ones(n, n, dtype=torch.bool, device=matrix.device).triu(1)]
