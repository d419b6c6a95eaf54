"""Launchers of `lane_norm`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..shared.device import View, flat, launch, power_of_two, sum_partials, view
from ..shared.layout import like
from ..shared.operators import Incoming
from ..shared.tiles import Tile, choose
from .arguments import LaneNormArguments, ResidualNorm
from .device import (
    Normaliser,
    Presum,
    Sizes,
    input_gradient_kernel,
    merge_stats_kernel,
    normalise_kernel,
    stats_kernel,
    sums_kernel,
)

_CHUNKS = 128  # at most, so that one program merges them


def _sizes(x: View, lanes: int) -> Sizes:
    batch, channels, positions = x.tensor.shape
    return Sizes(lanes, batch // lanes, positions, channels)


def _chunks(rows: int, tile: Tile) -> tuple[int, int]:
    """(chunks, tiles per chunk): `tile.inner` tiles a chunk, or what keeps chunks few."""
    total = triton.cdiv(rows, tile.rows)
    tiles = max(min(tile.inner, total), triton.cdiv(total, _CHUNKS))
    return triton.cdiv(total, tiles), tiles


def forward(a: LaneNormArguments) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(y, mean, var, dist2 or None)."""
    with torch.cuda.device_of(a.x):
        mean, var = a.running_mean, a.running_var
        if a.training:
            mean, var = _batch_statistics(a.x, a.lanes)
        y, dist2 = _normalise(_contiguous(a._replace(running_mean=mean, running_var=var)))
    return y, mean, var, dist2


def joined(a: LaneNormArguments, beside: ResidualNorm) -> tuple[Tensor, Tensor | None]:
    """(y, dist2 or None) by given statistics."""
    with torch.cuda.device_of(a.x):
        return _normalise(_contiguous(a), _second(beside))


