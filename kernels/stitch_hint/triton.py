"""Launchers of `stitch_hint`: when to fuse, when to write e, and how far to split rows.

y is recomputed in backward, never stored for it. Up to FUSED input channels one kernel holds a row
tile of x and uses it for y and for dW. Beyond, y would be recomputed for every block of dW, so e is
written first, for at most WORKSPACE bytes of lanes at a time, and dW is a plain product. Partial
sums of dW over splits of the rows are bounded by WORKSPACE as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import overload

import torch
import triton
from torch import Tensor

from ...errors import FulaError, not_none
from ..shared.device import View, channels_last, flat, launch, sum_partials
from ..shared.layout import fronts_like, stitched
from ..shared.operators import Incoming
from ..shared.tiles import choose
from .arguments import StitchHintArguments
from .device import (
    Grads,
    StitchLaunch,
    StitchSizes,
    fused_gradient_kernel,
    input_gradient_kernel,
    stitch_kernel,
    weight_gradient_kernel,
)

FUSED = {torch.float32: 64, torch.bfloat16: 128, torch.float16: 128}
WORKSPACE = 256 << 20
_PROGRAMS = 1024  # fills any current GPU a few times over


def _lanes_inner(sizes: StitchSizes) -> bool:
    """Whether neighbours share a row tile (re-reading weights) or a lane (re-reading rows)."""
    lanes, samples, positions, c1, c2 = sizes
    return lanes * c1 * c2 < samples * positions * (c1 + c2)


def fronts(x: Tensor) -> Tensor:
    """(S, B, C, H, W), tokens (S, B, T, C) or vectors (S, B, C) as (S, B, C, positions)."""
    if x.dim() == 3:
        return x.unsqueeze(-1)
    if x.dim() == 4:
        return x.transpose(2, 3)
    if 1 in x.shape[3:] or x.stride(3) == x.shape[4] * x.stride(4):
        return x.flatten(3)
    return channels_last(x.flatten(0, 1)).flatten(2).unflatten(0, x.shape[:2])


@overload
def located(x: Tensor) -> View: ...
@overload
def located(x: Tensor | None) -> View | None: ...
def located(x: Tensor | None) -> View | None:
    """Fronts or targets with their strides (sample, position, channel, front)."""
    if x is None:
        return None
    x = fronts(x)
    return View(x, (x.stride(1), x.stride(3), x.stride(2), x.stride(0)))


@overload
def lanes_located(y: Tensor) -> View: ...
@overload
def lanes_located(y: Tensor | None) -> View | None: ...
def lanes_located(y: Tensor | None) -> View | None:
    """Outputs (L*B, C, H, W), tokens (L*B, T, C) or vectors (L*B, C), likewise."""
    return located(None if y is None else y.unsqueeze(0))


def precision(dtype: torch.dtype) -> str:
    """float32 products: three TF32 passes unless PyTorch's own may use TF32 ("high")."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "tf32x3"
    return "tf32"


def _stitch(a: StitchHintArguments) -> StitchLaunch:
    cast = a.weight.to(a.x.dtype).contiguous()
    fronts, aims = (_index(tuple(i), a.x.device) for i in (a.x_index, a.target_index))
    return StitchLaunch(located(a.x), cast, a.bias.contiguous(), fronts, located(a.target), aims)


@cache
def _index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """`numbers` on the device, int32. Never dropped: captured graphs keep reading it."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise FulaError(
            f"lane index {list(numbers)} is new inside a CUDA graph capture; run the step once "
            "before capturing it"
        )
    return torch.tensor(numbers, dtype=torch.int32, device=device)


@cache
def _by_front(x_index: tuple[int, ...], fronts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(lanes sorted by front, where each front's lanes start, and the end)."""
    order = sorted(range(len(x_index)), key=lambda lane: x_index[lane])
    starts = [sum(i < front for i in x_index) for front in range(fronts + 1)]
    return tuple(order), tuple(starts)


def forward(a: StitchHintArguments) -> tuple[Tensor | None, Tensor | None]:
    """(y or None, dist2 (L, B) or None)."""
    with torch.cuda.device_of(a.x):
        stitch = _stitch(a)
        lanes, samples, _, _, c2 = stitch.sizes()
        y = stitched(a.x, lanes * samples, c2) if a.write else None
        dist2 = None
        if a.target is not None:
            dist2 = a.x.new_empty(lanes, samples, dtype=torch.float32)
        _product(stitch, y, dist2, Grads(None, None))
    return y, dist2


