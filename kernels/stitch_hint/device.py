"""Device code of `stitch_hint`: every lane's affine stitch, its distance, and their gradients.

    y_l = W_l x[x_index_l] + b_l,   dist2_l = sum over a sample of (y_l - target[target_index_l])**2

Shared fronts and targets are read through the lane's index; x and target are (front, sample,
position, channel) with any strides, W is contiguous (L, C2, C1). With e = grad_y + 2 * grad_dist2 *
(y - target), the gradients are dW_l = e^T x, db_l = sum of e, dx_s = sum over lanes of s of e W_l.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..shared.device import View, dot, load_tile, store_tile, tile_rows


class StitchLaunch(NamedTuple):
    """The forward inputs as kernels take them: x and target located, weight in x's dtype."""

    x: View
    weight: Tensor
    bias: Tensor
    x_index: Tensor
    target: View | None
    target_index: Tensor

    def sizes(self) -> StitchSizes:
        """How much there is of each."""
        _, samples, c1, positions = self.x.tensor.shape
        return StitchSizes(len(self.weight), samples, positions, c1, self.weight.shape[1])


class StitchSizes(NamedTuple):
    """lanes, samples of each, positions of a sample, channels in (c1) and out (c2)."""

    lanes: int
    samples: int
    positions: int
    c1: int
    c2: int


class Grads(NamedTuple):
    """Incoming gradients: of y (located), of dist2 (L, B); either may be absent."""

    grad_y: View | None
    grad_dist2: Tensor | None


@triton.jit
def place(lanes, tiles, parts, LANES_INNER: tl.constexpr):
    """(lane, tile, part) of this program; neighbours share what should stay in the L2 cache."""
    pid = tl.program_id(0)
    if LANES_INNER:
        return pid % lanes, pid // lanes // parts, (pid // lanes) % parts
    return pid // parts // tiles, (pid // parts) % tiles, pid % parts


@triton.jit
def chosen(view, index, lane):
    """The front or target of `lane`, (pointer, strides)."""
    return view.tensor + tl.load(index + lane).to(tl.int64) * view.strides[3], view.strides


@triton.jit
def residual_gradient(y, stitch, grads, lane, row, column, mask, valid, sizes,
                      FLAT: tl.constexpr):  # fmt: skip
    """e = grad_y + 2 * grad_dist2 * (y - target), zero where masked out."""
    positions = sizes.positions
    first = lane.to(tl.int64) * sizes.samples
    e = tl.zeros_like(y)
    if grads.grad_y is not None:
        e += load_tile(grads.grad_y, first, row, column, mask, positions, FLAT).to(tl.float32)
    if grads.grad_dist2 is not None:
        goal = chosen(stitch.target, stitch.target_index, lane)
        aimed = load_tile(goal, 0, row, column, mask, positions, FLAT)
        share = tl.load(grads.grad_dist2 + first + row // positions, mask=valid, other=0.0)
        e += (2.0 * share)[:, None] * (y - aimed.to(tl.float32))
    return tl.where(mask, e, 0.0)


@triton.jit
def stitch_kernel(stitch: StitchLaunch, grads: Grads, y: View, partial,
                  sizes: StitchSizes, tiles, parts,
                  GRADIENT: tl.constexpr, PRECISION: tl.constexpr, LANES_INNER: tl.constexpr,
                  FLAT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                  INNER: tl.constexpr):  # fmt: skip
    """One tile of y (where asked) and its rows' squared distances in partial[lane, row, part]; or,
    if GRADIENT, one tile of e, into y."""
    lanes, samples, positions, c1, c2 = sizes
    lane, tile, part = place(lanes, tiles, parts, LANES_INNER)
    row, valid = tile_rows(tile, samples * positions, ROWS)
    column = part * COLS + tl.arange(0, COLS)
    held = column < c2
    front = chosen(stitch.x, stitch.x_index, lane)
    w_rows = stitch.weight + (lane.to(tl.int64) * c2 + column) * c1
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, c1, INNER):
        k = start + tl.arange(0, INNER)
        used = k < c1
        a = load_tile(front, 0, row, k, valid[:, None] & used[None, :], positions, FLAT)
        w = tl.load(w_rows[None, :] + k[:, None], mask=held[None, :] & used[:, None], other=0.0)
        acc = dot(a, w, acc, PRECISION)
    acc += tl.load(stitch.bias + lane * c2 + column, mask=held, other=0.0).to(tl.float32)[None, :]
    mask = valid[:, None] & held[None, :]
    first = lane.to(tl.int64) * samples
    if partial is not None:
        goal = chosen(stitch.target, stitch.target_index, lane)
        aimed = load_tile(goal, 0, row, column, mask, positions, FLAT)
        apart = tl.where(mask, acc - aimed.to(tl.float32), 0.0)
        out = partial + (first * positions + row) * parts + part
        tl.store(out, tl.sum(apart * apart, 1), mask=valid)
    if GRADIENT:
        acc = residual_gradient(acc, stitch, grads, lane, row, column, mask, valid, sizes, FLAT)
    if y is not None:
        store_tile(y, acc, first, row, column, mask, positions, FLAT)


