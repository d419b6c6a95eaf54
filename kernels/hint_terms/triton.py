"""Squared distances of any number of depths in one launch, and their gradients.

    dist2_i[l, b] = sum over a sample of (a_i - t_i)**2,   grad a_i = 2 * grad_dist2_i * (a_i - t_i)

A program finds its depth by comparing its number with each depth's first one; pointers and sizes
come in tuples, so nothing is copied to the device. Samples are contiguous runs of `sizes[i]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.device import launch, narrow, power_of_two
from ..shared.layout import laid_out, layout_of, like
from .arguments import HintTermsArguments


@triton.jit
def depth_of(pid, firsts, activations, targets, others, samples, sizes, COUNT: tl.constexpr):
    """(program within its depth, activation, target, other pointer, samples, size) of `pid`."""
    first, a, t, o = firsts[0], activations[0], targets[0], others[0]
    n, size = samples[0], sizes[0]
    for i in tl.static_range(1, COUNT):
        later = pid >= firsts[i]
        first = tl.where(later, firsts[i], first)
        a = tl.where(later, activations[i], a)
        t = tl.where(later, targets[i], t)
        o = tl.where(later, others[i], o)
        n = tl.where(later, samples[i], n)
        size = tl.where(later, sizes[i], size)
    return pid - first, a, t, o, n, size


@triton.jit
def distances_kernel(activations, targets, outs, firsts, samples, sizes,
                     COUNT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """outs[i][l * B + b]: one program per sample of every lane and depth."""
    row, a, t, out, n, size = depth_of(
        tl.program_id(0), firsts, activations, targets, outs, samples, sizes, COUNT
    )
    a += row.to(tl.int64) * size
    t += (row % n).to(tl.int64) * size
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(a + at, mask=at < size, other=0.0).to(tl.float32)
        apart = value - tl.load(t + at, mask=at < size, other=0.0).to(tl.float32)
        total += apart * apart
    tl.store(out + row, tl.sum(total, 0))


@triton.jit
def gradients_kernel(activations, targets, grads, shares, firsts, pieces, samples, sizes,
                     COUNT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """grads[i] = 2 * shares[i] * (a_i - t_i): programs of a depth are (sample, piece)."""
    pid = tl.program_id(0)
    item, a, t, grad, n, size = depth_of(
        pid, firsts, activations, targets, grads, samples, sizes, COUNT
    )
    _, _, _, share, _, count = depth_of(
        pid, firsts, activations, targets, shares, samples, pieces, COUNT
    )
    row = item // count
    at = (item % count) * BLOCK + tl.arange(0, BLOCK)
    a += row.to(tl.int64) * size
    t += (row % n).to(tl.int64) * size
    grad += row.to(tl.int64) * size
    value = tl.load(a + at, mask=at < size, other=0.0).to(tl.float32)
    apart = value - tl.load(t + at, mask=at < size, other=0.0).to(tl.float32)
    value = 2.0 * tl.load(share + row) * apart
    tl.store(grad + at, narrow(value, grad), mask=at < size)


class Depth(NamedTuple):
    """An activation and its target with the same dense layout of a sample."""

    activation: Tensor
    target: Tensor

    @property
    def size(self) -> int:
        """Elements of a sample."""
        return self.target[0].numel() if len(self.target) else 0


def _depth(activation: Tensor, target: Tensor) -> Depth:
    """Both in the layout of `layout.like(activation)`, copied only where they are not."""
    layout = layout_of(activation)
    return Depth(laid_out(activation, layout), laid_out(target, layout))


def _plan(programs: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """(first program of each depth, all programs)."""
    firsts = [0]
    for count in programs:
        firsts.append(firsts[-1] + count)
    return tuple(firsts[:-1]), firsts[-1]


def _block(depths: Sequence[Depth]) -> int:
    return power_of_two(max(depth.size for depth in depths), 4096)


def forward(a: HintTermsArguments) -> list[Tensor]:
    """dist2 (L_i, B) of every depth; all activations of one dtype."""
    outs = [
        x.new_zeros(len(x) // max(len(t), 1), len(t), dtype=torch.float32) for x, t in a.pairs()
    ]
    live = [i for i, x in enumerate(a.activations) if x.numel()]
    if live:
        depths = [_depth(a.activations[i], a.targets[i]) for i in live]
        firsts, programs = _plan([len(d.activation) for d in depths])
        with torch.cuda.device_of(depths[0].activation):
            launch(
                distances_kernel, programs,
                tuple(d.activation for d in depths), tuple(d.target for d in depths),
                tuple(outs[i] for i in live), firsts, tuple(len(d.target) for d in depths),
                tuple(d.size for d in depths), COUNT=len(live), BLOCK=_block(depths), num_warps=8,
            )  # fmt: skip
    return outs


def backward(a: HintTermsArguments, shares: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the activations, from those of dist2 (L_i, B)."""
    depths = [_depth(x, t) for x, t in a.pairs()]
    grads = [like(d.activation) for d in depths]
    live = [i for i, x in enumerate(a.activations) if x.numel()]
    if live:
        held = [depths[i] for i in live]
        block = _block(held)
        pieces = tuple(triton.cdiv(d.size, block) for d in held)
        firsts, programs = _plan([len(d.activation) * p for d, p in zip(held, pieces, strict=True)])
        with torch.cuda.device_of(held[0].activation):
            launch(
                gradients_kernel, programs,
                tuple(d.activation for d in held), tuple(d.target for d in held),
                tuple(grads[i] for i in live), tuple(shares[i].contiguous() for i in live), firsts,
                pieces, tuple(len(d.target) for d in held), tuple(d.size for d in held),
                COUNT=len(live), BLOCK=block, num_warps=8,
            )  # fmt: skip
    return grads
