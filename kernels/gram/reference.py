"""`gram` in plain PyTorch: the oracle of tests and benches, and what runs where no compiled backend
serves."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import GramArguments


def forward(a: GramArguments) -> tuple[Tensor, Tensor]:
    """(XᵀX, Xᵀy) of X = [x, 1], float64."""
    ones = a.x.new_ones(a.x.shape[0], 1, dtype=torch.float64)
    wide_x = torch.cat([a.x.double(), ones], 1)
    return wide_x.mT @ wide_x, wide_x.mT @ a.y.double()
