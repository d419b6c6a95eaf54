"""Launchers of `lane_norm`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..shared.device import ABSENT, View, flat, power_of_two, sum_partials, view
from ..shared.layout import like
from ..shared.tiles import Tile, choose
from .device import (
    input_gradient_kernel,
    merge_stats_kernel,
    normalise_kernel,
    stats_kernel,
    sums_kernel,
)

_CHUNKS = 128  # at most, so that one program merges them


class Norm(NamedTuple):
    """What normalises: weight and bias (C,) or (L, C), statistics (L, C), all contiguous."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    relu: bool

    @property
    def affine_stride(self) -> int:
        """From one lane's weights to the next; 0 where (C,) is shared."""
        return self.weight.shape[-1] if self.weight.dim() == 2 else 0

    @property
    def floor(self) -> float:
        """What the sum is cut off below; a shut ReLU passes no gradient, a NaN does."""
        return 0.0 if self.relu else float("-inf")


class Sizes(NamedTuple):
    """lanes, samples of each, positions of a sample, channels."""

    lanes: int
    samples: int
    positions: int
    channels: int

    @property
    def rows(self) -> int:
        """Rows of a lane."""
        return self.samples * self.positions


def _sizes(x: View, lanes: int) -> Sizes:
    batch, channels, positions = x.tensor.shape
    return Sizes(lanes, batch // lanes, positions, channels)


def _chunks(rows: int, tile: Tile) -> tuple[int, int]:
    """(chunks, tiles per chunk): `tile.inner` tiles a chunk, or what keeps chunks few."""
    total = triton.cdiv(rows, tile.rows)
    tiles = max(min(tile.inner, total), triton.cdiv(total, _CHUNKS))
    return triton.cdiv(total, tiles), tiles


def batch_statistics(x: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
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
    stats_kernel[(lanes * chunks * triton.cdiv(channels, tile.cols),)](
        source.tensor, partial, *sizes, chunks, tiles, source.strides,
        FLAT=even, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    width = power_of_two(channels, 32)
    merge_stats_kernel[(lanes * triton.cdiv(channels, width),)](
        partial, mean, var, lanes, channels, chunks, tiles * tile.rows, sizes.rows,
        CHUNKS=triton.next_power_of_2(chunks), COLS=width, num_warps=4,
    )  # fmt: skip
    return mean, var


def lane_norm(
    x: Tensor, norm: Norm, residual: Tensor | None, target: Tensor | None, lanes: int
) -> tuple[Tensor, Tensor | None]:
    """(y, dist2 (L, B) or None) for given statistics."""
    y = like(x)
    dist2 = None if target is None else x.new_zeros(lanes, len(target), dtype=torch.float32)
    if x.numel() == 0:
        return y, dist2
    views = (view(x), view(residual), view(target), view(y))
    source, extra, aimed, out = views
    sizes = _sizes(source, lanes)
    even = flat(sizes.positions, *views)
    tile = choose("normalise", x, sizes.channels, flat=even)
    tiles, parts = triton.cdiv(sizes.rows, tile.rows), triton.cdiv(sizes.channels, tile.cols)
    partial = None
    if dist2 is not None:
        partial = x.new_empty(dist2.numel(), sizes.positions * parts, dtype=torch.float32)
    normalise_kernel[(lanes * tiles * parts,)](
        source.tensor, extra.tensor, aimed.tensor, *norm[:4], out.tensor, partial,
        *sizes, tiles, parts, norm.affine_stride, norm.eps, norm.floor,
        source.strides, extra.strides, aimed.strides, out.strides,
        FLAT=even, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    if partial is not None:
        sum_partials(partial, 1, dist2)
    return y, dist2


class Incoming(NamedTuple):
    """What the backward kernels read besides x, and where d goes (dresidual)."""

    residual: View
    target: View
    grad_y: View
    d: View
    grad_dist2: Tensor | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.residual.tensor, self.target.tensor

    def strides(self) -> tuple[tuple[int, int, int], ...]:
        return self.residual.strides, self.target.strides, self.grad_y.strides, self.d.strides


def lane_norm_backward(
    grad_y: Tensor | None,
    grad_dist2: Tensor | None,
    x: Tensor,
    norm: Norm,
    residual: Tensor | None,
    target: Tensor | None,
    lanes: int,
    training: bool,
    affine: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dresidual or None, sums (L, 2, C) of d and d * xhat if `affine`)."""
    dx, dresidual = like(x), None if residual is None else like(x)
    sums = x.new_zeros(lanes, 2, x.shape[1], dtype=torch.float32) if affine else None
    if x.numel() == 0:
        return dx, dresidual, sums
    aimed = view(None if grad_dist2 is None else target)
    incoming = Incoming(view(residual), aimed, view(grad_y), view(dresidual), grad_dist2)
    source = view(x)
    if training or affine:
        sums = _sums(source, norm, incoming, lanes)
    _input_gradient(source, norm, incoming, sums, view(dx), lanes, training)
    return dx, dresidual, sums if affine else None


def _sums(x: View, norm: Norm, incoming: Incoming, lanes: int) -> Tensor:
    """(L, 2, C) sums of d and d * xhat; writes d where there is a residual."""
    sizes = _sizes(x, lanes)
    channels = sizes.channels
    even = flat(sizes.positions, x, *incoming[:4])
    tile = choose("sums", x.tensor, channels, flat=even)
    chunks, tiles = _chunks(sizes.rows, tile)
    partial = x.tensor.new_empty(chunks, lanes * 2 * channels, dtype=torch.float32)
    sums_kernel[(lanes * chunks * triton.cdiv(channels, tile.cols),)](
        x.tensor, *incoming.tensors(), *norm[:4], incoming.grad_y.tensor, incoming.grad_dist2,
        incoming.d.tensor, partial, *sizes, chunks, tiles, norm.affine_stride, norm.eps,
        norm.floor, x.strides, *incoming.strides(), FLAT=even, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    return sum_partials(partial, 0, partial.new_empty(lanes, 2, channels))


def _input_gradient(
    x: View,
    norm: Norm,
    incoming: Incoming,
    sums: Tensor | None,
    dx: View,
    lanes: int,
    training: bool,
) -> None:
    d = incoming.d.tensor
    stored = d is not None and sums is not None  # by `sums_kernel`: nothing is recomputed
    if stored:
        incoming = Incoming(ABSENT, ABSENT, ABSENT, incoming.d, None)
    sizes = _sizes(x, lanes)
    even = flat(sizes.positions, x, dx, *incoming[:4])
    tile = choose("norm_gradient", x.tensor, sizes.channels, flat=even)
    tiles, parts = triton.cdiv(sizes.rows, tile.rows), triton.cdiv(sizes.channels, tile.cols)
    input_gradient_kernel[(lanes * tiles * parts,)](
        x.tensor, *incoming.tensors(), *norm[:4], incoming.grad_y.tensor, incoming.grad_dist2,
        d if stored else None, None if stored else d, sums if training else None, dx.tensor,
        *sizes, tiles, norm.affine_stride, norm.eps, norm.floor, 1.0 / sizes.rows, x.strides,
        *incoming.strides(), dx.strides, FLAT=even,
        ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