def joined_backward(
    a: LaneNormArguments, beside: ResidualNorm, incoming: Incoming
) -> tuple[Tensor, Tensor]:
    """(d, sums (L, 2, C), or (L, 3, C) where the residual has a norm)."""
    d, second = like(a.x), _second(beside)
    if a.x.numel() == 0:
        sums = 2 if second is None else 3
        return d, a.x.new_zeros(a.lanes, sums, a.x.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(a.x):
        return d, _sums(_contiguous(a), _given(a, incoming, second), view(d), None)


def _second(beside: ResidualNorm) -> Normaliser | None:
    weight, bias, mean, var, eps = beside
    if weight is None or bias is None or mean is None or var is None:
        return None
    weight, bias, mean, var = (t.contiguous() for t in (weight, bias, mean, var))
    stride = weight.shape[-1] if weight.dim() == 2 else 0
    return Normaliser(weight, bias, mean, var, stride, eps, float("-inf"))


def _given(a: LaneNormArguments, incoming: Incoming, second: Normaliser | None = None) -> Presum:
    dy, ddist2 = incoming
    aimed = view(None if ddist2 is None else a.target)
    ddist2 = None if ddist2 is None else ddist2.contiguous()
    return Presum(view(a.x), view(a.residual), aimed, view(dy), ddist2, second)


def backward(
    a: LaneNormArguments, incoming: Incoming, affine: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dresidual or None, sums (L, 2, C) of d and d * xhat if `affine`)."""
    dx, dresidual = like(a.x), None if a.residual is None else like(a.x)
    sums = a.x.new_zeros(a.lanes, 2, a.x.shape[1], dtype=torch.float32) if affine else None
    if a.x.numel() == 0:
        return dx, dresidual, sums
    given = _given(a, incoming)
    d, a = view(dresidual), _contiguous(a)
    with torch.cuda.device_of(a.x):
        if a.training or affine:
            sums = _sums(a, given, d, None if a.training else view(dx))
        if a.training or not affine:
            _input_gradient(a, given, d, sums, view(dx))
    return dx, dresidual, sums if affine else None


def _contiguous(a: LaneNormArguments) -> LaneNormArguments:
    """`a` with weight, bias and statistics contiguous."""
    vectors = (a.weight, a.bias, a.running_mean, a.running_var)
    weight, bias, mean, var = (t.contiguous() for t in vectors)
    return a._replace(weight=weight, bias=bias, running_mean=mean, running_var=var)


def _batch_statistics(x: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (L, C), float32, of x (L*B, C, H, W)."""
    mean = x.new_empty(lanes, x.shape[1], dtype=torch.float32)
    var = torch.empty_like(mean)
    if x.numel() == 0:
        return mean, var
    source = view(x)
    sizes = _sizes(source, lanes)
    channels = sizes.channels
    even = flat(sizes.positions, source)
    tile = choose("stats", x, channels, flat=even)
    chunks, tiles = _chunks(sizes.rows, tile)
    partial = x.new_empty(lanes, chunks, 2, channels, dtype=torch.float32)
    launch(
        stats_kernel, lanes * chunks * triton.cdiv(channels, tile.cols),
        source, partial, sizes, chunks, tiles,
        FLAT=even, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    width = power_of_two(channels, 32)
    launch(
        merge_stats_kernel, lanes * triton.cdiv(channels, width),
        partial, mean, var, lanes, channels, chunks, tiles * tile.rows, sizes.rows,
        CHUNKS=triton.next_power_of_2(chunks), COLS=width, num_warps=4,
    )  # fmt: skip
    return mean, var


def _normalise(
    a: LaneNormArguments, second: Normaliser | None = None
) -> tuple[Tensor, Tensor | None]:
    """(y, dist2 (L, B) or None) for given statistics; `second`: the residual's norm."""
    x, whole = a.x, like(a.x, a.room)
    y = whole[: len(x)]
    dist2 = None if a.target is None else x.new_empty(a.lanes, len(a.target), dtype=torch.float32)
    if x.numel() == 0:
        return whole, None if dist2 is None else dist2.zero_()
    source, out = view(x), view(y)
    extras = view(a.residual), view(a.target)
    sizes = _sizes(source, a.lanes)
    even = flat(sizes.positions, source, *extras, out)
    tile = choose("normalise", x, sizes.channels, flat=even)
    tiles, parts = triton.cdiv(sizes.rows, tile.rows), triton.cdiv(sizes.channels, tile.cols)
    partial = None
    if dist2 is not None:
        partial = x.new_empty(dist2.numel(), sizes.positions * parts, dtype=torch.float32)
    launch(
        normalise_kernel, a.lanes * tiles * parts,
        source, *extras, _normaliser(a), second, out, partial, sizes, tiles, parts,
        FLAT=even, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    if partial is not None and dist2 is not None:
        sum_partials(partial, 1, dist2)
    return whole, dist2


def _normaliser(a: LaneNormArguments) -> Normaliser:
    stride = a.weight.shape[-1] if a.weight.dim() == 2 else 0
    floor = 0.0 if a.relu else float("-inf")
    return Normaliser(a.weight, a.bias, a.running_mean, a.running_var, stride, a.eps, floor)


def _sums(a: LaneNormArguments, given: Presum, d: View | None, dx: View | None) -> Tensor:
    """Sums (L, 2, C) of d and d * xhat, (L, 3, C) with d * rhat; writes d and dx where given."""
    sizes = _sizes(given.x, a.lanes)
    channels = sizes.channels
    even = flat(sizes.positions, *given[:4], d, dx)
    kind, sums = ("sums", 2) if given.residual_norm is None else ("joined_sums", 3)
    tile = choose(kind, a.x, channels, flat=even)
    chunks, tiles = _chunks(sizes.rows, tile)
    partial = a.x.new_empty(chunks, a.lanes * sums * channels, dtype=torch.float32)
    launch(
        sums_kernel, a.lanes * chunks * triton.cdiv(channels, tile.cols),
        given, _normaliser(a), d, dx, partial, sizes, chunks, tiles,
        FLAT=even, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    return sum_partials(partial, 0, partial.new_empty(a.lanes, sums, channels))


def _input_gradient(
    a: LaneNormArguments, given: Presum, d: View | None, sums: Tensor | None, dx: View
) -> None:
    stored = d is not None and sums is not None  # by `sums_kernel`: nothing is recomputed
    if stored:
        given = Presum(given.x, None, None, None, None, None)
    sizes = _sizes(given.x, a.lanes)
    even = flat(sizes.positions, dx, *given[:4], d)
    tile = choose("norm_gradient", a.x, sizes.channels, flat=even)
    tiles, parts = triton.cdiv(sizes.rows, tile.rows), triton.cdiv(sizes.channels, tile.cols)
    launch(
        input_gradient_kernel, a.lanes * tiles * parts,
        given, _normaliser(a), d if stored else None, None if stored else d,
        sums if a.training else None, dx, sizes, tiles, 1.0 / sizes.rows,
        FLAT=even, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
