"""Residual blocks whose norms live in the convolutions around them: `FULA_CONV=fused`.

In training a block's inner norm and ReLU are computed by the convolution behind them while it reads
(`kernels.lane_conv`), and every convolution leaves the statistics of what it writes, so that no
norm reads a map to find its own: per inner norm three passes over a map less forward, and three
less backward. The gradients of a block's two branches are added by the convolution that writes one
of them. In eval mode a block is what it was. Off unless the environment says
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
        if self.residual:
            y, statistics, x = forked(self._conv(1), x, last.count)
        else:
            y, statistics = convolved(self._conv(1), x, last.count)
        for index in range(1, self.depth):
            before = prologue(self._norm(index), y, statistics)
            y, statistics = convolved(self._conv(index + 1), y, last.count, **before)
        identity = self._identity(x) if self.residual else None
        return last(y, residual=identity, relu=relu, statistics=statistics)

    def _identity(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        conv, norm = cast(tuple[nn.Conv2d, LaneNorm], tuple(self.downsample))
        y, statistics = convolved(conv, x, norm.count)
        return norm(y, statistics=statistics)

    def _conv(self, index: int) -> nn.Conv2d:
        return getattr(self, f"conv{index}")

    def _norm(self, index: int) -> LaneNorm:
        return getattr(self, f"bn{index}")


Statistics = tuple[Tensor, Tensor]


def convolved(conv: nn.Conv2d, x: Tensor, lanes: int, **norm: Any) -> tuple[Tensor, Statistics]:
    """conv(x) (n*B, C2, H', W'), behind a norm where one is given, and its statistics (n, C2)."""
    y, mean, var = kernels.lane_conv(x, conv.weight, lanes=lanes, **_geometry(conv), **norm)
    return y, (mean, var)


def forked(conv: nn.Conv2d, x: Tensor, lanes: int) -> tuple[Tensor, Statistics, Tensor]:
    """conv(x) and its statistics, and x once more for the branch beside."""
    y, mean, var, x = kernels.lane_conv_fork(x, conv.weight, lanes=lanes, **_geometry(conv))
    return y, (mean, var), x


def _geometry(conv: nn.Conv2d) -> dict[str, int]:
    return {"stride": conv.stride[0], "padding": int(conv.padding[0])}


def prologue(norm: LaneNorm, x: Tensor, statistics: Statistics) -> dict[str, Any]:
    """A norm of x (n*B, C, H, W) as `lane_conv` takes it; its running statistics follow."""
    norm.follow(*statistics, x)
    mean, var = statistics
    return {"gain": norm.weight, "bias": norm.bias, "mean": mean, "var": var, "eps": norm.eps}


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
    return all(type(m) is LaneNorm or isinstance(m, nn.Conv2d) and _plain(m) for m in parts)


def _plain(conv: nn.Conv2d) -> bool:
    """Square, without bias, groups, dilation, or padding other than zeros."""
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    plain = conv.bias is None and conv.groups == 1 and set(conv.dilation) == {1}
    return square and plain and conv.padding_mode == "zeros"
