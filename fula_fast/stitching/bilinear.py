"""Bilinear resizing on a GPU with the same gradient at every run.

PyTorch's own gradient adds up in whatever order its threads come, and in bfloat16. A bilinear
resize is A x B^T with one small matrix per axis, so its gradient is A^T g B: two products.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


class Bilinear(torch.autograd.Function):
    """`F.interpolate` (align_corners False, no antialias) of (N, C, H, W) to `size`."""

    @staticmethod
    def forward(ctx, x: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.size = tuple(x.shape[-2:])
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        rows, columns = (
            _weights(before, after, grad.dtype, grad.device)
            for before, after in zip(ctx.size, grad.shape[-2:], strict=True)
        )
        g = grad.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C): no copy of channels-last
        g = _times(rows, g.flatten(2)).unflatten(2, (g.shape[2], -1))
        g = _times(columns, g.flatten(0, 1)).unflatten(0, (-1, len(rows)))
        return g.permute(0, 3, 1, 2), None


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """(a, h) times each of (N, h, c): one product in place, where `einsum` would permute copies."""
    return torch.bmm(matrix.expand(len(x), -1, -1), x)


@cache
def _weights(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How much each of `before` pixels gives to each of `after`: (before, after). Made once, as a
    captured step may not."""
    each = torch.eye(before, dtype=torch.float64)[None]
    given = F.interpolate(each, size=after, mode="linear", align_corners=False)[0]
    return given.to(device, dtype)
