"""Launchers of `lane_conv`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..shared.device import channels_last, launch, power_of_two
from ..shared.tiles import choose
from ..stitch_hint.triton import precision
from .arguments import ConvGradients, LaneConvArguments
from .device import (
    ConvSizes,
    GivenGradient,
    Prior,
    conv_gradient_kernel,
    conv_kernel,
    merge_tiles_kernel,
    moments_kernel,
)
from .operator import gradient, output

_MERGED = 64
"""Tiles that a program adds up at a time."""


def _sizes(a: LaneConvArguments) -> ConvSizes:
    _, c1, height, width = a.x.shape
    count, c2, down, across = a.output
    return ConvSizes(a.lanes, count // max(a.lanes, 1), height, width, c1, down, across, c2)


def _prior(a: LaneConvArguments) -> Prior | None:
    if a.gain is None or a.bias is None or a.mean is None or a.var is None:
        return None
    gain, bias, mean, var = (t.contiguous() for t in (a.gain, a.bias, a.mean, a.var))
    return Prior(gain, bias, mean, var, a.eps)


def _fixed(a: LaneConvArguments) -> dict[str, object]:
    geometry = {"KERNEL": a.weight.shape[2], "STRIDE": a.stride, "PADDING": a.padding}
    return {**geometry, "PRECISION": precision(a.x.dtype)}


def forward(a: LaneConvArguments) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, var)."""
    y, sizes = output(a), _sizes(a)
    mean, var = (y.new_empty(a.lanes, sizes.c2, dtype=torch.float32) for _ in range(2))
    if y.numel() == 0:
        return y, mean, var
    tile = choose("lane_conv", a.x, sizes.c2, sizes.c1)
    tiles, parts = triton.cdiv(sizes.rows, tile.rows), triton.cdiv(sizes.c2, tile.cols)
    partial = y.new_empty(a.lanes, tiles, 2, sizes.c2, dtype=torch.float32)
    with torch.cuda.device_of(a.x):
        launch(
            conv_kernel, a.lanes * tiles * parts,
            channels_last(a.x), channels_last(a.weight), _prior(a), y, partial, sizes, tiles, parts,
            **_fixed(a), ROWS=tile.rows, COLS=tile.cols, INNER=tile.inner,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        width = power_of_two(sizes.c2, 32)
        launch(
            merge_tiles_kernel, a.lanes * triton.cdiv(sizes.c2, width),
            partial, mean, var, sizes.c2, tiles, tile.rows, sizes.rows,
            TILES=_MERGED, COLS=width, num_warps=4,
        )  # fmt: skip
    return y, mean, var


def backward(
    a: LaneConvArguments, incoming: ConvGradients
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dmean, dvar), the latter None without a norm."""
    dx, sizes, prior = gradient(a), _sizes(a), _prior(a)
    dmean, dvar = (None if prior is None else torch.zeros_like(prior.mean) for _ in range(2))
    if dx.numel() == 0:
        return dx, dmean, dvar
    tile = choose("lane_conv_gradient", a.x, sizes.c1, sizes.c2)
    positions = triton.cdiv(sizes.height, a.stride) * triton.cdiv(sizes.width, a.stride)
    tiles = triton.cdiv(sizes.samples * positions, tile.rows)
    parts, groups = triton.cdiv(sizes.c1, tile.cols), tiles * a.stride**2
    partial, x = None, dx  # without a norm before, x is not read
    if prior is not None:
        x = channels_last(a.x)
        partial = dx.new_empty(a.lanes, groups, 2, sizes.c1, dtype=torch.float32)
    with torch.cuda.device_of(a.x):
        launch(
            conv_gradient_kernel, a.lanes * groups * parts,
            _given(incoming), channels_last(a.weight), x, prior, dx, partial,
            sizes, tiles, parts, 1.0 / sizes.rows,
            **_fixed(a), ROWS=tile.rows, COLS=tile.cols, INNER=tile.inner,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if prior is not None:
            width = power_of_two(sizes.c1, 32)
            launch(
                moments_kernel, a.lanes * triton.cdiv(sizes.c1, width),
                partial, prior, dmean, dvar, sizes.c1, groups,
                GROUPS=_MERGED, COLS=width, num_warps=4,
            )  # fmt: skip
    return dx, dmean, dvar


def _given(incoming: ConvGradients) -> GivenGradient:
    dy, dmean, dvar, y, centre, beside, scale = incoming
    beside = None if beside is None else channels_last(beside)
    if dmean is None or dvar is None or y is None or centre is None:
        return GivenGradient(channels_last(dy), None, None, None, None, beside, None)
    centre, dmean, dvar = (t.contiguous() for t in (centre, dmean, dvar))
    scale = None if scale is None else scale.contiguous()
    return GivenGradient(channels_last(dy), channels_last(y), centre, dmean, dvar, beside, scale)
