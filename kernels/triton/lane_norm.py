"""Per-lane batch norm + residual + ReLU (+ distance to a shared target).

    y = relu(xhat * w + b + residual),  xhat = (x - mean_l) * rsqrt(var_l + eps)

Forward: `stats` leaves one (count, mean, M2) per chunk of rows, `merge_stats` joins them by Chan's
formula, `normalise` writes y and the squared distances from float32 values before rounding.

Backward, with d the gradient at the sum before the ReLU (incoming gradient plus
2 * grad_dist2 * (y - target), zero where the ReLU is shut; y is recomputed):

    training: dx = w * rsqrt(var + eps) * (d - mean(d) - xhat * mean(d * xhat))
    eval:     dx = w * rsqrt(var + eps) * d

`sums` yields sum(d), sum(d * xhat) per lane and channel, and writes d where a residual needs it;
`input_gradient` then reads d back instead of recomputing it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import like
from .common import (
    ABSENT,
    load_tile,
    narrow,
    power_of_two,
    rectify,
    row_offsets,
    row_tiles,
    store_sample_sums,
    sum_partials,
    tile_rows,
    view,
)
from .tiles import Tile, choose


@triton.jit
def stats_kernel(x, partial, lanes, samples, positions, channels, chunks, tiles, x_strides,
                 POS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """partial[lane, chunk] = (rows, mean, sum of squared deviations) of each channel.

    Sums are taken around the mean of the chunk's first tile, so they do not cancel.
    """
    pid = tl.program_id(0)
    lane = pid % lanes
    chunk = (pid // lanes) % chunks
    column = (pid // lanes // chunks) * COLS + tl.arange(0, COLS)
    held = column < channels
    base = x + lane.to(tl.int64) * samples * x_strides[0]
    sample, position, valid = tile_rows(chunk * tiles, samples, positions, POS, ROWS)
    mask = valid[:, None] & held[None, :]
    value = load_tile(base, row_offsets(sample, position, x_strides), column, x_strides, mask)
    rows = tl.sum(valid.to(tl.float32), 0)
    shift = tl.sum(value.to(tl.float32), 0) / tl.maximum(rows, 1.0)
    value = tl.where(mask, value.to(tl.float32) - shift[None, :], 0.0)
    total, square = value, value * value
    for i in range(1, tiles):
        sample, position, valid = tile_rows(chunk * tiles + i, samples, positions, POS, ROWS)
        mask = valid[:, None] & held[None, :]
        value = load_tile(base, row_offsets(sample, position, x_strides), column, x_strides, mask)
        value = tl.where(mask, value.to(tl.float32) - shift[None, :], 0.0)
        total += value
        square += value * value
        rows += tl.sum(valid.to(tl.float32), 0)
    offset = tl.sum(total, 0) / tl.maximum(rows, 1.0)
    spread = tl.sum(square, 0) - rows * offset * offset
    out = partial + (lane * chunks + chunk).to(tl.int64) * 3 * channels + column
    tl.store(out, tl.zeros((COLS,), tl.float32) + rows, mask=held)
    tl.store(out + channels, shift + offset, mask=held)
    tl.store(out + 2 * channels, spread, mask=held)


@triton.jit
def merge_stats_kernel(partial, mean, var, lanes, channels, chunks,
                       CHUNKS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """mean and biased variance (L, C) of all chunks; CHUNKS covers `chunks`."""
    lane = tl.program_id(0) % lanes
    column = (tl.program_id(0) // lanes) * COLS + tl.arange(0, COLS)
    chunk = tl.arange(0, CHUNKS)
    held = column < channels
    mask = (chunk < chunks)[:, None] & held[None, :]
    entry = (lane * chunks + chunk).to(tl.int64)[:, None] * 3 * channels + column[None, :]
    rows = tl.load(partial + entry, mask=mask, other=0.0)
    means = tl.load(partial + entry + channels, mask=mask, other=0.0)
    spreads = tl.load(partial + entry + 2 * channels, mask=mask, other=0.0)
    count = tl.maximum(tl.sum(rows, 0), 1.0)
    centre = tl.sum(rows * means, 0) / count
    apart = means - centre[None, :]
    spread = tl.sum(spreads + rows * apart * apart, 0)
    tl.store(mean + lane * channels + column, centre, mask=held)
    tl.store(var + lane * channels + column, rectify(spread, 0.0) / count, mask=held)


@triton.jit
def lane_affine(weight, bias, mean, var, lane, column, held, channels, affine_stride, eps):
    """(mean, 1 / sigma, weight, bias) of one lane's channels, float32."""
    mean = tl.load(mean + lane * channels + column, mask=held, other=0.0).to(tl.float32)
    var = tl.load(var + lane * channels + column, mask=held, other=1.0).to(tl.float32)
    weight = tl.load(weight + lane * affine_stride + column, mask=held, other=0.0)
    bias = tl.load(bias + lane * affine_stride + column, mask=held, other=0.0)
    return mean, tl.rsqrt(var + eps), weight.to(tl.float32), bias.to(tl.float32)


