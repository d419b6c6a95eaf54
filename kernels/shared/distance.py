"""Squared norms and distances, and the normalised term that they make."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import FulaError
from .sums import wide


def squared_norm(target: Tensor) -> Tensor:
    """Per-sample sum of squares: (B, ...) -> (B,)."""
    return wide(target).square().sum(list(range(1, target.dim())))


def squared_distance(y: Tensor, target: Tensor) -> Tensor:
    """Per-sample squared distance of every lane to one shared target.

    `y` (L, B, ...), `target` (B, ...) -> (L, B).
    """
    return (y - target.detach().to(y.dtype)).square().flatten(2).sum(2)


def term(dist2: Tensor, norm2: Tensor, scope: str = "batch") -> Tensor:
    """The normalised distance of each lane, ||h - g|| / ||g|| (FuLA preprint, Eq. 5).

    dist2: (L, B) squared distances; norm2: (B,) or (L, B) squared target norms; -> (L,).
    scope: "batch" takes one norm over the whole batch, "sample" the mean of per-sample ratios.
    At zero distance the gradient is zero. A target of zero norm has no relative distance: its
    ratio and gradient are zero. Raises `FulaError` for another scope.
    """
    norm2 = norm2.detach().to(dist2.dtype).expand_as(dist2)
    if scope == "batch":
        return _ratio(dist2.sum(1), norm2.sum(1))
    if scope == "sample":
        return _ratio(dist2, norm2).mean(1)
    raise FulaError(f"scope = '{scope}': must be 'batch' or 'sample'")


def _ratio(dist2: Tensor, norm2: Tensor) -> Tensor:
    """sqrt(dist2 / norm2), with value and gradient zero where either is zero."""
    known = (dist2 != 0) & (norm2 != 0)  # true for NaN, which must come through
    one = torch.ones_like(dist2)
    root = torch.where(known, dist2, one).sqrt() / torch.where(known, norm2, one).sqrt()
    return torch.where(known, root, torch.zeros_like(root))
