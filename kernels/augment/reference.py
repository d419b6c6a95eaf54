"""`augment` in plain PyTorch: the oracle of tests and benches, and what runs, or what
`torch.compile` traces, where no compiled backend serves."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import not_none
from .arguments import AugmentArguments


def forward(a: AugmentArguments) -> Tensor:
    """(B, C, H, W) of `dtype`, channels-last."""
    images, index = a.images, a.index
    height, width = images.shape[1:3]
    rows = torch.arange(height, device=images.device) + (a.dy[index].long() - a.pad)[:, None]
    columns = torch.arange(width, device=images.device).expand(len(index), width)
    columns = torch.where(a.flip[index][:, None], width - 1 - columns, columns)
    columns = columns + (a.dx[index].long() - a.pad)[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    pixels = images[
        index[:, None, None],
        rows.clamp(0, height - 1)[:, :, None],
        columns.clamp(0, width - 1)[:, None, :],
    ]  # (B, H, W, C)
    whole = torch.full((), 255.0, device=images.device)  # a number would become a multiplication
    out = torch.where(inside[..., None], pixels.to(torch.float32) / whole, 0.0)
    if a.markers is not None:
        which, top, left = map(not_none, (a.marker_index, a.marker_y, a.marker_x))
        out = _paste(out, a.markers[which[index]], top[index], left[index])
    return out.to(a.dtype).contiguous().permute(0, 3, 1, 2)


def _paste(out: Tensor, marker: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """`marker` (B, h, w, C) over `out` (B, H, W, C) at rows `top`, columns `left` (B,)."""
    y = torch.arange(out.shape[1], device=out.device) - top.long()[:, None]  # (B, H)
    x = torch.arange(out.shape[2], device=out.device) - left.long()[:, None]
    covered = ((y >= 0) & (y < marker.shape[1]))[:, :, None] & ((x >= 0) & (x < marker.shape[2]))[
        :, None, :
    ]
    batch = torch.arange(out.shape[0], device=out.device)[:, None, None]
    y, x = y.clamp(0, marker.shape[1] - 1), x.clamp(0, marker.shape[2] - 1)
    return torch.where(covered[..., None], marker[batch, y[:, :, None], x[:, None, :]], out)
