"""`augment`: a batch from a resident uint8 data set, cropped, flipped, scaled and marked."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared import backend
from . import operator, reference
from .arguments import AugmentArguments, checked


def augment(
    images: Tensor,
    index: Tensor,
    dy: Tensor,
    dx: Tensor,
    flip: Tensor,
    pad: int,
    markers: Tensor | None = None,
    marker_index: Tensor | None = None,
    marker_y: Tensor | None = None,
    marker_x: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A batch from the resident data set: zero-pad, crop, flip, scale to [0, 1], paste markers.

        out[b, y, x] = images[i, y + dy[i] - pad, x' + dx[i] - pad] / 255,  i = index[b],
        x' = W - 1 - x where flip[i], else x; zero outside the image

    images: uint8 (N, H, W, C); index: (B,); dy, dx in [0, 2*pad] and flip (bool): (N,), by sample.
    markers: float32 (M, h, w, C) in [0, 1], pasted last, at (marker_y[i], marker_x[i]), the one
    numbered marker_index[i]; all three (N,). Returns (B, C, H, W) of `dtype`, channels-last.

    Raises `FulaError` for tensors that do not fit together. The values of `index`, the offsets and
    the marker numbers live on the device and are trusted.
    """
    a = checked(
        AugmentArguments(
            images, index, dy, dx, flip, pad, markers, marker_index, marker_y, marker_x, dtype
        )
    )
    chosen = backend.choose("augment", images)
    if chosen == "reference":
        return reference.forward(a)
    return operator.augment(*a, chosen)
