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

import triton
import triton.language as tl

from ..shared.device import load_tile, rectify, store_tile, tile_offsets, tile_rows


@triton.jit
def stats_kernel(x, partial, lanes, samples, positions, channels, chunks, tiles, x_strides,
                 FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """partial[lane, chunk] = (mean, sum of squared deviations) of each channel."""
    pid = tl.program_id(0)
    lane = pid % lanes
    chunk = (pid // lanes) % chunks
    column = (pid // lanes // chunks) * COLS + tl.arange(0, COLS)
    held = column < channels
    mean, spread = chunk_statistics(
        x, lane, chunk, column, held, samples, positions, tiles, x_strides, FLAT, ROWS
    )
    out = partial + (lane * chunks + chunk).to(tl.int64) * 2 * channels + column
    tl.store(out, mean, mask=held)
    tl.store(out + channels, spread, mask=held)


@triton.jit
def chunk_statistics(x, lane, chunk, column, held, samples, positions, tiles, x_strides,
                     FLAT: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """(mean, sum of squared deviations) of a chunk of `tiles` tiles, (COLS,) each.

    Sums are taken around the mean of the chunk's first tile, so they do not cancel.
    """
    first = lane.to(tl.int64) * samples
    rows = samples * positions
    row, valid = tile_rows(chunk * tiles, rows, ROWS)
    mask = valid[:, None] & held[None, :]
    value = load_tile(x, first, row, column, mask, positions, x_strides, FLAT).to(tl.float32)
    shift = tl.sum(value, 0) / tl.minimum(rows - chunk * tiles * ROWS, ROWS)
    value = tl.where(mask, value - shift[None, :], 0.0)
    total, square = value, value * value
    for i in range(1, tiles):
        row, valid = tile_rows(chunk * tiles + i, rows, ROWS)
        mask = valid[:, None] & held[None, :]
        value = load_tile(x, first, row, column, mask, positions, x_strides, FLAT).to(tl.float32)
        value = tl.where(mask, value - shift[None, :], 0.0)
        total += value
        square += value * value
    count = chunk_rows(chunk, tiles * ROWS, rows)
    offset = tl.sum(total, 0) / count
    return shift + offset, tl.sum(square, 0) - count * offset * offset


@triton.jit
def chunk_rows(chunk, span, rows):
    """How many of `rows` lie in chunk number `chunk` of `span`, float32."""
    return tl.minimum(tl.maximum(rows - chunk * span, 0), span).to(tl.float32)


@triton.jit
def merge_stats_kernel(partial, mean, var, lanes, channels, chunks, span, rows,
                       CHUNKS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """mean and biased variance (L, C) of all chunks; CHUNKS covers `chunks`."""
    lane = tl.program_id(0) % lanes
    column = (tl.program_id(0) // lanes) * COLS + tl.arange(0, COLS)
    held = column < channels
    entry = partial + (lane * chunks).to(tl.int64) * 2 * channels + column
    centre, spread = merged(entry, held, chunks, channels, span, rows, CHUNKS)
    tl.store(mean + lane * channels + column, centre, mask=held)
    tl.store(var + lane * channels + column, spread, mask=held)


@triton.jit
def merged(entry, held, chunks, width, span, rows, CHUNKS: tl.constexpr):
    """(mean, biased variance) of all chunks by Chan's formula; `entry` (COLS,) points to the first
    one's means, sums of squared deviations lie `width` behind them."""
    chunk = tl.arange(0, CHUNKS)
    mask = (chunk < chunks)[:, None] & held[None, :]
    entries = entry[None, :] + chunk[:, None] * (2 * width)
    # from the L2 cache: other programs of the same launch may have written them
    means = tl.load(entries, mask=mask, other=0.0, cache_modifier=".cg")
    spreads = tl.load(entries + width, mask=mask, other=0.0, cache_modifier=".cg")
    counts = chunk_rows(chunk, span, rows)[:, None]
    centre = tl.sum(counts * means, 0) / rows
    apart = means - centre[None, :]
    spread = tl.sum(spreads + counts * apart * apart, 0)
    return centre, rectify(spread, 0.0) / rows


@triton.jit
def lane_affine(weight, bias, mean, var, lane, column, held, channels, affine_stride, eps):
    """(mean, 1 / sigma, weight, bias) of one lane's channels, float32."""
    at = lane * channels + column  # from the L2 cache, as in `merged`
    mean = tl.load(mean + at, mask=held, other=0.0, cache_modifier=".cg").to(tl.float32)
    var = tl.load(var + at, mask=held, other=1.0, cache_modifier=".cg").to(tl.float32)
    weight = tl.load(weight + lane * affine_stride + column, mask=held, other=0.0)
    bias = tl.load(bias + lane * affine_stride + column, mask=held, other=0.0)
    return mean, tl.rsqrt(var + eps), weight.to(tl.float32), bias.to(tl.float32)


@triton.jit
def normalise_kernel(x, residual, target, weight, bias, mean, var, y, partial,
                     lanes, samples, positions, channels, tiles, parts, affine_stride, eps, floor,
                     x_strides, residual_strides, target_strides, y_strides,
                     FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """A tile of y, and per row its squared distance to the target in partial[lane, row, part]."""
    pid = tl.program_id(0)
    normalised_tile(
        x, residual, target, weight, bias, mean, var, y, partial, pid % lanes,
        (pid // lanes) % tiles, pid // lanes // tiles, samples, positions, channels, parts,
        affine_stride, eps, floor, x_strides, residual_strides, target_strides, y_strides,
        FLAT, ROWS, COLS,
    )  # fmt: skip


@triton.jit
def normalised_tile(x, residual, target, weight, bias, mean, var, y, partial, lane, tile, part,
                    samples, positions, channels, parts, affine_stride, eps, floor,
                    x_strides, residual_strides, target_strides, y_strides,
                    FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """Write a tile of y, and its rows' distances, by known statistics."""
    column = part * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    row, valid = tile_rows(tile, samples * positions, ROWS)
    mask = valid[:, None] & held[None, :]
    centre, inverse, gain, offset = lane_affine(
        weight, bias, mean, var, lane, column, held, channels, affine_stride, eps
    )
    value = load_tile(x, first, row, column, mask, positions, x_strides, FLAT).to(tl.float32)
    value = (value - centre[None, :]) * (inverse * gain)[None, :] + offset[None, :]
    if residual is not None:
        value += load_tile(
            residual, first, row, column, mask, positions, residual_strides, FLAT
        ).to(tl.float32)
    value = rectify(value, floor)
    store_tile(y, value, first, row, column, mask, positions, y_strides, FLAT)
    if target is not None:
        aimed = load_tile(target, 0, row, column, mask, positions, target_strides, FLAT)
        apart = tl.where(mask, value - aimed.to(tl.float32), 0.0)
        out = partial + (first * positions + row) * parts + part
        tl.store(out, tl.sum(apart * apart, 1), mask=valid)


@triton.jit
def presum_gradient(x, residual, target, grad_y, grad_dist2, lane, row, column, mask, valid,
                    samples, positions, floor, centre, inverse, gain, offset,
                    x_strides, residual_strides, target_strides, grad_strides,
                    FLAT: tl.constexpr):  # fmt: skip
    """(d, xhat) of a tile: the gradient at the sum before the ReLU, everything recomputed."""
    first = lane.to(tl.int64) * samples
    value = load_tile(x, first, row, column, mask, positions, x_strides, FLAT).to(tl.float32)
    xhat = (value - centre[None, :]) * inverse[None, :]
    value = xhat * gain[None, :] + offset[None, :]
    if residual is not None:
        value += load_tile(
            residual, first, row, column, mask, positions, residual_strides, FLAT
        ).to(tl.float32)
    d = tl.zeros_like(value)
    if grad_y is not None:
        given = load_tile(grad_y, first, row, column, mask, positions, grad_strides, FLAT)
        d += given.to(tl.float32)
    if target is not None:
        aimed = load_tile(target, 0, row, column, mask, positions, target_strides, FLAT)
        share = tl.load(grad_dist2 + first + row // positions, mask=valid, other=0.0)
        d += (2.0 * share)[:, None] * (rectify(value, floor) - aimed.to(tl.float32))
    return tl.where(mask & ~(value <= floor), d, 0.0), xhat


@triton.jit
def sums_kernel(x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_out, partial,
                lanes, samples, positions, channels, chunks, tiles, affine_stride, eps, floor,
                x_strides, residual_strides, target_strides, grad_strides, d_strides,
                FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """partial[chunk, lane] = (sum of d, sum of d * xhat) per channel; d itself where asked."""
    pid = tl.program_id(0)
    lane = pid % lanes
    chunk = (pid // lanes) % chunks
    column = (pid // lanes // chunks) * COLS + tl.arange(0, COLS)
    held = column < channels
    total, product = chunk_sums(
        x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_out, lane, chunk,
        column, held, samples, positions, channels, tiles, affine_stride, eps, floor,
        x_strides, residual_strides, target_strides, grad_strides, d_strides, FLAT, ROWS, COLS,
    )  # fmt: skip
    out = partial + (chunk * lanes + lane).to(tl.int64) * 2 * channels + column
    tl.store(out, total, mask=held)
    tl.store(out + channels, product, mask=held)


@triton.jit
def chunk_sums(x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_out, lane,
               chunk, column, held, samples, positions, channels, tiles, affine_stride, eps, floor,
               x_strides, residual_strides, target_strides, grad_strides, d_strides,
               FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """(sum of d, sum of d * xhat) of a chunk, (COLS,) each; writes d where asked."""
    first = lane.to(tl.int64) * samples
    centre, inverse, gain, offset = lane_affine(
        weight, bias, mean, var, lane, column, held, channels, affine_stride, eps
    )
    total = tl.zeros((ROWS, COLS), tl.float32)
    product = tl.zeros((ROWS, COLS), tl.float32)
    for i in range(tiles):
        row, valid = tile_rows(chunk * tiles + i, samples * positions, ROWS)
        mask = valid[:, None] & held[None, :]
        d, xhat = presum_gradient(
            x, residual, target, grad_y, grad_dist2, lane, row, column, mask, valid, samples,
            positions, floor, centre, inverse, gain, offset, x_strides, residual_strides,
            target_strides, grad_strides, FLAT,
        )  # fmt: skip
        if d_out is not None:
            store_tile(d_out, d, first, row, column, mask, positions, d_strides, FLAT)
        total += d
        product += tl.where(mask, d * xhat, 0.0)
    return tl.sum(total, 0), tl.sum(product, 0)


@triton.jit
def input_gradient_kernel(x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_in,
                          d_out, sums, dx, lanes, samples, positions, channels, tiles,
                          affine_stride, eps, floor, share, x_strides, residual_strides,
                          target_strides, grad_strides, d_strides, dx_strides,
                          FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """dx of a tile, from d as stored by `sums_kernel` (d_in), or recomputed and stored (d_out).

    share: 1 / (samples * positions), which turns sums into means.
    """
    pid = tl.program_id(0)
    gradient_tile(
        x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_in, d_out, sums, dx,
        pid % lanes, (pid // lanes) % tiles, pid // lanes // tiles, samples, positions, channels,
        affine_stride, eps, floor, share, x_strides, residual_strides, target_strides,
        grad_strides, d_strides, dx_strides, FLAT, ROWS, COLS,
    )  # fmt: skip


@triton.jit
def gradient_tile(x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d_in, d_out,
                  sums, dx, lane, tile, part, samples, positions, channels, affine_stride, eps,
                  floor, share, x_strides, residual_strides, target_strides, grad_strides,
                  d_strides, dx_strides, FLAT: tl.constexpr, ROWS: tl.constexpr,
                  COLS: tl.constexpr):  # fmt: skip
    """Write a tile of dx, by known sums."""
    column = part * COLS + tl.arange(0, COLS)
    held = column < channels
    first = lane.to(tl.int64) * samples
    row, valid = tile_rows(tile, samples * positions, ROWS)
    mask = valid[:, None] & held[None, :]
    centre, inverse, gain, offset = lane_affine(
        weight, bias, mean, var, lane, column, held, channels, affine_stride, eps
    )
    if d_in is not None:
        offsets = tile_offsets(first, row, column, positions, d_strides, FLAT)
        # from the L2 cache, as in `merged`
        d = tl.load(d_in + offsets, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        value = load_tile(x, first, row, column, mask, positions, x_strides, FLAT).to(tl.float32)
        xhat = (value - centre[None, :]) * inverse[None, :]
    else:
        d, xhat = presum_gradient(
            x, residual, target, grad_y, grad_dist2, lane, row, column, mask, valid, samples,
            positions, floor, centre, inverse, gain, offset, x_strides, residual_strides,
            target_strides, grad_strides, FLAT,
        )  # fmt: skip
    if d_out is not None:
        store_tile(d_out, d, first, row, column, mask, positions, d_strides, FLAT)
    if sums is not None:
        entry = sums + lane.to(tl.int64) * 2 * channels + column
        mean_d = tl.load(entry, mask=held, other=0.0, cache_modifier=".cg") * share
        mean_dxhat = tl.load(entry + channels, mask=held, other=0.0, cache_modifier=".cg") * share
        d = d - mean_d[None, :] - xhat * mean_dxhat[None, :]
    value = d * (inverse * gain)[None, :]
    store_tile(dx, value, first, row, column, mask, positions, dx_strides, FLAT)
