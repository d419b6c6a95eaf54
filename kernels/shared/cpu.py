"""Tensors as the C++ library takes them.

It writes into tensors allocated by the caller, wants all activations of a call in one of two
layouts (contiguous, channels-last), and weights and statistics contiguous in the dtype of sums;
what comes otherwise is copied.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from .layout import laid_out
from .sums import accumulator


def sums(x: Tensor, *sizes: int) -> Tensor:
    """Uninitialised (*sizes), in the dtype of x's sums."""
    return torch.empty(sizes, dtype=accumulator(x.dtype))


@overload
def as_sums(t: Tensor, x: Tensor) -> Tensor: ...
@overload
def as_sums(t: Tensor | None, x: Tensor) -> Tensor | None: ...
def as_sums(t: Tensor | None, x: Tensor) -> Tensor | None:
    """`t`, of any shape, contiguous, in the dtype of x's sums."""
    return None if t is None else t.detach().to(accumulator(x.dtype)).contiguous()


@overload
def laid(t: Tensor, layout: torch.memory_format) -> Tensor: ...
@overload
def laid(t: Tensor | None, layout: torch.memory_format) -> Tensor | None: ...
def laid(t: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    """`t` (N, C, H, W) in `layout`, without gradient."""
    return laid_out(None if t is None else t.detach(), layout)
