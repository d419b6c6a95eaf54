"""`augment` by the C++ library."""

from __future__ import annotations

from torch import Tensor

from ..shared.cpu import call
from .arguments import AugmentArguments


def forward(a: AugmentArguments) -> Tensor:
    """(B, C, H, W) of `dtype`, channels-last."""
    _, height, width, channels = a.images.shape
    out = a.images.new_empty(len(a.index), height, width, channels, dtype=a.dtype)
    out = out.permute(0, 3, 1, 2)
    draws = (a.index, a.dy, a.dx, a.flip)
    tables = (a.markers, a.marker_index, a.marker_y, a.marker_x)
    call(
        "augment", a.images.contiguous(), *(t.contiguous() for t in draws), a.pad,
        *(None if t is None else t.contiguous() for t in tables), out,
    )  # fmt: skip
    return out
