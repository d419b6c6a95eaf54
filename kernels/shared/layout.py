"""Memory layouts of the operators' outputs, in one place: the fake implementations promise what the
real ones allocate.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


def like(x: Tensor, room: int = 0) -> Tensor:
    """Uninitialised, of x's (N, C, H, W) and dtype, and `room` samples more: contiguous if x is,
    else channels-last if possible."""
    shape = (x.shape[0] + room, *x.shape[1:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))


def stitched(x: Tensor, count: int, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised (count, channels, H, W), channels-last, for fronts x (S, B, C, H, W); or tokens
    (count, T, channels) or vectors (count, channels) as x has them."""
    places = x.shape[3:] if x.dim() == 5 else x.shape[2:-1]
    y = x.new_empty(count, *places, channels, dtype=dtype)
    return y.movedim(-1, 1) if x.dim() == 5 else y


def fronts_like(x: Tensor) -> Tensor:
    """Uninitialised, of the shape of fronts x (S, B, ...), features innermost."""
    features = x.shape[2] if x.dim() == 5 else x.shape[-1]
    return stitched(x, x.shape[0] * x.shape[1], features).unflatten(0, x.shape[:2])


def placed(value: Tensor, into: Tensor) -> Tensor:
    """`value`, of any shape, in the layout of the fresh tensor `into`, of the same shape."""
    return value if value.stride() == into.stride() else into.copy_(value)


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout `like(x)` has."""
    contiguous = x.dim() != 4 or x.is_contiguous()
    return torch.contiguous_format if contiguous else torch.channels_last


@overload
def laid_out(x: Tensor, layout: torch.memory_format) -> Tensor: ...
@overload
def laid_out(x: Tensor | None, layout: torch.memory_format) -> Tensor | None: ...
def laid_out(x: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    """`x` (N, C, H, W), copied only where it does not lie in `layout`."""
    return None if x is None else x.contiguous(memory_format=layout)
