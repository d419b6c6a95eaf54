"""Per-lane batch norm + residual + ReLU (+ distance to a shared target).

    y = relu(xhat * w + b + residual),  xhat = (x - mean_l) * rsqrt(var_l + eps)

Forward: `stats` leaves one (count, mean, M2) per chunk of rows, `merge_stats` joins them by Chan's
formula, `normalise` writes y and the squared distances from float32 values before rounding.

Backward, with d the gradient at the sum before the ReLU (incoming gradient plus
2 * grad_dist2 * (y - target), zero where the ReLU is shut; y is recomputed):

    training: dx = w * rsqrt(var + eps) * (d - mean(d) - xhat * mean(d * xhat))
    eval:     dx = w * rsqrt(var + eps) * d

`sums` yields sum(d), sum(d * xhat) per lane and channel, and writes d where it is asked for, as a
residual does; `input_gradient` then reads d back instead of recomputing it. In eval mode `sums`,
where it is asked for, writes dx as well: that needs no sum.

A residual may have a norm of its own, with given statistics: it is normalised while it is read, and
`sums` yields sum(d * rhat) as well. (Only where d goes on as it is: see `operator.joined`.)

Tried and left: one launch each way that orders both passes of a lane's channels behind each other,
so that the second finds its maps in the L2 cache. On an H100 forward took 0.82 to 0.93 of the time
from 16x16 pixels down (more above), backward 0.90 to 0.99 at 4x4 and up to 1.2 above: two per cent
of a step.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..shared.device import View, load_tile, rectify, store_tile, tile_rows


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


class Normaliser(NamedTuple):
    """What makes y of x: weight and bias (C,) or (L, C), mean and variance (L, C), contiguous.

    affine_stride: from one lane's weights to the next, 0 where they are shared. floor: what the sum
    is cut off below, -inf without a ReLU: a shut one passes no gradient, a NaN does.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    affine_stride: int
    eps: float
    floor: float


class Presum(NamedTuple):
    """What the gradient at the sum before the ReLU is recomputed from; grad_dist2 (L, B)."""

    x: View
    residual: View | None
    target: View | None
    grad_y: View | None
    grad_dist2: Tensor | None
    residual_norm: Normaliser | None


