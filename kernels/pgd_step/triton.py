"""One projected ascent step in pixels, in one pass (linf) or one launch (l2).

    linf: clip(clean + clip(x + step * sign(g) - clean, -eps, eps), 0, 1)
    l2:   delta = x + step * g / |g| - clean;   clip(clean + delta * min(1, eps / |delta|), 0, 1)

A zero gradient or offset is left where it is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.device import launch, narrow, power_of_two
from ..shared.layout import laid_out, layout_of, like
from .arguments import PgdStepArguments


@triton.jit
def sign(x):
    """-1, 0 or 1; NaN stays NaN."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))


@triton.jit
def clip(x, low, high):
    """x within [low, high]; NaN stays NaN."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def linf_kernel(x, grad, clean, out, size, step, eps, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    held = at < size
    centre = tl.load(clean + at, mask=held, other=0.0).to(tl.float32)
    moved = tl.load(x + at, mask=held, other=0.0).to(tl.float32)
    moved += step * sign(tl.load(grad + at, mask=held, other=0.0).to(tl.float32))
    value = clip(centre + clip(moved - centre, -eps, eps), 0.0, 1.0)
    tl.store(out + at, narrow(value, out), mask=held)


@triton.jit
def inverse_root(square):
    """1 / sqrt(square), 0 at 0."""
    zero = square == 0.0
    return tl.where(zero, 0.0, 1.0 / tl.sqrt(tl.where(zero, 1.0, square)))


@triton.jit
def l2_kernel(x, grad, clean, out, size, step, eps, BLOCK: tl.constexpr):
    """One program per sample; three passes over it, all but the first from the cache."""
    first = tl.program_id(0).to(tl.int64) * size
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        g = tl.load(grad + first + at, mask=at < size, other=0.0).to(tl.float32)
        squares += g * g
    pace = step * inverse_root(tl.sum(squares, 0))
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        g = tl.load(grad + first + at, mask=at < size, other=0.0).to(tl.float32)
        moved = tl.load(x + first + at, mask=at < size, other=0.0).to(tl.float32) + pace * g
        offset = moved - tl.load(clean + first + at, mask=at < size, other=0.0).to(tl.float32)
        squares += offset * offset
    shrink = clip(eps * inverse_root(tl.sum(squares, 0)), 0.0, 1.0)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        g = tl.load(grad + first + at, mask=at < size, other=0.0).to(tl.float32)
        moved = tl.load(x + first + at, mask=at < size, other=0.0).to(tl.float32) + pace * g
        centre = tl.load(clean + first + at, mask=at < size, other=0.0).to(tl.float32)
        value = clip(centre + (moved - centre) * shrink, 0.0, 1.0)
        tl.store(out + first + at, narrow(value, out), mask=at < size)


def forward(a: PgdStepArguments) -> Tensor:
    """The next x_adv, as `layout.like(x_adv)`."""
    out, layout = like(a.x_adv), layout_of(a.x_adv)
    if not out.numel():
        return out
    x, grad, clean = (laid_out(t, layout) for t in (a.x_adv, a.grad, a.x_clean))
    with torch.cuda.device_of(x):
        if a.norm == "linf":
            launch(
                linf_kernel,
                triton.cdiv(x.numel(), 2048),
                x,
                grad,
                clean,
                out,
                x.numel(),
                a.step,
                a.eps,
                BLOCK=2048,
                num_warps=4,
            )
        else:
            size = x[0].numel()
            block = power_of_two(size, 4096)
            launch(
                l2_kernel,
                len(x),
                x,
                grad,
                clean,
                out,
                size,
                a.step,
                a.eps,
                BLOCK=block,
                num_warps=8,
            )
    return out
