"""Numerical ranks: of activations over a data set, and of stitches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

THRESHOLD = 1e-3
"""A direction counts if its singular value exceeds this share of the largest."""

MOST_FEATURES = 8000


class ActivationRank:
    """Numerical rank of the covariance of activations, gathered over batches in float64.

    `features`: per sample, flattened. Above `MOST_FEATURES` a subset of that many is drawn, a
    pure function of `seed` and `features`, and the rank is the subset's.
    """

    def __init__(self, features: int, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self._features = features
        self._subset = chosen_features(features, seed).to(device)
        size = len(self._subset)
        self._cross = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._sum = torch.zeros(size, dtype=torch.float64, device=device)
        self._shift: Tensor | None = None
        self._count = 0

    def add(self, activation: Tensor) -> None:
        """One batch (B, ...) with `features` numbers a sample."""
        rows = activation.flatten(1)
        if rows.shape[1] != self._features:
            raise ValueError(f"expected {self._features} features, got {rows.shape[1]}")
        rows = rows[:, self._subset].double()
        if self._shift is None:  # the covariance ignores it, and small numbers cancel less
            self._shift = rows.mean(0)
        rows = rows - self._shift
        self._cross.addmm_(rows.T, rows)
        self._sum += rows.sum(0)
        self._count += len(rows)

    def covariance(self) -> Tensor:
        """(features, features) of the chosen features, divided by the number of samples."""
        mean = self._sum / self._count
        return self._cross / self._count - torch.outer(mean, mean)

    def result(self) -> int:
        """Number of singular values of the covariance above `THRESHOLD` times the largest."""
        return int(numerical_rank(self.covariance()))


def chosen_features(features: int, seed: int) -> Tensor:
    """Sorted indices of the features whose covariance is taken."""
    if features <= MOST_FEATURES:
        return torch.arange(features)
    draw = np.random.Generator(np.random.Philox(key=seed))
    return torch.from_numpy(np.sort(draw.choice(features, MOST_FEATURES, replace=False)))


def numerical_rank(matrix: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Number of singular values above `threshold` times the largest: (..., m, n) -> (...)."""
    values = torch.linalg.svdvals(matrix.double())
    return (values > threshold * values[..., :1]).sum(-1)


def condition_number(matrix: Tensor) -> Tensor:
    """Largest over smallest singular value: (..., m, n) -> (...); infinite if singular."""
    values = torch.linalg.svdvals(matrix.double())
    return values[..., 0] / values[..., -1]


def rank_and_condition(state: Mapping[str, Tensor]) -> tuple[int, float]:
    """Of a trained stitch, by its tensors: `weight` (out, in)."""
    rank, condition = stitch_spectrum(state["weight"])
    return int(rank), float(condition)


def stitch_spectrum(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numerical rank and condition number of the stitches' maps.

    `weight`: (..., C2, C1), or of 1x1 convolutions (..., C2, C1, 1, 1).
    """
    if weight.ndim >= 4 and weight.shape[-2:] == (1, 1):
        weight = weight[..., 0, 0]
    return numerical_rank(weight), condition_number(weight)