@triton.jit
def fused_gradient_kernel(stitch: StitchLaunch, grads: Grads, dw, db,
                          sizes: StitchSizes, splits, tiles, parts,
                          PRECISION: tl.constexpr, LANES_INNER: tl.constexpr, FLAT: tl.constexpr,
                          ROWS: tl.constexpr, COLS: tl.constexpr,
                          DEPTH: tl.constexpr):  # fmt: skip
    """dw[split, lane], db[split, lane] of COLS outputs and all c1 <= DEPTH inputs, one pass over x.

    A split is `tiles` row tiles. W's block stays on chip; every row tile of x serves y and dW.
    """
    lanes, samples, positions, c1, c2 = sizes
    lane, split, part = place(lanes, splits, parts, LANES_INNER)
    column = part * COLS + tl.arange(0, COLS)
    k = tl.arange(0, DEPTH)
    held, used = column < c2, k < c1
    block = (lane.to(tl.int64) * c2 + column)[:, None] * c1 + k[None, :]  # (COLS, DEPTH)
    within = held[:, None] & used[None, :]
    w = tl.load(stitch.weight + block, mask=within, other=0.0)
    offset = tl.load(stitch.bias + lane * c2 + column, mask=held, other=0.0).to(tl.float32)
    front = chosen(stitch.x, stitch.x_index, lane)
    acc = tl.zeros((COLS, DEPTH), tl.float32)
    acc_b = tl.zeros((COLS,), tl.float32)
    for i in range(tiles):
        row, valid = tile_rows(split * tiles + i, samples * positions, ROWS)
        a = load_tile(front, 0, row, k, valid[:, None] & used[None, :], positions, FLAT)
        y = dot(a, tl.trans(w), tl.zeros((ROWS, COLS), tl.float32), PRECISION) + offset[None, :]
        mask = valid[:, None] & held[None, :]
        e = residual_gradient(y, stitch, grads, lane, row, column, mask, valid, sizes, FLAT)
        acc_b += tl.sum(e, 0)
        if stitch.x.tensor.dtype.element_ty == tl.bfloat16:  # float16: not the range of gradients
            e = e.to(tl.bfloat16)
        acc = dot(tl.trans(e), a, acc, PRECISION)
    out = (split * lanes).to(tl.int64) * c2
    tl.store(dw + out * c1 + block, acc.to(dw.dtype.element_ty), mask=within)
    tl.store(db + out + lane * c2 + column, acc_b.to(db.dtype.element_ty), mask=held)


@triton.jit
def weight_gradient_kernel(x: View, x_index, e: View, dw, db,
                           sizes: StitchSizes, splits, tiles, blocks, parts,
                           PRECISION: tl.constexpr, LANES_INNER: tl.constexpr, FLAT: tl.constexpr,
                           ROWS: tl.constexpr, COLS: tl.constexpr,
                           DEPTH: tl.constexpr):  # fmt: skip
    """dw[split, lane] = e^T x for COLS outputs and DEPTH inputs; db with the first input block.

    parts = output blocks * `blocks` input blocks.
    """
    lanes, samples, positions, c1, c2 = sizes
    lane, split, part = place(lanes, splits, parts, LANES_INNER)
    column = (part // blocks) * COLS + tl.arange(0, COLS)
    k = (part % blocks) * DEPTH + tl.arange(0, DEPTH)
    held, used = column < c2, k < c1
    front = chosen(x, x_index, lane)
    first = lane.to(tl.int64) * samples
    acc = tl.zeros((COLS, DEPTH), tl.float32)
    acc_b = tl.zeros((COLS,), tl.float32)
    for i in range(tiles):
        row, valid = tile_rows(split * tiles + i, samples * positions, ROWS)
        a = load_tile(front, 0, row, k, valid[:, None] & used[None, :], positions, FLAT)
        mask = valid[:, None] & held[None, :]
        g = load_tile(e, first, row, column, mask, positions, FLAT)
        acc_b += tl.sum(g.to(tl.float32), 0)
        acc = dot(tl.trans(g), a, acc, PRECISION)
    out = (split * lanes).to(tl.int64) * c2
    block = (lane.to(tl.int64) * c2 + column)[:, None] * c1 + k[None, :]
    within = held[:, None] & used[None, :]
    tl.store(dw + out * c1 + block, acc.to(dw.dtype.element_ty), mask=within)
    if part % blocks == 0:
        tl.store(db + out + lane * c2 + column, acc_b.to(db.dtype.element_ty), mask=held)


@triton.jit
def input_gradient_kernel(e: View, weight, order, starts, dx: View,
                          sizes: StitchSizes, fronts, tiles,
                          PRECISION: tl.constexpr, FLAT: tl.constexpr,
                          ROWS: tl.constexpr, COLS: tl.constexpr, INNER: tl.constexpr):  # fmt: skip
    """A tile of dx[front] = sum of e_l W_l over the lanes l = order[starts[front]] onwards."""
    _, samples, positions, c1, c2 = sizes
    pid = tl.program_id(0)
    front = pid % fronts
    tile = (pid // fronts) % tiles
    column = (pid // fronts // tiles) * COLS + tl.arange(0, COLS)
    held = column < c1
    row, valid = tile_rows(tile, samples * positions, ROWS)
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for i in range(tl.load(starts + front), tl.load(starts + front + 1)):
        lane = tl.load(order + i).to(tl.int64)
        for start in range(0, c2, INNER):
            k = start + tl.arange(0, INNER)
            used = k < c2
            mask = valid[:, None] & used[None, :]
            g = load_tile(e, lane * samples, row, k, mask, positions, FLAT)
            block = (lane * c2 + k)[:, None] * c1 + column[None, :]
            w = tl.load(weight + block, mask=used[:, None] & held[None, :], other=0.0)
            acc = dot(g, w, acc, PRECISION)
    mask = valid[:, None] & held[None, :]
    first = front.to(tl.int64) * samples
    store_tile(dx, acc, first, row, column, mask, positions, FLAT)
