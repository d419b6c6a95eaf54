"""What every kernel and launcher shares: the row tiling, strided views, and sums of partials.

A tile has ROWS rows: ROWS / POS samples of POS positions each, POS a power of two, so that a row's
sample and position cost a shift and a mask, and a sum over a sample's rows is a reshape. Offsets of
rows are 64-bit: the first layers of a large wave hold more than 2**31 elements.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Triton's interpreter multiplies bfloat16 as bit patterns; there products are taken in float32."""


class View(NamedTuple):
    """A tensor as (sample, position, channel) with its strides, in elements."""

    tensor: Tensor | None
    strides: tuple[int, int, int]


ABSENT = View(None, (0, 0, 0))


def view(x: Tensor | None) -> View:
    """(N, C, ...) as (sample, position, channel); a copy only where H and W do not collapse."""
    if x is None:
        return ABSENT
    flat = x.flatten(2) if _collapses(x) else channels_last(x).flatten(2)
    return View(flat, (flat.stride(0), flat.stride(2), flat.stride(1)))


def _collapses(x: Tensor) -> bool:
    if x.dim() != 4 or 1 in x.shape[2:]:
        return True
    return x.stride(2) == x.shape[3] * x.stride(3)


def channels_last(x: Tensor) -> Tensor:
    """`x` (N, C, H, W), copied unless it is channels-last already."""
    return x.contiguous(memory_format=torch.channels_last)


def power_of_two(n: int, most: int) -> int:
    """The smallest power of two that is at least `n`, but `most` at most."""
    return min(triton.next_power_of_2(max(n, 1)), most)


def row_tiles(samples: int, positions: int, rows: int) -> tuple[int, int]:
    """(POS, number of tiles) that cover `samples` x `positions` with tiles of `rows` rows."""
    pos = power_of_two(positions, rows)
    return pos, triton.cdiv(samples, rows // pos) * triton.cdiv(positions, pos)


@triton.jit
def tile_rows(tile, samples, positions, POS: tl.constexpr, ROWS: tl.constexpr):
    """Samples, positions and validity (ROWS,) of the rows of one tile."""
    per_sample = tl.cdiv(positions, POS)
    row = tl.arange(0, ROWS)
    sample = (tile // per_sample) * (ROWS // POS) + row // POS
    position = (tile % per_sample) * POS + row % POS
    return sample, position, (sample < samples) & (position < positions)


@triton.jit
def row_offsets(sample, position, strides):
    """Offsets (ROWS,) of rows, 64-bit; strides are (sample, position, channel)."""
    return sample.to(tl.int64) * strides[0] + position.to(tl.int64) * strides[1]


@triton.jit
def load_tile(pointer, rows, columns, strides, mask):
    """A (ROWS, COLS) tile, zero where masked out."""
    offsets = rows[:, None] + (columns.to(tl.int64) * strides[2])[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a @ b + acc in float32; unlike dtypes meet in TF32, which holds float16 exactly."""
    if a.dtype != b.dtype:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32")
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def rectify(x, floor):
    """max(x, floor) that lets NaN through, so that a diverged lane shows."""
    return tl.where(x < floor, floor, x)


@triton.jit
def narrow(x, like):
    """`x` (float32) in the dtype that pointer `like` points to, rounded to nearest, ties to even.

    Triton's interpreter cuts bfloat16 off instead; there the rounding is done here.
    """
    if INTERPRETED and like.dtype.element_ty == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(like.dtype.element_ty)


@triton.jit
def store_sample_sums(partial, values, first, tile, part, parts, samples, positions,
                      POS: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Sum `values` (ROWS,) over each sample's rows into partial[first + sample, part'].

    partial is (L*B, position tiles * parts); this program owns column (position tile, part).
    """
    per_sample = tl.cdiv(positions, POS)
    group: tl.constexpr = ROWS // POS
    sums = tl.sum(tl.reshape(values, (group, POS)), 1)
    sample = (tile // per_sample) * group + tl.arange(0, group)
    column = (tile % per_sample) * parts + part
    tl.store(
        partial + (first + sample) * (per_sample * parts) + column, sums, mask=sample < samples
    )


@triton.jit
def sum_partials_kernel(partial, out, count, size, stride_count, stride_item,
                        COUNT: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """out[i] = sum over k of partial[k, i], k in a fixed order."""
    item = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    held = item < size
    total = tl.zeros((SIZE,), tl.float32)
    for start in range(0, count, COUNT):
        k = start + tl.arange(0, COUNT)
        offsets = k.to(tl.int64)[:, None] * stride_count + (item * stride_item)[None, :]
        values = tl.load(partial + offsets, mask=(k < count)[:, None] & held[None, :], other=0.0)
        total += tl.sum(values, 0)
    tl.store(out + item, narrow(total, out), mask=held)


def sum_partials(partial: Tensor, dim: int, out: Tensor) -> Tensor:
    """Sum a contiguous 2-D float32 `partial` over `dim` into the flat `out`."""
    count, size = partial.shape[dim], partial.shape[1 - dim]
    tile_count = power_of_two(count, 16 if dim == 0 else 128)
    tile_size = max(1024 // tile_count, 16)
    if size:
        sum_partials_kernel[(triton.cdiv(size, tile_size),)](
            partial, out, count, size, partial.stride(dim), partial.stride(1 - dim),
            COUNT=tile_count, SIZE=tile_size, num_warps=4,
        )  # fmt: skip
    return out
