"""`gram` by the C++ library. It has no gradient, so no operator stands before it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.cpu import call
from .arguments import GramArguments


def forward(a: GramArguments) -> tuple[Tensor, Tensor]:
    """(XᵀX, Xᵀy) of X = [x, 1], float64."""
    x, y = a.x.detach(), a.y.detach()
    size = x.shape[1] + 1
    xtx = torch.empty(size, size, dtype=torch.float64)
    xty = torch.empty(size, y.shape[1], dtype=torch.float64)
    call("gram", x, y.to(x.dtype), False, xtx, xty)
    return xtx, xty