@triton.jit
def stats_kernel(x: View, partial, sizes: Sizes, chunks, tiles,
                 FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """partial[lane, chunk] = (mean, sum of squared deviations) of each channel.

    Sums are taken around the mean of the chunk's first tile, so they do not cancel.
    """
    lanes, samples, positions, channels = sizes
    pid = tl.program_id(0)
    lane = pid % lanes
    chunk = (pid // lanes) % chunks
    column = (pid // lanes // chunks) * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    rows = samples * positions
    row, valid = tile_rows(chunk * tiles, rows, ROWS)
    mask = valid[:, None] & held[None, :]
    value = load_tile(x, first, row, column, mask, positions, FLAT).to(tl.float32)
    shift = tl.sum(value, 0) / tl.minimum(rows - chunk * tiles * ROWS, ROWS)
    value = tl.where(mask, value - shift[None, :], 0.0)
    total, square = value, value * value
    for i in range(1, tiles):
        row, valid = tile_rows(chunk * tiles + i, rows, ROWS)
        mask = valid[:, None] & held[None, :]
        value = load_tile(x, first, row, column, mask, positions, FLAT).to(tl.float32)
        value = tl.where(mask, value - shift[None, :], 0.0)
        total += value
        square += value * value
    count = chunk_rows(chunk, tiles * ROWS, rows)
    offset = tl.sum(total, 0) / count
    out = partial + (lane * chunks + chunk).to(tl.int64) * 2 * channels + column
    tl.store(out, shift + offset, mask=held)
    tl.store(out + channels, tl.sum(square, 0) - count * offset * offset, mask=held)


@triton.jit
def chunk_rows(chunk, span, rows):
    """How many of `rows` lie in chunk number `chunk` of `span`, float32."""
    return tl.minimum(tl.maximum(rows - chunk * span, 0), span).to(tl.float32)


@triton.jit
def merge_stats_kernel(partial, mean, var, lanes, channels, chunks, span, rows,
                       CHUNKS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """mean and biased variance (L, C) of all chunks, by Chan's formula; CHUNKS covers `chunks`."""
    lane = tl.program_id(0) % lanes
    column = (tl.program_id(0) // lanes) * COLS + tl.arange(0, COLS)
    chunk = tl.arange(0, CHUNKS)
    held = column < channels
    mask = (chunk < chunks)[:, None] & held[None, :]
    entry = (lane * chunks + chunk).to(tl.int64)[:, None] * 2 * channels + column[None, :]
    means = tl.load(partial + entry, mask=mask, other=0.0)
    spreads = tl.load(partial + entry + channels, mask=mask, other=0.0)
    counts = chunk_rows(chunk, span, rows)[:, None]
    centre = tl.sum(counts * means, 0) / rows
    apart = means - centre[None, :]
    spread = tl.sum(spreads + counts * apart * apart, 0)
    tl.store(mean + lane * channels + column, centre, mask=held)
    tl.store(var + lane * channels + column, rectify(spread, 0.0) / rows, mask=held)


@triton.jit
def lane_affine(norm, lane, column, held, channels):
    """(mean, 1 / sigma, weight, bias) of one lane's channels, float32."""
    mean = tl.load(norm.mean + lane * channels + column, mask=held, other=0.0).to(tl.float32)
    var = tl.load(norm.var + lane * channels + column, mask=held, other=1.0).to(tl.float32)
    weight = tl.load(norm.weight + lane * norm.affine_stride + column, mask=held, other=0.0)
    bias = tl.load(norm.bias + lane * norm.affine_stride + column, mask=held, other=0.0)
    return mean, tl.rsqrt(var + norm.eps), weight.to(tl.float32), bias.to(tl.float32)


@triton.jit
def normalise_kernel(x: View, residual: View, target: View, norm: Normaliser,
                     residual_norm: Normaliser, y: View, partial, sizes: Sizes, tiles, parts,
                     FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """A tile of y, and per row its squared distance to the target in partial[lane, row, part]."""
    lanes, samples, positions, channels = sizes
    pid = tl.program_id(0)
    lane = pid % lanes
    tile = (pid // lanes) % tiles
    part = pid // lanes // tiles
    column = part * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    row, valid = tile_rows(tile, samples * positions, ROWS)
    mask = valid[:, None] & held[None, :]
    centre, inverse, gain, offset = lane_affine(norm, lane, column, held, channels)
    value = load_tile(x, first, row, column, mask, positions, FLAT).to(tl.float32)
    value = (value - centre[None, :]) * (inverse * gain)[None, :] + offset[None, :]
    if residual is not None:
        other = load_tile(residual, first, row, column, mask, positions, FLAT).to(tl.float32)
        if residual_norm is not None:
            centre, inverse, gain, offset = lane_affine(residual_norm, lane, column, held, channels)
            other = (other - centre[None, :]) * (inverse * gain)[None, :] + offset[None, :]
        value += other
    value = rectify(value, norm.floor)
    store_tile(y, value, first, row, column, mask, positions, FLAT)
    if target is not None:
        aimed = load_tile(target, 0, row, column, mask, positions, FLAT)
        apart = tl.where(mask, value - aimed.to(tl.float32), 0.0)
        out = partial + (first * positions + row) * parts + part
        tl.store(out, tl.sum(apart * apart, 1), mask=valid)


@triton.jit
def presum_gradient(given, affine, beside, floor, lane, row, column, mask, valid, sizes,
                    FLAT: tl.constexpr):  # fmt: skip
    """(d, xhat, rhat) of a tile: the gradient at the sum before the ReLU, everything recomputed.

    affine: as `lane_affine` returns it; beside: that of the residual's norm, unread without one.
    """
    centre, inverse, gain, offset = affine
    positions = sizes.positions
    first = lane.to(tl.int64) * sizes.samples
    value = load_tile(given.x, first, row, column, mask, positions, FLAT).to(tl.float32)
    xhat = (value - centre[None, :]) * inverse[None, :]
    value = xhat * gain[None, :] + offset[None, :]
    rhat = xhat
    if given.residual is not None:
        other = load_tile(given.residual, first, row, column, mask, positions, FLAT).to(tl.float32)
        if given.residual_norm is not None:
            centre, inverse, gain, offset = beside
            rhat = (other - centre[None, :]) * inverse[None, :]
            other = rhat * gain[None, :] + offset[None, :]
        value += other
    d = tl.zeros_like(value)
    if given.grad_y is not None:
        d += load_tile(given.grad_y, first, row, column, mask, positions, FLAT).to(tl.float32)
    if given.target is not None:
        aimed = load_tile(given.target, 0, row, column, mask, positions, FLAT)
        share = tl.load(given.grad_dist2 + first + row // positions, mask=valid, other=0.0)
        d += (2.0 * share)[:, None] * (rectify(value, floor) - aimed.to(tl.float32))
    return tl.where(mask & ~(value <= floor), d, 0.0), xhat, rhat


@triton.jit
def sums_kernel(given: Presum, norm: Normaliser, d_out: View, dx: View, partial, sizes: Sizes,
                chunks, tiles,
                FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """partial[chunk, lane] = (sum of d, sum of d * xhat[, sum of d * rhat]) per channel; d itself,
    and the dx of eval mode, where asked."""
    lanes, samples, positions, channels = sizes
    pid = tl.program_id(0)
    lane = pid % lanes
    chunk = (pid // lanes) % chunks
    column = (pid // lanes // chunks) * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    affine = lane_affine(norm, lane, column, held, channels)
    beside = affine
    sums = 2
    if given.residual_norm is not None:
        beside = lane_affine(given.residual_norm, lane, column, held, channels)
        sums = 3
    total = tl.zeros((ROWS, COLS), tl.float32)
    product = tl.zeros((ROWS, COLS), tl.float32)
    second = tl.zeros((ROWS, COLS), tl.float32)
    for i in range(tiles):
        row, valid = tile_rows(chunk * tiles + i, samples * positions, ROWS)
        mask = valid[:, None] & held[None, :]
        d, xhat, rhat = presum_gradient(
            given, affine, beside, norm.floor, lane, row, column, mask, valid, sizes, FLAT
        )
        if d_out is not None:
            store_tile(d_out, d, first, row, column, mask, positions, FLAT)
        if dx is not None:
            _, inverse, gain, _ = affine
            value = d * (inverse * gain)[None, :]
            store_tile(dx, value, first, row, column, mask, positions, FLAT)
        total += d
        product += tl.where(mask, d * xhat, 0.0)
        if given.residual_norm is not None:
            second += tl.where(mask, d * rhat, 0.0)
    out = partial + (chunk * lanes + lane).to(tl.int64) * sums * channels + column
    tl.store(out, tl.sum(total, 0), mask=held)
    tl.store(out + channels, tl.sum(product, 0), mask=held)
    if given.residual_norm is not None:
        tl.store(out + 2 * channels, tl.sum(second, 0), mask=held)


@triton.jit
def input_gradient_kernel(given: Presum, norm: Normaliser, d_in: View, d_out: View, sums, dx: View,
                          sizes: Sizes, tiles, share,
                          FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """dx of a tile, from d as stored by `sums_kernel` (d_in), or recomputed and stored (d_out).

    share: 1 / (samples * positions), which turns sums into means.
    """
    lanes, samples, positions, channels = sizes
    pid = tl.program_id(0)
    lane = pid % lanes
    tile = (pid // lanes) % tiles
    column = (pid // lanes // tiles) * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    row, valid = tile_rows(tile, samples * positions, ROWS)
    mask = valid[:, None] & held[None, :]
    affine = lane_affine(norm, lane, column, held, channels)
    centre, inverse, gain, _ = affine
    if d_in is not None:
        d = load_tile(d_in, first, row, column, mask, positions, FLAT).to(tl.float32)
        value = load_tile(given.x, first, row, column, mask, positions, FLAT).to(tl.float32)
        xhat = (value - centre[None, :]) * inverse[None, :]
    else:
        d, xhat, _ = presum_gradient(
            given, affine, affine, norm.floor, lane, row, column, mask, valid, sizes, FLAT
        )
    if d_out is not None:
        store_tile(d_out, d, first, row, column, mask, positions, FLAT)
    if sums is not None:
        entry = sums + lane.to(tl.int64) * 2 * channels + column
        mean_d = tl.load(entry, mask=held, other=0.0) * share
        mean_dxhat = tl.load(entry + channels, mask=held, other=0.0) * share
        d = d - mean_d[None, :] - xhat * mean_dxhat[None, :]
    value = d * (inverse * gain)[None, :]
    store_tile(dx, value, first, row, column, mask, positions, FLAT)
