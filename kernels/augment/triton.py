"""A batch from the resident uint8 data set in one launch: gather, zero-pad, crop, flip, markers.

One output element per lane of a program, channels-last, so stores are contiguous and a row of the
source is read in order (backwards where flipped). Division by 255 is correctly rounded, as a CPU's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.device import narrow
from .arguments import AugmentArguments


@triton.jit
def augment_kernel(images, index, dy, dx, flip, markers, marker_index, marker_y, marker_x, out,
                   height, width, channels, pad, marker_height, marker_width, pieces,
                   BLOCK: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    row, piece = pid // pieces, pid % pieces
    at = piece * BLOCK + tl.arange(0, BLOCK)
    size = height * width * channels
    held = at < size
    channel = at % channels
    x = (at // channels) % width
    y = at // channels // width
    sample = tl.load(index + row).to(tl.int64)
    mirrored = tl.load(flip + sample) != 0
    source_x = tl.where(mirrored, width - 1 - x, x) + tl.load(dx + sample).to(tl.int32) - pad
    source_y = y + tl.load(dy + sample).to(tl.int32) - pad
    inside = held & (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source = (source_y * width + source_x) * channels + channel
    pixel = tl.load(images + sample * size + source, mask=inside, other=0)
    value = tl.div_rn(pixel.to(tl.float32), 255.0)
    if markers is not None:
        marker_row = y - tl.load(marker_y + sample).to(tl.int32)
        marker_column = x - tl.load(marker_x + sample).to(tl.int32)
        covered = held & (marker_row >= 0) & (marker_row < marker_height)
        covered = covered & (marker_column >= 0) & (marker_column < marker_width)
        entry = (marker_row * marker_width + marker_column) * channels + channel
        base = tl.load(marker_index + sample).to(tl.int64)
        base = base * (marker_height * marker_width * channels)
        value = tl.where(covered, tl.load(markers + base + entry, mask=covered, other=0.0), value)
    tl.store(out + row.to(tl.int64) * size + at, narrow(value, out), mask=held)


def forward(a: AugmentArguments) -> Tensor:
    """(B, C, H, W) of `dtype`, channels-last."""
    _, height, width, channels = a.images.shape
    out = a.images.new_empty(len(a.index), height, width, channels, dtype=a.dtype)
    if out.numel():
        pieces = triton.cdiv(height * width * channels, 1024)
        size = (0, 0) if a.markers is None else a.markers.shape[1:3]
        draws = (a.index, a.dy, a.dx, a.flip.view(torch.uint8))
        tables = (a.markers, a.marker_index, a.marker_y, a.marker_x)
        with torch.cuda.device_of(out):
            augment_kernel[(len(a.index) * pieces,)](
                a.images.contiguous(), *(t.contiguous() for t in draws),
                *(None if t is None else t.contiguous() for t in tables), out,
                height, width, channels, a.pad, *size, pieces, BLOCK=1024, num_warps=4,
            )  # fmt: skip
    return out.permute(0, 3, 1, 2)
