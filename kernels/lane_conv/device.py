"""Device code of `lane_conv`: implicit matrix products with a norm before and statistics behind.

A row is one position of one sample, its K*K*C values gathered tap by tap from the map itself: no
patches are written. All maps are channels-last without gaps, weights (C2, K, K, C1).

Forward, of a tile of y: every value of x is normalised, cut off at zero and rounded on its way into
the product; zeros of the padding stay zeros. The rounded y leaves its tile's (mean, sum of squared
deviations), which `merge_tiles_kernel` joins by Chan's formula.

Backward, of a tile of dx: every value of dy is scaled where a norm left that to do, and gains what
comes through y's own statistics, dmean / N + dvar * 2 (y - mean) / N, on its way in. Where x was
normalised, the product is d once the ReLU has let it through: dx = gain / sigma * d, and the tile's
sums of d and d * xhat are left for `moments_kernel`. With a stride, positions are taken by their
remainders, as each remainder has its own taps.

Loops go over channels outside and taps inside, so that a block's norm is read once for all taps.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..lane_norm.device import chunk_rows
from ..shared.device import dot, narrow, rectify, tile_rows


class ConvSizes(NamedTuple):
    """lanes, samples of each; height, width and channels of x, and of y."""

    lanes: int
    samples: int
    height: int
    width: int
    c1: int
    out_height: int
    out_width: int
    c2: int

    @property
    def rows(self) -> int:
        """Rows of y of a lane."""
        return self.samples * self.out_height * self.out_width


class Prior(NamedTuple):
    """The norm before: gain, bias (C1,), mean, var (L, C1), contiguous."""

    gain: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float


class GivenGradient(NamedTuple):
    """dy; the gradients of y's statistics (L, C2) with y and its mean, all four or None; what else
    comes to x; with the statistics, what dy is multiplied by, (L, C2)."""

    dy: Tensor
    y: Tensor | None
    centre: Tensor | None
    dmean: Tensor | None
    dvar: Tensor | None
    beside: Tensor | None
    scale: Tensor | None


@triton.jit
def prior_of(prior, lane, channel, used, channels):
    """(mean, 1 / sigma, gain / sigma, bias) of one lane's channels, float32."""
    at = lane * channels + channel
    mean = tl.load(prior.mean + at, mask=used, other=0.0).to(tl.float32)
    var = tl.load(prior.var + at, mask=used, other=1.0).to(tl.float32)
    gain = tl.load(prior.gain + channel, mask=used, other=0.0).to(tl.float32)
    bias = tl.load(prior.bias + channel, mask=used, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(var + prior.eps)
    return mean, inverse, inverse * gain, bias


@triton.jit
def conv_kernel(x, weight, prior: Prior, y, partial, sizes: ConvSizes, tiles, parts,
                KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
                PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                INNER: tl.constexpr):  # fmt: skip
    """A tile of y, and its columns' (mean, sum of squared deviations) in partial[lane, tile]."""
    lanes, samples, height, width, c1, out_height, out_width, c2 = sizes
    pid = tl.program_id(0)
    part, tile, lane = pid % parts, (pid // parts) % tiles, pid // parts // tiles
    rows = samples * out_height * out_width
    row, valid = tile_rows(tile, rows, ROWS)
    sample, place = row // (out_height * out_width), row % (out_height * out_width)
    top = place // out_width * STRIDE - PADDING
    left = place % out_width * STRIDE - PADDING
    first = lane.to(tl.int64) * samples
    source = x + (((first + sample) * height + top) * width + left) * c1
    column = part * COLS + tl.arange(0, COLS)
    held = column < c2
    w_rows = weight + column.to(tl.int64) * (KERNEL * KERNEL * c1)
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, c1, INNER):
        k = start + tl.arange(0, INNER)
        used = k < c1
        if prior is not None:
            mean, _, scale, bias = prior_of(prior, lane, k, used, c1)
        for tap in range(KERNEL * KERNEL):
            down = tap // KERNEL
            right = tap - down * KERNEL
            inside = valid & (top + down >= 0) & (top + down < height)
            inside = inside & (left + right >= 0) & (left + right < width)
            mask = inside[:, None] & used[None, :]
            at = source[:, None] + ((down * width + right) * c1 + k)[None, :]
            a = tl.load(at, mask=mask, other=0.0)
            if prior is not None:
                value = (a.to(tl.float32) - mean[None, :]) * scale[None, :] + bias[None, :]
                a = narrow(tl.where(mask, rectify(value, 0.0), 0.0), x)
            within = used[:, None] & held[None, :]
            w = tl.load(w_rows[None, :] + (tap * c1 + k)[:, None], mask=within, other=0.0)
            acc = dot(a, w, acc, PRECISION)
    mask = valid[:, None] & held[None, :]
    rounded = narrow(acc, y)
    out = (lane.to(tl.int64) * rows + row) * c2
    tl.store(y + out[:, None] + column[None, :], rounded, mask=mask)
    value = tl.where(mask, rounded.to(tl.float32), 0.0)
    centre = tl.sum(value, 0) / chunk_rows(tile, ROWS, rows)
    apart = tl.where(mask, value - centre[None, :], 0.0)
    entry = partial + (lane * tiles + tile).to(tl.int64) * 2 * c2 + column
    tl.store(entry, centre, mask=held)
    tl.store(entry + c2, tl.sum(apart * apart, 0), mask=held)


@triton.jit
def merge_tiles_kernel(partial, mean, var, channels, tiles, span, rows,
                       TILES: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """mean and biased variance (L, C) of all tiles of `span` rows, by Chan's formula."""
    blocks = tl.cdiv(channels, COLS)
    lane = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * COLS + tl.arange(0, COLS)
    held = column < channels
    first = partial + lane.to(tl.int64) * tiles * 2 * channels + column
    total = tl.zeros((COLS,), tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        mask = (tile < tiles)[:, None] & held[None, :]
        means = tl.load(first[None, :] + tile[:, None] * 2 * channels, mask=mask, other=0.0)
        total += tl.sum(chunk_rows(tile, span, rows)[:, None] * means, 0)
    centre = total / rows
    spread = tl.zeros((COLS,), tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        mask = (tile < tiles)[:, None] & held[None, :]
        entry = first[None, :] + tile[:, None] * 2 * channels
        apart = tl.load(entry, mask=mask, other=0.0) - centre[None, :]
        within = tl.load(entry + channels, mask=mask, other=0.0)
        spread += tl.sum(within + chunk_rows(tile, span, rows)[:, None] * apart * apart, 0)
    tl.store(mean + lane * channels + column, centre, mask=held)
    tl.store(var + lane * channels + column, rectify(spread, 0.0) / rows, mask=held)


@triton.jit
def conv_gradient_kernel(given: GivenGradient, weight, x, prior: Prior, dx, partial,
                         sizes: ConvSizes, tiles, parts, share,
                         KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
                         PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                         INNER: tl.constexpr):  # fmt: skip
    """A tile of dx, and the sums of d and d * xhat of its columns in partial[lane, group].

    A group is a tile of the positions with one pair of remainders. share: 1 / N.
    """
    lanes, samples, height, width, c1, out_height, out_width, c2 = sizes
    pid = tl.program_id(0)
    part, tile = pid % parts, (pid // parts) % tiles
    group = (pid // parts) % (tiles * STRIDE * STRIDE)
    lane = pid // parts // (tiles * STRIDE * STRIDE)
    below, beside = group // tiles // STRIDE, group // tiles % STRIDE
    down, right = tl.cdiv(height, STRIDE), tl.cdiv(width, STRIDE)
    row, valid = tile_rows(tile, samples * down * right, ROWS)
    sample, place = row // (down * right), row % (down * right)
    across, along = place // right, place % right
    valid = valid & (across * STRIDE + below < height) & (along * STRIDE + beside < width)
    first_y, first_x = (below + PADDING) % STRIDE, (beside + PADDING) % STRIDE
    taps_y = (KERNEL - first_y + STRIDE - 1) // STRIDE
    taps_x = (KERNEL - first_x + STRIDE - 1) // STRIDE
    top = across + (below + PADDING - first_y) // STRIDE
    left = along + (beside + PADDING - first_x) // STRIDE
    first = lane.to(tl.int64) * samples
    source = (((first + sample) * out_height + top) * out_width + left) * c2
    column = part * COLS + tl.arange(0, COLS)
    held = column < c1
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, c2, INNER):
        k = start + tl.arange(0, INNER)
        used = k < c2
        centre = tl.zeros((INNER,), tl.float32)
        level = centre
        slope = centre
        gain = centre
        if given.y is not None:
            channel = lane * c2 + k
            centre = tl.load(given.centre + channel, mask=used, other=0.0)
            level = tl.load(given.dmean + channel, mask=used, other=0.0) * share
            slope = tl.load(given.dvar + channel, mask=used, other=0.0) * (2.0 * share)
            if given.scale is not None:
                gain = tl.load(given.scale + channel, mask=used, other=0.0)
        for step in range(taps_y * taps_x):
            up, back = step // taps_x, step % taps_x
            inside = valid & (top - up >= 0) & (top - up < out_height)
            inside = inside & (left - back >= 0) & (left - back < out_width)
            mask = inside[:, None] & used[None, :]
            at = source[:, None] + (k - (up * out_width + back) * c2)[None, :]
            g = tl.load(given.dy + at, mask=mask, other=0.0)
            if given.y is not None:
                apart = tl.load(given.y + at, mask=mask, other=0.0).to(tl.float32) - centre[None, :]
                value = g.to(tl.float32)
                if given.scale is not None:
                    value = value * gain[None, :]
                value = value + level[None, :] + apart * slope[None, :]
                g = narrow(tl.where(mask, value, 0.0), given.dy)
            tap = (first_y + up * STRIDE) * KERNEL + first_x + back * STRIDE
            entry = (k.to(tl.int64) * (KERNEL * KERNEL) + tap) * c1
            within = used[:, None] & held[None, :]
            w = tl.load(weight + entry[:, None] + column[None, :], mask=within, other=0.0)
            acc = dot(g, w, acc, PRECISION)
    mask = valid[:, None] & held[None, :]
    out = ((first + sample) * height + across * STRIDE + below) * width + along * STRIDE + beside
    out = (out * c1)[:, None] + column[None, :]
    if prior is not None:
        mean, inverse, scale, bias = prior_of(prior, lane, column, held, c1)
        apart = tl.load(x + out, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        shut = apart * scale[None, :] + bias[None, :] <= 0.0
        d = tl.where(mask & ~shut, acc, 0.0)
        entry = partial + (lane * tiles * STRIDE * STRIDE + group).to(tl.int64) * 2 * c1 + column
        tl.store(entry, tl.sum(d, 0), mask=held)
        xhat = tl.where(mask, apart * inverse[None, :], 0.0)
        tl.store(entry + c1, tl.sum(d * xhat, 0), mask=held)
        acc = d * scale[None, :]
    if given.beside is not None:
        acc += tl.load(given.beside + out, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + out, narrow(acc, dx), mask=mask)


@triton.jit
def moments_kernel(partial, prior: Prior, dmean, dvar, channels, groups,
                   GROUPS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """The gradients (L, C1) of the statistics before, from the sums that all groups have left."""
    blocks = tl.cdiv(channels, COLS)
    lane = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * COLS + tl.arange(0, COLS)
    held = column < channels
    first = partial + lane.to(tl.int64) * groups * 2 * channels + column
    total = tl.zeros((COLS,), tl.float32)
    product = tl.zeros((COLS,), tl.float32)
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        mask = (group < groups)[:, None] & held[None, :]
        entry = first[None, :] + group[:, None] * 2 * channels
        total += tl.sum(tl.load(entry, mask=mask, other=0.0), 0)
        product += tl.sum(tl.load(entry + channels, mask=mask, other=0.0), 0)
    _, inverse, scale, _ = prior_of(prior, lane, column, held, channels)
    tl.store(dmean + lane * channels + column, -scale * total, mask=held)
    tl.store(dvar + lane * channels + column, -0.5 * scale * inverse * product, mask=held)
