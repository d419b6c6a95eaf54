"""Residual blocks whose norms live in the convolutions around them: `FULA_CONV=fused`.

In training a block's inner norm and ReLU are computed by the convolution behind them while it reads
(`kernels.lane_conv`), and every convolution leaves the statistics of what it writes, so that no
norm reads a map to find its own: per inner norm three passes over a map less forward, and three
less backward. The norm that ends a block normalises a shortcut's map too, while it reads it, and
leaves one gradient, which the convolutions before it scale while they read it
(`kernels.lane_conv_norm`). The gradients of a block's two branches are added by the convolution
that writes one of them. In eval mode a block is what it was. Off unless the environment says
`FULA_CONV=fused`: the kernels' speed on a GPU has been modelled (`bench roofline`), not measured.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from .. import kernels
from ..errors import FulaError
from ..models.blocks import ResidualBlock
from .lane_norms import LaneNorm

ENVIRONMENT = "FULA_CONV"
_asked: bool | None = None


def asked() -> bool:
    """Whether $FULA_CONV, or the innermost `using`, asks for fused blocks.

    Raises `FulaError` for any value but `fused`.
    """
    if _asked is not None:
        return _asked
    value = os.environ.get(ENVIRONMENT, "")
    if value not in ("", "fused"):
        raise FulaError(f"{ENVIRONMENT} = '{value}' is unknown; set it to 'fused', or not at all")
    return value == "fused"


@contextmanager
def using(fused: bool) -> Iterator[None]:
    """Ask inside the block, as $FULA_CONV does for a process."""
    global _asked
    previous, _asked = _asked, fused
    try:
        yield
    finally:
        _asked = previous


class FusedBlock(ResidualBlock):
    """A residual block of (n*B, C, H, W) for n lanes, its convolutions by `kernels.lane_conv` where
    norms take batch statistics. Names of modules and the function computed stay."""

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        last = self._norm(self.depth)
        if last.rule == "running":
            return super().forward(x, relu)
        y, before = x, {}
        for index in range(1, self.depth):
            conv = self._conv(index)
            if index == 1 and self.residual:
                y, mean, var, x = kernels.lane_conv_fork(y, conv.weight, **_geometry(conv, last))
            else:
                options = {**_geometry(conv, last), **before}
                y, mean, var = kernels.lane_conv(y, conv.weight, **options)
            before = _prologue(self._norm(index), y, mean, var)
        return self._end(y, before, x if self.residual else None, relu)

    def _end(self, y: Tensor, before: dict[str, Any], x: Tensor | None, relu: bool) -> Tensor:
        """The last convolution of y, its norm, and the branch beside, from x (n*B, C1, H, W)."""
        conv, last = self._conv(self.depth), self._norm(self.depth)
        shortcut, norms = None, [last]
        if self.downsample is not None and x is not None:
            beside, norm = cast(tuple[nn.Conv2d, LaneNorm], tuple(self.downsample))
            stride, padding = _steps(beside)
            shortcut = kernels.Projection(beside.weight, stride, padding, _affine(norm))
            norms.append(norm)
        z, last.dist2, moments = kernels.lane_conv_norm(
            y,
            conv.weight,
            **_geometry(conv, last),
            **before,
            norm=_affine(last),
            residual=x,
            projection=shortcut,
            relu=relu,
            target=last.target,
            room=last.room_for(y),
        )
        values = len(y) // last.count * z.shape[2] * z.shape[3]
        for norm, mean, var in zip(norms, moments[::2], moments[1::2], strict=True):
            norm.follow(mean, var, values)
        return z

    def _conv(self, index: int) -> nn.Conv2d:
        return getattr(self, f"conv{index}")

    def _norm(self, index: int) -> LaneNorm:
        return getattr(self, f"bn{index}")


def _geometry(conv: nn.Conv2d, norm: LaneNorm) -> dict[str, int]:
    stride, padding = _steps(conv)
    return {"stride": stride, "padding": padding, "lanes": norm.count}


def _steps(conv: nn.Conv2d) -> tuple[int, int]:
    return conv.stride[0], int(conv.padding[0])


def _affine(norm: LaneNorm) -> kernels.Affine:
    return kernels.Affine(norm.weight, norm.bias, norm.eps)


def _prologue(norm: LaneNorm, y: Tensor, mean: Tensor, var: Tensor) -> dict[str, Any]:
    """A norm of y (n*B, C, H, W) as the convolution behind takes it; its running statistics
    follow."""
    norm.follow(mean, var, y.numel() // (norm.count * y.shape[1]))
    gain, bias, eps = _affine(norm)
    return {"gain": gain, "bias": bias, "mean": mean, "var": var, "eps": eps}


def fuse_blocks(*models: nn.Module) -> None:
    """Make every residual block of lane norms whose convolutions `lane_conv` has a `FusedBlock`, in
    place. Warns where there is none: what was asked for is not what runs."""
    found = [m for n in models for m in n.modules() if type(m) is ResidualBlock and _fits(m)]
    for block in found:
        block.__class__ = FusedBlock
    if not found:
        reason = "neither network has residual blocks whose norms convolutions can take up"
        warnings.warn(f"{ENVIRONMENT} = 'fused' changes nothing: {reason}", stacklevel=3)


def _fits(block: ResidualBlock) -> bool:
    parts = [m for m in block.modules() if not list(m.children())]
    return block.depth > 1 and all(
        type(m) is LaneNorm or isinstance(m, nn.Conv2d) and _plain(m) for m in parts
    )


def _plain(conv: nn.Conv2d) -> bool:
    """Square, without bias, groups, dilation, or padding other than zeros."""
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    plain = conv.bias is None and conv.groups == 1 and set(conv.dilation) == {1}
    return square and plain and conv.padding_mode == "zeros"
