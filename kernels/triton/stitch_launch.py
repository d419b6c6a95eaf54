"""Launchers of `stitch_hint`: when to fuse, when to write e, and how far to split rows.

y is recomputed in backward, never stored for it. Up to FUSED input channels one kernel holds a row
tile of x and uses it for y and for dW. Beyond, y would be recomputed for every block of dW, so e is
written first, for at most WORKSPACE bytes of lanes at a time, and dW is a plain product. Partial
sums of dW over splits of the rows are bounded by WORKSPACE as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..layout import fronts_like, stitched
from .common import channels_last, row_tiles, sum_partials
from .stitch_hint import (
    fused_gradient_kernel,
    input_gradient_kernel,
    stitch_kernel,
    weight_gradient_kernel,
)
from .tiles import choose

FUSED = 128
WORKSPACE = 256 << 20
_PROGRAMS = 1024  # fills any current GPU a few times over


class Stitch(NamedTuple):
    """The forward inputs; weight in x's dtype."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    x_index: Tensor
    target: Tensor | None
    target_index: Tensor | None

    def sizes(self) -> tuple[int, int, int, int, int]:
        """(lanes, samples, positions, c1, c2)."""
        lanes, c2, c1 = self.weight.shape
        return lanes, self.x.shape[1], fronts(self.x).shape[3], c1, c2

    def lanes_inner(self) -> bool:
        """Whether neighbours share a row tile (re-reading weights) or a lane (re-reading rows)."""
        lanes, samples, positions, c1, c2 = self.sizes()
        return lanes * c1 * c2 < samples * positions * (c1 + c2)


class Grads(NamedTuple):
    """Incoming gradients: of y, of dist2, either may be absent."""

    y: Tensor | None
    dist2: Tensor | None


NONE = Grads(None, None)


def fronts(x: Tensor) -> Tensor:
    """(S, B, C, H, W), tokens (S, B, T, C) or vectors (S, B, C) as (S, B, C, positions)."""
    if x.dim() == 3:
        return x.unsqueeze(-1)
    if x.dim() == 4:
        return x.transpose(2, 3)
    if 1 in x.shape[3:] or x.stride(3) == x.shape[4] * x.stride(4):
        return x.flatten(3)
    return channels_last(x.flatten(0, 1)).flatten(2).unflatten(0, x.shape[:2])


def by_position(y: Tensor | None) -> Tensor | None:
    """(L*B, C, H, W), tokens (L*B, T, C) or vectors (L*B, C) as (L*B, C, positions)."""
    return None if y is None else fronts(y.unsqueeze(0)).squeeze(0)


def strides(x: Tensor | None) -> tuple[int, ...]:
    """(sample, position, channel, front) of a (fronts, samples, channels, positions) view."""
    if x is None:
        return (0, 0, 0, 0)
    front = x.stride(0) if x.dim() == 4 else 0
    return x.stride(-3), x.stride(-1), x.stride(-2), front


def precision(dtype: torch.dtype) -> str:
    """float32 products: three TF32 passes unless PyTorch's own may use TF32 ("high")."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "tf32x3"
    return "tf32"


def stitch_hint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Tensor,
    target: Tensor | None,
    target_index: Tensor | None,
    write: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(y or None, dist2 (L, B) or None)."""
    stitch = Stitch(x, weight.to(x.dtype).contiguous(), bias.contiguous(), x_index, target,
                    target_index)  # fmt: skip
    lanes, samples, _, _, c2 = stitch.sizes()
    y = stitched(x, lanes * samples, c2) if write else None
    dist2 = None if target is None else x.new_zeros(lanes, samples, dtype=torch.float32)
    _product(stitch, y, dist2)
    return y, dist2


