"""A batch from the resident uint8 data set in one launch: gather, zero-pad, crop, flip, markers.

One output element per lane of a program, channels-last, so stores are contiguous and a row of the
source is read in order (backwards where flipped). Division by 255 is correctly rounded, as a CPU's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import not_none
from ..shared.device import launch, narrow
from .arguments import AugmentArguments


class Crops(NamedTuple):
    """Which samples (B,), and what was drawn for each sample of the set (N,)."""

    index: Tensor
    dy: Tensor
    dx: Tensor
    flip: Tensor


class Pasted(NamedTuple):
    """float32 markers (M, h, w, C), and which one goes where, by sample of the set (N,)."""

    markers: Tensor
    marker_index: Tensor
    marker_y: Tensor
    marker_x: Tensor
    marker_height: int
    marker_width: int


class PixelSizes(NamedTuple):
    """Of an image (H, W, C)."""

    height: int
    width: int
    channels: int


@triton.jit
def augment_kernel(images, crops: Crops, pasted: Pasted, out, sizes: PixelSizes, pad, pieces,
                   BLOCK: tl.constexpr):  # fmt: skip
    height, width, channels = sizes
    pid = tl.program_id(0)
    row, piece = pid // pieces, pid % pieces
    at = piece * BLOCK + tl.arange(0, BLOCK)
    size = height * width * channels
    held = at < size
    channel = at % channels
    x = (at // channels) % width
    y = at // channels // width
    sample = tl.load(crops.index + row).to(tl.int64)
    mirrored = tl.load(crops.flip + sample) != 0
    shift_x = tl.load(crops.dx + sample).to(tl.int32) - pad
    source_x = tl.where(mirrored, width - 1 - x, x) + shift_x
    source_y = y + tl.load(crops.dy + sample).to(tl.int32) - pad
    inside = held & (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source = (source_y * width + source_x) * channels + channel
    pixel = tl.load(images + sample * size + source, mask=inside, other=0)
    value = tl.div_rn(pixel.to(tl.float32), 255.0)
    if pasted is not None:
        marker_height, marker_width = pasted.marker_height, pasted.marker_width
        marker_row = y - tl.load(pasted.marker_y + sample).to(tl.int32)
        marker_column = x - tl.load(pasted.marker_x + sample).to(tl.int32)
        covered = held & (marker_row >= 0) & (marker_row < marker_height)
        covered = covered & (marker_column >= 0) & (marker_column < marker_width)
        entry = (marker_row * marker_width + marker_column) * channels + channel
        base = tl.load(pasted.marker_index + sample).to(tl.int64)
        base = base * (marker_height * marker_width * channels)
        marker = tl.load(pasted.markers + base + entry, mask=covered, other=0.0)
        value = tl.where(covered, marker, value)
    tl.store(out + row.to(tl.int64) * size + at, narrow(value, out), mask=held)


def _pasted(a: AugmentArguments) -> Pasted | None:
    if a.markers is None:
        return None
    index, y, x = map(not_none, (a.marker_index, a.marker_y, a.marker_x))
    height, width = a.markers.shape[1:3]
    tables = a.markers.contiguous(), index.contiguous(), y.contiguous(), x.contiguous()
    return Pasted(*tables, height, width)


def forward(a: AugmentArguments) -> Tensor:
    """(B, C, H, W) of `dtype`, channels-last."""
    sizes = PixelSizes(*a.images.shape[1:])
    out = a.images.new_empty(len(a.index), *sizes, dtype=a.dtype)
    if out.numel():
        pieces = triton.cdiv(sizes.height * sizes.width * sizes.channels, 1024)
        draws = (a.index, a.dy, a.dx, a.flip.view(torch.uint8))
        crops = Crops(*(t.contiguous() for t in draws))
        with torch.cuda.device_of(out):
            launch(
                augment_kernel, len(a.index) * pieces,
                a.images.contiguous(), crops, _pasted(a), out, sizes, a.pad, pieces,
                BLOCK=1024, num_warps=4,
            )  # fmt: skip
    return out.permute(0, 3, 1, 2)