@triton.jit
def normalise_kernel(x, residual, target, weight, bias, mean, var, y, partial,
                     lanes, samples, positions, channels, tiles, parts, affine_stride, eps,
                     x_strides, residual_strides, target_strides, y_strides, floor,
                     POS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    lane = pid % lanes
    tile = (pid // lanes) % tiles
    part = pid // lanes // tiles
    column = part * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    sample, position, valid = tile_rows(tile, samples, positions, POS, ROWS)
    mask = valid[:, None] & held[None, :]
    centre, inverse, gain, offset = lane_affine(
        weight, bias, mean, var, lane, column, held, channels, affine_stride, eps
    )
    rows = row_offsets(first + sample, position, x_strides)
    value = load_tile(x, rows, column, x_strides, mask).to(tl.float32)
    value = (value - centre[None, :]) * (inverse * gain)[None, :] + offset[None, :]
    if residual is not None:
        rows = row_offsets(first + sample, position, residual_strides)
        value += load_tile(residual, rows, column, residual_strides, mask).to(tl.float32)
    value = rectify(value, floor)
    rows = row_offsets(first + sample, position, y_strides)
    rows = rows[:, None] + (column.to(tl.int64) * y_strides[2])[None, :]
    tl.store(y + rows, narrow(value, y), mask=mask)
    if target is not None:
        rows = row_offsets(sample, position, target_strides)
        aimed = load_tile(target, rows, column, target_strides, mask).to(tl.float32)
        apart = tl.where(mask, value - aimed, 0.0)
        store_sample_sums(partial, tl.sum(apart * apart, 1), first, tile, part, parts,
                          samples, positions, POS, ROWS)  # fmt: skip


@triton.jit
def presum_gradient(x, residual, target, grad_y, grad_dist2, first, samples, sample, position,
                    column, mask, centre, inverse, gain, offset, x_strides, residual_strides,
                    target_strides, grad_strides, floor):  # fmt: skip
    """(d, xhat) of a tile: the gradient at the sum before the ReLU, everything recomputed."""
    rows = row_offsets(first + sample, position, x_strides)
    value = load_tile(x, rows, column, x_strides, mask).to(tl.float32)
    xhat = (value - centre[None, :]) * inverse[None, :]
    value = xhat * gain[None, :] + offset[None, :]
    if residual is not None:
        rows = row_offsets(first + sample, position, residual_strides)
        value += load_tile(residual, rows, column, residual_strides, mask).to(tl.float32)
    d = tl.zeros_like(value)
    if grad_y is not None:
        rows = row_offsets(first + sample, position, grad_strides)
        d += load_tile(grad_y, rows, column, grad_strides, mask).to(tl.float32)
    if target is not None:
        rows = row_offsets(sample, position, target_strides)
        aimed = load_tile(target, rows, column, target_strides, mask).to(tl.float32)
        share = tl.load(grad_dist2 + first + sample, mask=sample < samples, other=0.0)
        d += (2.0 * share)[:, None] * (rectify(value, floor) - aimed)
    return tl.where(mask & ~(value <= floor), d, 0.0), xhat


@triton.jit
def sums_kernel(x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_out, partial,
                lanes, samples, positions, channels, chunks, tiles, affine_stride, eps,
                x_strides, residual_strides, target_strides, grad_strides, d_strides,
                floor, POS: tl.constexpr, ROWS: tl.constexpr,
                COLS: tl.constexpr):  # fmt: skip
    """partial[lane, chunk] = (sum of d, sum of d * xhat) per channel; d itself where asked."""
    pid = tl.program_id(0)
    lane = pid % lanes
    chunk = (pid // lanes) % chunks
    column = (pid // lanes // chunks) * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    centre, inverse, gain, offset = lane_affine(
        weight, bias, mean, var, lane, column, held, channels, affine_stride, eps
    )
    total = tl.zeros((ROWS, COLS), tl.float32)
    product = tl.zeros((ROWS, COLS), tl.float32)
    for i in range(tiles):
        sample, position, valid = tile_rows(chunk * tiles + i, samples, positions, POS, ROWS)
        mask = valid[:, None] & held[None, :]
        d, xhat = presum_gradient(
            x, residual, target, grad_y, grad_dist2, first, samples, sample, position, column,
            mask, centre, inverse, gain, offset, x_strides, residual_strides, target_strides,
            grad_strides, floor,
        )  # fmt: skip
        if d_out is not None:
            rows = row_offsets(first + sample, position, d_strides)
            rows = rows[:, None] + (column.to(tl.int64) * d_strides[2])[None, :]
            tl.store(d_out + rows, narrow(d, d_out), mask=mask)
        total += d
        product += tl.where(mask, d * xhat, 0.0)
    out = partial + (chunk * lanes + lane).to(tl.int64) * 2 * channels + column
    tl.store(out, tl.sum(total, 0), mask=held)
    tl.store(out + channels, tl.sum(product, 0), mask=held)


@triton.jit
def input_gradient_kernel(x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_in,
                          d_out, sums, dx, lanes, samples, positions, channels, tiles, affine_stride, eps,
                          x_strides, residual_strides, target_strides, grad_strides, d_strides,
                          dx_strides, floor, share,
                          POS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """dx of a tile, from d as stored by `sums_kernel` (d_in), or recomputed and stored (d_out)."""
    pid = tl.program_id(0)
    lane = pid % lanes
    tile = (pid // lanes) % tiles
    column = (pid // lanes // tiles) * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    sample, position, valid = tile_rows(tile, samples, positions, POS, ROWS)
    mask = valid[:, None] & held[None, :]
    centre, inverse, gain, offset = lane_affine(
        weight, bias, mean, var, lane, column, held, channels, affine_stride, eps
    )
    if d_in is not None:
        rows = row_offsets(first + sample, position, d_strides)
        d = load_tile(d_in, rows, column, d_strides, mask).to(tl.float32)
        rows = row_offsets(first + sample, position, x_strides)
        value = load_tile(x, rows, column, x_strides, mask).to(tl.float32)
        xhat = (value - centre[None, :]) * inverse[None, :]
    else:
        d, xhat = presum_gradient(
            x, residual, target, grad_y, grad_dist2, first, samples, sample, position, column,
            mask, centre, inverse, gain, offset, x_strides, residual_strides, target_strides,
            grad_strides, floor,
        )  # fmt: skip
    if d_out is not None:
        rows = row_offsets(first + sample, position, d_strides)
        rows = rows[:, None] + (column.to(tl.int64) * d_strides[2])[None, :]
        tl.store(d_out + rows, narrow(d, d_out), mask=mask)
    if sums is not None:
        entry = sums + lane.to(tl.int64) * 2 * channels + column
        mean_d = tl.load(entry, mask=held, other=0.0) * share
        mean_dxhat = tl.load(entry + channels, mask=held, other=0.0) * share
        d = d - mean_d[None, :] - xhat * mean_dxhat[None, :]
    rows = row_offsets(first + sample, position, dx_strides)
    rows = rows[:, None] + (column.to(tl.int64) * dx_strides[2])[None, :]
    value = d * (inverse * gain)[None, :]
    tl.store(dx + rows, narrow(value, dx), mask=mask)


def _chunks(samples: int, positions: int, tile: Tile) -> tuple[int, int, int]:
    """(POS, chunks, tiles per chunk): `tile.inner` tiles a chunk, but at most 128 chunks."""
    pos, total = row_tiles(samples, positions, tile.rows)
    tiles = max(min(tile.inner, total), triton.cdiv(total, 128))
    return pos, triton.cdiv(total, tiles), tiles


def batch_statistics(x: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (L, C), float32, of x (L*B, C, H, W)."""
    channels = x.shape[1]
    mean = x.new_empty(lanes, channels, dtype=torch.float32)
    var = torch.empty_like(mean)
    if x.numel() == 0:
        return mean, var
    flat = view(x)
    samples, positions = x.shape[0] // lanes, flat.tensor.shape[2]
    tile = choose("stats", x, channels)
    pos, chunks, tiles = _chunks(samples, positions, tile)
    partial = x.new_empty(lanes, chunks, 3, channels, dtype=torch.float32)
    stats_kernel[(lanes * chunks * triton.cdiv(channels, tile.cols),)](
        flat.tensor, partial, lanes, samples, positions, channels, chunks, tiles, flat.strides,
        POS=pos, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    width = power_of_two(channels, 32)
    merge_stats_kernel[(lanes * triton.cdiv(channels, width),)](
        partial, mean, var, lanes, channels, chunks,
        CHUNKS=triton.next_power_of_2(chunks), COLS=width, num_warps=4,
    )  # fmt: skip
    return mean, var


def lane_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    target: Tensor | None,
    lanes: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor | None]:
    """(y, dist2 (L, B) or None) for given statistics (L, C)."""
    y = like(x)
    dist2 = None if target is None else x.new_empty(lanes, *target.shape[:1], dtype=torch.float32)
    if x.numel() == 0:
        return y, dist2
    flat, extra, aimed, out = view(x), view(residual), view(target), view(y)
    samples, channels, positions = x.shape[0] // lanes, x.shape[1], flat.tensor.shape[2]
    tile = choose("normalise", x, channels)
    pos, tiles = row_tiles(samples, positions, tile.rows)
    parts = triton.cdiv(channels, tile.cols)
    partial = None
    if dist2 is not None:
        pieces = parts * triton.cdiv(positions, pos)
        partial = x.new_empty(lanes * samples, pieces, dtype=torch.float32)
    normalise_kernel[(lanes * tiles * parts,)](
        flat.tensor, extra.tensor, aimed.tensor, weight, bias, mean, var, out.tensor, partial,
        lanes, samples, positions, channels, tiles, parts, _affine_stride(weight), eps,
        flat.strides, extra.strides, aimed.strides, out.strides, _floor(relu),
        POS=pos, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    if partial is not None:
        sum_partials(partial, 1, dist2)
    return y, dist2


def _floor(relu: bool) -> float:
    """What the sum is cut off below; a shut ReLU passes no gradient, a NaN does, as in PyTorch."""
    return 0.0 if relu else float("-inf")


def _affine_stride(weight: Tensor) -> int:
    """From one lane's weights to the next; 0 where (C,) is shared."""
    return weight.shape[-1] if weight.dim() == 2 else 0


def lane_norm_backward(
    grad_y: Tensor | None,
    grad_dist2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    target: Tensor | None,
    lanes: int,
    training: bool,
    eps: float,
    relu: bool,
    affine: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dresidual or None, sums (L, 2, C) of d and d * xhat if `affine`)."""
    dx, dresidual = like(x), None if residual is None else like(x)
    sums = x.new_zeros(lanes, 2, x.shape[1], dtype=torch.float32) if affine else None
    if x.numel() == 0:
        return dx, dresidual, sums
    if grad_dist2 is None:
        target = None
    inputs = (view(x), view(residual), view(target), view(grad_y), view(dresidual))
    constants = (weight, bias, mean, var)
    if training or affine:
        sums = _sums(inputs, constants, grad_dist2, lanes, eps, relu)
    _input_gradient(inputs, constants, grad_dist2, sums, dx, lanes, eps, relu, training)
    return dx, dresidual, sums if affine else None


def _sums(inputs, constants, grad_dist2, lanes, eps, relu) -> Tensor:
    x, residual, target, grad, d = inputs
    batch, channels, positions = x.tensor.shape
    samples = batch // lanes
    tile = choose("sums", x.tensor, channels)
    pos, chunks, tiles = _chunks(samples, positions, tile)
    partial = x.tensor.new_empty(chunks, lanes * 2 * channels, dtype=torch.float32)
    sums_kernel[(lanes * chunks * triton.cdiv(channels, tile.cols),)](
        x.tensor, residual.tensor, target.tensor, *constants, grad.tensor, grad_dist2, d.tensor,
        partial, lanes, samples, positions, channels, chunks, tiles, _affine_stride(constants[0]),
        eps, x.strides, residual.strides, target.strides, grad.strides, d.strides, _floor(relu),
        POS=pos, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
    return sum_partials(partial, 0, partial.new_empty(lanes, 2, channels))


def _input_gradient(inputs, constants, grad_dist2, sums, dx, lanes, eps, relu, training) -> None:
    x, residual, target, grad, d = inputs
    stored = d.tensor is not None and sums is not None  # by `sums_kernel`: nothing is recomputed
    if stored:
        residual = target = grad = ABSENT
        grad_dist2 = None
    out = view(dx)
    batch, channels, positions = x.tensor.shape
    samples = batch // lanes
    tile = choose("norm_gradient", x.tensor, channels)
    pos, tiles = row_tiles(samples, positions, tile.rows)
    input_gradient_kernel[(lanes * tiles * triton.cdiv(channels, tile.cols),)](
        x.tensor, residual.tensor, target.tensor, *constants, grad.tensor, grad_dist2,
        d.tensor if stored else None, None if stored else d.tensor, sums if training else None,
        out.tensor, lanes, samples, positions, channels, tiles, _affine_stride(constants[0]), eps,
        x.strides, residual.strides, target.strides, grad.strides, d.strides, out.strides,
        _floor(relu), 1.0 / (samples * positions),
        POS=pos, ROWS=tile.rows, COLS=tile.cols, num_warps=tile.warps,
    )  # fmt: skip
