"""What every Triton kernel and launcher shares: row tiling, strided views, and sums of partials.

A launcher takes a checked record, allocates every output, and launches on the device of its
tensors; it neither synchronises with the host nor tunes. Sums over rows leave one partial per
program and are finished by a second kernel in a fixed order: no atomics, so the same input gives
the same bits. Kernels may run in Triton's interpreter (TRITON_INTERPRET=1, set before this package
is imported).

Rows are (sample, position) pairs of one lane, numbered through, cut into tiles of ROWS. Where every
tensor's samples follow each other without a gap (FLAT: channels-last does) a row's offset is one
product; else its number is split by a division. Offsets are 64-bit: the first layers of a large
wave hold more than 2**31 elements.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, overload

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

# Newer Triton warns unless this is decided; contracting a*b+c is what PyTorch's own kernels do.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""Triton's interpreter multiplies bfloat16 as bit patterns; there products are taken in float32."""


class View(NamedTuple):
    """A tensor as (sample, position, channel[, front]) with its strides, in elements.

    Kernels take it whole, and other records whose parts always travel together; an absent one, or
    a part that is absent, is None, and the code that would read it is not compiled.
    """

    tensor: Tensor
    strides: tuple[int, ...]


@overload
def view(x: Tensor) -> View: ...
@overload
def view(x: None) -> None: ...
@overload
def view(x: Tensor | None) -> View | None: ...
def view(x: Tensor | None) -> View | None:
    """(N, C, ...) as (sample, position, channel); a copy only where H and W do not collapse."""
    if x is None:
        return None
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


def flat(positions: int, *views: View | None) -> bool:
    """Whether the rows of all `views` lie at equal distances."""
    return all(v is None or v.strides[0] == positions * v.strides[1] for v in views)


def launch(kernel: Any, programs: int, *arguments: object, **fixed: object) -> None:
    """Run `programs` of a kernel. `fixed`: its constants, and Triton's num_warps, num_stages."""
    kernel[(programs,)](*arguments, **fixed)


@triton.jit
def tile_rows(tile, rows, ROWS: tl.constexpr):
    """Numbers (ROWS,) of a tile's rows within their lane, and which of them exist."""
    row = tile * ROWS + tl.arange(0, ROWS)
    return row, row < rows


@triton.jit
def row_offsets(first, row, positions, strides, FLAT: tl.constexpr):
    """64-bit offsets (ROWS,) of rows counted from sample `first`.

    strides: (sample, position, channel).
    """
    row = row.to(tl.int64)
    if FLAT:
        return (first * positions + row) * strides[1]
    return (first + row // positions) * strides[0] + (row % positions) * strides[1]


@triton.jit
def tile_offsets(first, row, column, positions, strides, FLAT: tl.constexpr):
    """64-bit offsets (ROWS, COLS) of a tile."""
    rows = row_offsets(first, row, positions, strides, FLAT)
    return rows[:, None] + (column.to(tl.int64) * strides[2])[None, :]


@triton.jit
def load_tile(view, first, row, column, mask, positions, FLAT: tl.constexpr):
    """A tile, zero where masked out; view: (pointer, strides)."""
    pointer, strides = view
    offsets = tile_offsets(first, row, column, positions, strides, FLAT)
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def store_tile(view, values, first, row, column, mask, positions, FLAT: tl.constexpr):
    """Store float32 `values` in the dtype behind the view's pointer."""
    pointer, strides = view
    offsets = tile_offsets(first, row, column, positions, strides, FLAT)
    tl.store(pointer + offsets, narrow(values, pointer), mask=mask)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a @ b + acc in float32; unlike dtypes meet in TF32, which holds float16 exactly."""
    if a.dtype != b.dtype:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32")
    elif INTERPRETED:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


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
        launch(
            sum_partials_kernel, triton.cdiv(size, tile_size),
            partial, out, count, size, partial.stride(dim), partial.stride(1 - dim),
            COUNT=tile_count, SIZE=tile_size, num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def cast_kernel(x, out, size, BLOCK: tl.constexpr):
    """out = x in out's dtype; for hosts without a tensor library."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(out + at, narrow(value, out), mask=at < size)
