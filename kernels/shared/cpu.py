"""Tensors as the C++ library takes them.

It writes into tensors allocated by the caller, wants all activations of a call in one of two
layouts (contiguous, channels-last), and weights and statistics contiguous in the dtype of sums;
what comes otherwise is copied.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from .. import _core
from .layout import laid_out
from .sums import accumulator


def call(function: str, *arguments: Any) -> None:
    """`function` of the library, with tensors, and lists of them, among its `arguments`.

    It is given DLPack capsules: for a tensor it would call `Tensor.__dlpack__` from C and try
    another way where that raises, so that a Ctrl-C that lands there would be dropped.
    """
    getattr(_core, function)(*map(_exported, arguments))


def _exported(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return torch.to_dlpack(argument)
    return [torch.to_dlpack(t) for t in argument] if isinstance(argument, list) else argument


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