def _product(stitch: Stitch, y: Tensor | None, dist2: Tensor | None, grads: Grads = NONE):
    """y and dist2; or e into y where there is a gradient."""
    lanes, samples, positions, c1, c2 = stitch.sizes()
    if not lanes * samples * positions:
        return
    x, target, given, out = fronts(stitch.x), stitch.target, by_position(grads.y), by_position(y)
    target = None if target is None else fronts(target)
    tile = choose("stitch", stitch.x, c2, c1)
    pos, tiles = row_tiles(samples, positions, tile.rows)
    parts = triton.cdiv(c2, tile.cols)
    partial = None
    if dist2 is not None:
        pieces = parts * triton.cdiv(positions, pos)
        partial = x.new_empty(lanes * samples, pieces, dtype=torch.float32)
    stitch_kernel[(lanes * tiles * parts,)](
        x, stitch.weight, stitch.bias, stitch.x_index, target, stitch.target_index, given,
        grads.dist2, out, partial, lanes, samples, positions, c1, c2, tiles, parts,
        strides(x), strides(target), strides(given), strides(out),
        GRADIENT=grads.dist2 is not None, PRECISION=precision(x.dtype),
        LANES_INNER=stitch.lanes_inner(), POS=pos, ROWS=tile.rows, COLS=tile.cols,
        INNER=tile.inner, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if partial is not None:
        sum_partials(partial, 1, dist2)


def stitch_hint_backward(
    grad_y: Tensor | None,
    grad_dist2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Tensor,
    target: Tensor | None,
    target_index: Tensor | None,
    order: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dW, db, dx or None), dW and db in the dtypes of `weight` and `bias`.

    order: where dx is wanted, (lanes sorted by front, where each front's lanes start, and the end).
    """
    stitch = Stitch(x, weight.to(x.dtype).contiguous(), bias.contiguous(), x_index, target,
                    target_index)  # fmt: skip
    grads = Grads(grad_y, None if grad_dist2 is None else grad_dist2.contiguous())
    dw = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    db = torch.zeros_like(bias, memory_format=torch.contiguous_format)
    if not weight.shape[0] * x.numel():
        return dw, db, None if order is None else fronts_like(x).zero_()
    if order is not None:
        e = _residual(stitch, grads)
        _weight_gradient(stitch, e, dw, db)
        return dw, db, _input_gradient(stitch, e, *order)
    if grads.dist2 is not None and weight.shape[2] <= FUSED:
        _fused_gradient(stitch, grads, dw, db)
        return dw, db, None
    for part, given, lanes in _groups(stitch, grads):
        _weight_gradient(part, _residual(part, given), dw[lanes], db[lanes])
    return dw, db, None


def _groups(stitch: Stitch, grads: Grads) -> Iterator[tuple[Stitch, Grads, slice]]:
    """All lanes at once if e need not be written; else groups of at most WORKSPACE bytes of e."""
    lanes, samples, positions, _, c2 = stitch.sizes()
    one = samples * positions * c2 * 4
    size = lanes if grads.dist2 is None else max(WORKSPACE // one, 1)
    for start in range(0, lanes, size):
        part = slice(start, min(start + size, lanes))
        rows = slice(part.start * samples, part.stop * samples)
        yield (
            stitch._replace(
                weight=stitch.weight[part],
                bias=stitch.bias[part],
                x_index=stitch.x_index[part],
                target_index=None if stitch.target is None else stitch.target_index[part],
            ),
            Grads(*(None if g is None else g[r] for g, r in zip(grads, (rows, part), strict=True))),
            part,
        )


def _residual(stitch: Stitch, grads: Grads) -> Tensor:
    """e = grad_y + 2 * grad_dist2 * (y - target), in float32 where float16 has not the range."""
    if grads.dist2 is None:
        return grads.y
    lanes, samples, _, _, c2 = stitch.sizes()
    dtype = torch.float32 if stitch.x.dtype == torch.float16 else stitch.x.dtype
    e = stitched(stitch.x, lanes * samples, c2, dtype)
    _product(stitch, e, None, grads)
    return e


def _splits(stitch: Stitch, parts: int, tiles: int) -> tuple[int, int]:
    """(splits of the rows, row tiles a split): enough programs, bounded partial sums."""
    lanes, _, _, c1, c2 = stitch.sizes()
    wanted = min(triton.cdiv(_PROGRAMS, lanes * parts), WORKSPACE // (lanes * c1 * c2 * 4), tiles)
    each = triton.cdiv(tiles, max(wanted, 1))
    return triton.cdiv(tiles, each), each


def _partials(splits: int, out: Tensor) -> Tensor:
    """Where the splits of `out` go: `out` itself for one."""
    return out if splits == 1 else out.new_empty(splits, out.numel(), dtype=torch.float32)


def _finish(partial: Tensor, out: Tensor) -> None:
    if partial is not out:
        sum_partials(partial, 0, out)


def _fused_gradient(stitch: Stitch, grads: Grads, dw: Tensor, db: Tensor) -> None:
    lanes, samples, positions, c1, c2 = stitch.sizes()
    x, target, given = fronts(stitch.x), fronts(stitch.target), by_position(grads.y)
    tile = choose("fused_gradient", stitch.x, c2, c1)
    pos, tiles = row_tiles(samples, positions, tile.rows)
    parts = triton.cdiv(c2, tile.cols)
    splits, each = _splits(stitch, parts, tiles)
    partial_w, partial_b = _partials(splits, dw), _partials(splits, db)
    fused_gradient_kernel[(lanes * splits * parts,)](
        x, stitch.weight, stitch.bias, stitch.x_index, target, stitch.target_index, given,
        grads.dist2, partial_w, partial_b, lanes, samples, positions, c1, c2, splits, each, parts,
        strides(x), strides(target), strides(given), PRECISION=precision(x.dtype),
        LANES_INNER=stitch.lanes_inner(), POS=pos, ROWS=tile.rows, COLS=tile.cols,
        DEPTH=tile.inner, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _finish(partial_w, dw)
    _finish(partial_b, db)


def _weight_gradient(stitch: Stitch, e: Tensor, dw: Tensor, db: Tensor) -> None:
    lanes, samples, positions, c1, c2 = stitch.sizes()
    x, e = fronts(stitch.x), by_position(e)
    tile = choose("weight_gradient", stitch.x, c2, c1)
    pos, tiles = row_tiles(samples, positions, tile.rows)
    blocks = triton.cdiv(c1, tile.inner)
    parts = triton.cdiv(c2, tile.cols) * blocks
    splits, each = _splits(stitch, parts, tiles)
    partial_w, partial_b = _partials(splits, dw), _partials(splits, db)
    weight_gradient_kernel[(lanes * splits * parts,)](
        x, stitch.x_index, e, partial_w, partial_b, lanes, samples, positions, c1, c2, splits,
        each, blocks, parts, strides(x), strides(e), PRECISION=precision(x.dtype),
        LANES_INNER=stitch.lanes_inner(), POS=pos, ROWS=tile.rows, COLS=tile.cols,
        DEPTH=tile.inner, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _finish(partial_w, dw)
    _finish(partial_b, db)


def _input_gradient(stitch: Stitch, e: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """dx of every front, summed over its lanes in their order."""
    _, samples, positions, c1, c2 = stitch.sizes()
    count = stitch.x.shape[0]
    dx = fronts_like(stitch.x)
    tile = choose("input_gradient", stitch.x, c1, c2)
    pos, tiles = row_tiles(samples, positions, tile.rows)
    e, out = by_position(e), by_position(dx.flatten(0, 1))
    input_gradient_kernel[(count * tiles * triton.cdiv(c1, tile.cols),)](
        e, stitch.weight, order, starts, out, samples, positions, c1, c2, count, tiles,
        strides(e), strides(out), PRECISION=precision(e.dtype), POS=pos, ROWS=tile.rows,
        COLS=tile.cols, INNER=tile.inner, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dx
