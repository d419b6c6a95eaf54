"""`lane_norm` in one launch each way: what its first pass has read, its second finds in the cache.

A unit is a block of channels of one lane; its statistics need no other's. Programs come in turns:
in turn t those that gather unit t (a chunk of rows each; the last to arrive merges them, in a fixed
order), then those that finish unit t - `behind` (a tile each), which wait until it is merged. A GPU
starts programs in the order of their numbers, and those that gather wait for nobody, so whoever
waits is served. `DISTANCE` programs lie between a unit's passes: as many as a GPU holds at once, so
that hardly one waits, while what they move still fits in its L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.device import View, flat, sum_partials, view
from ..shared.layout import like
from ..shared.tiles import choose
from .arguments import LaneNormArguments
from .device import chunk_statistics, chunk_sums, gradient_tile, merged, normalised_tile

DISTANCE = 1536


@triton.jit
def arrives_last(arrived, unit, chunks):
    """Count this program's chunk in; whether all of the unit have been written."""
    tl.debug_barrier()  # all threads' stores come before the count
    return tl.atomic_add(arrived + unit, 1, sem="acq_rel") == chunks - 1


@triton.jit
def announce(ready, unit):
    """What this program has merged may be read."""
    tl.debug_barrier()
    tl.atomic_xchg(ready + unit, 1, sem="release")


