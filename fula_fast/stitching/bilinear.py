"""Bilinear resizing on a GPU as a matrix product, with the same gradient at every run.

PyTorch's own gradient adds up in whatever order its threads come, and in bfloat16; its forward pass
for channels-last maps has a fifth of the memory's speed (an H100, 4x4 to 32x32). A bilinear resize
is y = (A kron B) x over the pixels, so its gradient is the transposed product: each one kernel that
reads its input and writes its output once, in whole channels. Where the matrix would be large, rows
and columns have a product each.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = {torch.bfloat16: 256, torch.float16: 256}
"""Pixels of the smaller map up to which one product serves, else 64: beyond, arithmetic would take
longer than memory."""

Size = tuple[int, int]


class Bilinear(torch.autograd.Function):
    """`F.interpolate` (align_corners False, no antialias) of (N, C, H, W) to `size`."""

    @staticmethod
    def forward(ctx, x: Tensor, size: Size) -> Tensor:
        ctx.sizes = tuple(x.shape[-2:]), tuple(size)
        if not _small(x.dtype, *ctx.sizes):
            return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return _over_pixels(_kron(*ctx.sizes, x.dtype, x.device).T, x, size)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        before, after = ctx.sizes
        if _small(grad.dtype, before, after):
            matrix = _kron(before, after, grad.dtype, grad.device)
            return _over_pixels(matrix, grad, before), None
        rows, columns = (
            _weights(a, b, grad.dtype, grad.device) for a, b in zip(before, after, strict=True)
        )
        g = grad.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C): no copy of channels-last
        g = _times(rows, g.flatten(2)).unflatten(2, (g.shape[2], -1))
        g = _times(columns, g.flatten(0, 1)).unflatten(0, (-1, len(rows)))
        return g.permute(0, 3, 1, 2), None


def _small(dtype: torch.dtype, before: Size, after: Size) -> bool:
    """Whether one product over all pixels is bound by memory."""
    return min(before[0] * before[1], after[0] * after[1]) <= PIXELS.get(dtype, 64)


def _over_pixels(matrix: Tensor, x: Tensor, size: Size) -> Tensor:
    """(a, h*w) times the pixels of (N, C, h, w): (N, C, *size), channels last."""
    rows = x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)
    return _times(matrix, rows).unflatten(1, size).permute(0, 3, 1, 2)


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """(a, h) times each of (N, h, c): one product in place, where `einsum` would permute copies."""
    return torch.bmm(matrix.expand(len(x), -1, -1), x)


@cache
def _kron(before: Size, after: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How much each pixel of a map gives to each of the resized one: (h*w, h'*w'). Its numbers are
    exact in bfloat16 for sizes that are powers of two up to a factor of eight."""
    rows, columns = (
        _weights(*sides, torch.float64, torch.device("cpu"))
        for sides in zip(before, after, strict=True)
    )
    return torch.kron(rows, columns).to(device, dtype)


@cache
def _weights(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How much each of `before` pixels gives to each of `after`: (before, after). Made once, as a
    captured step may not."""
    each = torch.eye(before, dtype=torch.float64)[None]
    given = F.interpolate(each, size=after, mode="linear", align_corners=False)[0]
    return given.to(device, dtype)
