"""In what sums are taken, and tensors by lane."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over tensors of `dtype` are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """`x`, of any shape, in its accumulator's dtype."""
    return x.to(accumulator(x.dtype))


def by_lane(x: Tensor, lanes: int, samples: int) -> Tensor:
    """(L*B, ...) -> (L, B, ...)."""
    return x.reshape(lanes, samples, *x.shape[1:])