@triton.jit
def await_merged(ready, unit):
    """Return when the unit's sums may be read."""
    seen = tl.atomic_add(ready + unit, 0, sem="acquire")
    while seen == 0:
        seen = tl.atomic_add(ready + unit, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def unit_of(chunks, tiles, behind):
    """(unit, place in its turn, whether it gathers); units may lie outside of those that exist."""
    pid = tl.program_id(0)
    turn, place = pid // (chunks + tiles), pid % (chunks + tiles)
    gathers = place < chunks
    return tl.where(gathers, turn, turn - behind), place, gathers


@triton.jit
def whole_norm_kernel(x, residual, target, weight, bias, mean, var, y, distances, partial, arrived,
                      ready, units, samples, positions, channels, parts, chunks, each, tiles,
                      behind, affine_stride, eps, floor,
                      x_strides, residual_strides, target_strides, y_strides,
                      FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                      CHUNKS: tl.constexpr):  # fmt: skip
    """Statistics of a unit, then y by them; writes mean and var (L, C)."""
    unit, place, gathers = unit_of(chunks, tiles, behind)
    if (unit >= 0) & (unit < units):
        lane, part = unit // parts, unit % parts
        column = part * COLS + tl.arange(0, COLS)
        held = column < channels
        if gathers:
            centre, spread = chunk_statistics(
                x, lane, place, column, held, samples, positions, each, x_strides, FLAT, ROWS
            )
            own = partial + unit.to(tl.int64) * chunks * 2 * COLS + tl.arange(0, COLS)
            tl.store(own + place * 2 * COLS, centre)
            tl.store(own + place * 2 * COLS + COLS, spread)
            if arrives_last(arrived, unit, chunks):
                rows = samples * positions
                centre, spread = merged(own, held, chunks, COLS, each * ROWS, rows, CHUNKS)
                tl.store(mean + lane * channels + column, centre, mask=held)
                tl.store(var + lane * channels + column, spread, mask=held)
                announce(ready, unit)
        else:
            await_merged(ready, unit)
            normalised_tile(
                x, residual, target, weight, bias, mean, var, y, distances, lane, place - chunks,
                part, samples, positions, channels, parts, affine_stride, eps, floor, x_strides,
                residual_strides, target_strides, y_strides, FLAT, ROWS, COLS,
            )  # fmt: skip


@triton.jit
def whole_gradient_kernel(x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d,
                          sums, dx, partial, arrived, ready, units, samples, positions, channels,
                          parts, chunks, each, tiles, behind, affine_stride, eps, floor, share,
                          x_strides, residual_strides, target_strides, grad_strides, d_strides,
                          dx_strides, FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                          CHUNKS: tl.constexpr):  # fmt: skip
    """Sums of a unit, (L, 2, C), and d where a residual needs it; then dx by them."""
    unit, place, gathers = unit_of(chunks, tiles, behind)
    if (unit >= 0) & (unit < units):
        lane, part = unit // parts, unit % parts
        column = part * COLS + tl.arange(0, COLS)
        held = column < channels
        if gathers:
            total, product = chunk_sums(
                x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d, lane, place,
                column, held, samples, positions, channels, each, affine_stride, eps, floor,
                x_strides, residual_strides, target_strides, grad_strides, d_strides, FLAT, ROWS,
                COLS,
            )  # fmt: skip
            own = partial + unit.to(tl.int64) * chunks * 2 * COLS + tl.arange(0, COLS)
            tl.store(own + place * 2 * COLS, total)
            tl.store(own + place * 2 * COLS + COLS, product)
            if arrives_last(arrived, unit, chunks):
                chunk = tl.arange(0, CHUNKS)
                entries = own[None, :] + chunk[:, None] * (2 * COLS)
                there = (chunk < chunks)[:, None]
                d_sums = tl.load(entries, mask=there, other=0.0, cache_modifier=".cg")
                products = tl.load(entries + COLS, mask=there, other=0.0, cache_modifier=".cg")
                out = sums + lane.to(tl.int64) * 2 * channels + column
                tl.store(out, tl.sum(d_sums, 0), mask=held)
                tl.store(out + channels, tl.sum(products, 0), mask=held)
                announce(ready, unit)
        else:
            await_merged(ready, unit)
            gradient_tile(
                x, residual, target, weight, bias, mean, var, grad_y, grad_dist2, d, None, sums,
                dx, lane, place - chunks, part, samples, positions, channels, affine_stride, eps,
                floor, share, x_strides, residual_strides, target_strides, grad_strides,
                d_strides, dx_strides, FLAT, ROWS, COLS,
            )  # fmt: skip


class Turns:
    """The order of a launch over (samples, channels, positions) of each lane.

    A tile has at most the rows that exist; `tile.inner` tiles make a chunk.
    """

    def __init__(self, kernel: str, x: View, lanes: int, views: tuple[View, ...]) -> None:
        batch, channels, positions = x.tensor.shape
        samples = batch // lanes
        even = flat(positions, x, *views)
        tile = choose(kernel, x.tensor, channels, flat=even)
        total = triton.cdiv(samples * positions, tile.rows)
        each = min(tile.inner, total)
        parts, chunks = triton.cdiv(channels, tile.cols), triton.cdiv(total, each)
        behind = max(triton.cdiv(DISTANCE, chunks + total), 1)
        units = lanes * parts
        self.numbers = (units, samples, positions, channels, parts, chunks, each, total, behind)
        self.grid = ((units + behind) * (chunks + total),)
        self.options = {
            "FLAT": even, "ROWS": tile.rows, "COLS": tile.cols,
            "CHUNKS": triton.next_power_of_2(chunks), "num_warps": tile.warps,
        }  # fmt: skip
        self.partial = x.tensor.new_empty(units * chunks * 2 * tile.cols, dtype=torch.float32)
        self.counts = x.tensor.new_zeros(2, units, dtype=torch.int32)
        self.parts, self.positions = parts, positions


def forward(a: LaneNormArguments, numbers: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(y, mean, var, dist2 or None) of a training pass over maps that are not empty."""
    whole = like(a.x, a.room)
    x, extra, aimed, out = map(view, (a.x, a.residual, a.target, whole[: len(a.x)]))
    turns = Turns("whole_norm", x, a.lanes, (extra, aimed, out))
    mean = a.x.new_empty(a.lanes, a.x.shape[1], dtype=torch.float32)
    var, dist2, distances = torch.empty_like(mean), None, None
    if a.target is not None:
        dist2 = mean.new_empty(a.lanes, len(a.target))
        distances = mean.new_empty(dist2.numel(), turns.positions * turns.parts)
    whole_norm_kernel[turns.grid](
        x.tensor, extra.tensor, aimed.tensor, a.weight, a.bias, mean, var, out.tensor, distances,
        turns.partial, *turns.counts, *turns.numbers, *numbers,
        x.strides, extra.strides, aimed.strides, out.strides, **turns.options,
    )  # fmt: skip
    if dist2 is not None:
        sum_partials(distances, 1, dist2)
    return whole, mean, var, dist2


def gradient(
    a: LaneNormArguments, x: View, given, dx: View, numbers: tuple, share: float
) -> Tensor:
    """Writes dx, and d into `given.d` where there is a residual; returns the sums (L, 2, C)."""
    turns = Turns("whole_gradient", x, a.lanes, (*given[:4], dx))
    sums = x.tensor.new_empty(a.lanes, 2, x.tensor.shape[1], dtype=torch.float32)
    whole_gradient_kernel[turns.grid](
        x.tensor, given.residual.tensor, given.target.tensor, a.weight, a.bias, a.running_mean,
        a.running_var, given.grad_y.tensor, given.grad_dist2, given.d.tensor, sums, dx.tensor,
        turns.partial, *turns.counts, *turns.numbers, *numbers, share,
        x.strides, *given.strides(), dx.strides, **turns.options,
    )  # fmt: skip
    return sums