def _product(stitch: StitchLaunch, y: Tensor | None, dist2: Tensor | None, grads: Grads) -> None:
    """y and dist2; or e into y where there is a gradient."""
    sizes = stitch.sizes()
    lanes, samples, positions, c1, c2 = sizes
    if not lanes * samples * positions:
        if dist2 is not None:
            dist2.zero_()
        return
    x, out = stitch.x.tensor, lanes_located(y)
    even = flat(positions, stitch.x, stitch.target, grads.grad_y, out)
    tile = choose("stitch", x, c2, c1, flat=even)
    tiles, parts = triton.cdiv(samples * positions, tile.rows), triton.cdiv(c2, tile.cols)
    partial = None
    if dist2 is not None:
        partial = dist2.new_empty(dist2.numel(), positions * parts)
    launch(
        stitch_kernel, lanes * tiles * parts,
        stitch, grads, out, partial, sizes, tiles, parts,
        GRADIENT=grads.grad_dist2 is not None, PRECISION=precision(x.dtype),
        LANES_INNER=_lanes_inner(sizes), FLAT=even,
        ROWS=tile.rows, COLS=tile.cols, INNER=tile.inner,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if partial is not None and dist2 is not None:
        sum_partials(partial, 1, dist2)


def backward(
    a: StitchHintArguments, incoming: Incoming, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dW, db, dx or None), dW and db in the dtypes of weight and bias."""
    full = len(a.weight) * a.x.numel() > 0  # then kernels write every element
    new = torch.empty_like if full else torch.zeros_like
    dw = new(a.weight, memory_format=torch.contiguous_format)
    db = new(a.bias, memory_format=torch.contiguous_format)
    dx = fronts_like(a.x) if need_dx else None
    if not full and dx is not None:
        dx.zero_()
    if full:
        with torch.cuda.device_of(a.x):
            _gradients(a, incoming, dw, db, dx)
    return dw, db, dx


def _gradients(
    a: StitchHintArguments, incoming: Incoming, dw: Tensor, db: Tensor, dx: Tensor | None
) -> None:
    stitch, (dy, ddist2) = _stitch(a), incoming
    grads = Grads(lanes_located(dy), None if ddist2 is None else ddist2.contiguous())
    if dx is not None:
        e = lanes_located(_residual(a.x, stitch, grads, dy))
        _weight_gradient(stitch, e, dw, db)
        order = (_index(part, a.x.device) for part in _by_front(tuple(a.x_index), len(a.x)))
        _input_gradient(stitch, e, lanes_located(dx.flatten(0, 1)), *order)
    elif ddist2 is not None and a.weight.shape[2] <= FUSED[a.x.dtype]:
        _fused_gradient(stitch, grads, dw, db)
    else:
        for part, given, whole, lanes in _groups(stitch, grads, dy):
            e = lanes_located(_residual(a.x, part, given, whole))
            _weight_gradient(part, e, dw[lanes], db[lanes])


def _groups(
    stitch: StitchLaunch, grads: Grads, grad_y: Tensor | None
) -> Iterator[tuple[StitchLaunch, Grads, Tensor | None, slice]]:
    """All lanes at once if e need not be written; else groups of at most WORKSPACE bytes of e."""
    lanes, samples, positions, _, c2 = stitch.sizes()
    size = lanes
    if grads.grad_dist2 is not None:
        size = max(WORKSPACE // (samples * positions * c2 * 4), 1)
    for start in range(0, lanes, size):
        part = slice(start, min(start + size, lanes))
        given = None if grad_y is None else grad_y[part.start * samples : part.stop * samples]
        dist2 = None if grads.grad_dist2 is None else grads.grad_dist2[part]
        lanes_of = stitch._replace(
            weight=stitch.weight[part],
            bias=stitch.bias[part],
            x_index=stitch.x_index[part],
            target_index=stitch.target_index[part],
        )
        yield lanes_of, Grads(lanes_located(given), dist2), given, part


def _residual(x: Tensor, stitch: StitchLaunch, grads: Grads, grad_y: Tensor | None) -> Tensor:
    """e = grad_y + 2 * grad_dist2 * (y - target), in float32 where float16 has not the range."""
    if grads.grad_dist2 is None:
        return not_none(grad_y)
    lanes, samples, _, _, c2 = stitch.sizes()
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    e = stitched(x, lanes * samples, c2, dtype)
    _product(stitch, e, None, grads)
    return e


def _splits(stitch: StitchLaunch, parts: int, rows: int) -> tuple[int, int]:
    """(splits of the rows, row tiles a split): enough programs, bounded partial sums."""
    lanes, samples, positions, c1, c2 = stitch.sizes()
    tiles = triton.cdiv(samples * positions, rows)
    wanted = min(triton.cdiv(_PROGRAMS, lanes * parts), WORKSPACE // (lanes * c1 * c2 * 4), tiles)
    each = triton.cdiv(tiles, max(wanted, 1))
    return triton.cdiv(tiles, each), each


def _partials(splits: int, out: Tensor) -> Tensor:
    """Where the splits of `out` go: `out` itself for one."""
    return out if splits == 1 else out.new_empty(splits, out.numel(), dtype=torch.float32)


def _finish(partial: Tensor, out: Tensor) -> None:
    if partial is not out:
        sum_partials(partial, 0, out)


def _fused_gradient(stitch: StitchLaunch, grads: Grads, dw: Tensor, db: Tensor) -> None:
    sizes = stitch.sizes()
    lanes, _, positions, c1, c2 = sizes
    x = stitch.x.tensor
    even = flat(positions, stitch.x, stitch.target, grads.grad_y)
    tile = choose("fused_gradient", x, c2, c1, flat=even)
    parts = triton.cdiv(c2, tile.cols)
    splits, each = _splits(stitch, parts, tile.rows)
    partial_w, partial_b = _partials(splits, dw), _partials(splits, db)
    launch(
        fused_gradient_kernel, lanes * splits * parts,
        stitch, grads, partial_w, partial_b, sizes, splits, each, parts,
        PRECISION=precision(x.dtype), LANES_INNER=_lanes_inner(sizes), FLAT=even,
        ROWS=tile.rows, COLS=tile.cols, DEPTH=max(triton.next_power_of_2(c1), 16),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _finish(partial_w, dw)
    _finish(partial_b, db)


def _weight_gradient(stitch: StitchLaunch, e: View, dw: Tensor, db: Tensor) -> None:
    sizes = stitch.sizes()
    lanes, _, positions, c1, c2 = sizes
    x = stitch.x
    even = flat(positions, x, e)
    tile = choose("weight_gradient", x.tensor, c2, c1, flat=even)
    blocks = triton.cdiv(c1, tile.inner)
    parts = triton.cdiv(c2, tile.cols) * blocks
    splits, each = _splits(stitch, parts, tile.rows)
    partial_w, partial_b = _partials(splits, dw), _partials(splits, db)
    launch(
        weight_gradient_kernel, lanes * splits * parts,
        x, stitch.x_index, e, partial_w, partial_b, sizes, splits, each, blocks, parts,
        PRECISION=precision(x.tensor.dtype), LANES_INNER=_lanes_inner(sizes),
        FLAT=even, ROWS=tile.rows, COLS=tile.cols, DEPTH=tile.inner,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _finish(partial_w, dw)
    _finish(partial_b, db)


def _input_gradient(stitch: StitchLaunch, e: View, dx: View, order: Tensor, starts: Tensor) -> None:
    """dx of every front, summed over its lanes in their order."""
    sizes = stitch.sizes()
    _, samples, positions, c1, c2 = sizes
    count = len(stitch.x.tensor)
    even = flat(positions, e, dx)
    tile = choose("input_gradient", stitch.x.tensor, c1, c2, flat=even)
    tiles = triton.cdiv(samples * positions, tile.rows)
    launch(
        input_gradient_kernel, count * tiles * triton.cdiv(c1, tile.cols),
        e, stitch.weight, order, starts, dx, sizes, count, tiles,
        PRECISION=precision(e.tensor.dtype), FLAT=even,
        ROWS=tile.rows, COLS=tile.cols, INNER=tile.inner,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
