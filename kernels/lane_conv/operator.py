"""`torch.ops.fula.lane_conv`, its fake, and its gradient.

Statistics are values like any other. With N values of y a lane and channel, and d the gradient at h
where the ReLU is open (zero elsewhere),

    d/dy, in all = dy + dmean / N + dvar * 2 (y - mean) / N
    d            = conv^T (d/dy, in all)
    dx           = gain / sigma * d, or d without a norm; a fork's other gradient on top
    d/dmean_in   = -gain / sigma * sum(d),   d/dvar_in = -gain / (2 sigma^2) * sum(d * xhat)

so that a norm's gradient through its own statistics arrives at the convolution that took them, and
needs no pass of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ..shared.backend import implementation
from ..shared.operators import gradients, keep, kept, or_empty, schema
from ..shared.sums import accumulator
from .arguments import NOUN, ConvGradients, LaneConvArguments


@custom_op(
    "fula::lane_conv", mutates_args=(), schema=schema("(Tensor, Tensor, Tensor)", LaneConvArguments)
)
def lane_conv(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, var)."""
    *fields, backend = flat
    return implementation(NOUN, backend).forward(LaneConvArguments(*fields))


@lane_conv.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = LaneConvArguments(*flat[:-1])
    shape, sums = (a.lanes, a.weight.shape[0]), accumulator(a.x.dtype)
    mean, var = (a.x.new_empty(shape, dtype=sums) for _ in range(2))
    return output(a), mean, var


def output(a: LaneConvArguments) -> Tensor:
    """Uninitialised y, channels-last."""
    layout = torch.channels_last
    return torch.empty(a.output, dtype=a.x.dtype, device=a.x.device, memory_format=layout)


def gradient(a: LaneConvArguments) -> Tensor:
    """Uninitialised dx, channels-last."""
    return torch.empty_like(a.x, memory_format=torch.channels_last)


@custom_op(
    "fula::lane_conv_backward",
    mutates_args=(),
    schema=schema("(Tensor, Tensor, Tensor)", LaneConvArguments, ConvGradients),
)
def lane_conv_backward(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dmean, dvar), the latter empty without a norm."""
    *fields, backend = flat
    a, incoming = _split(fields)
    dx, dmean, dvar = implementation(NOUN, backend).backward(a, incoming)
    return dx, or_empty(dmean, a.x), or_empty(dvar, a.x)


@lane_conv_backward.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    a, _ = _split(flat[:-1])
    shape = (0,) if a.mean is None else tuple(a.mean.shape)
    dmean, dvar = (a.x.new_empty(shape, dtype=accumulator(a.x.dtype)) for _ in range(2))
    return gradient(a), dmean, dvar


def _split(fields: Any) -> tuple[LaneConvArguments, ConvGradients]:
    count = len(LaneConvArguments._fields)
    return LaneConvArguments(*fields[:count]), ConvGradients(*fields[count:])


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    *fields, backend = inputs
    y, mean, _ = output
    keep(ctx, (*fields, y, mean), backend)


def _gradient(
    ctx: Any,
    dy: Tensor | None,
    dmean: Tensor | None,
    dvar: Tensor | None,
    beside: Tensor | None = None,
) -> tuple:
    *fields, y, centre = kept(ctx)
    a = LaneConvArguments(*fields)
    dy = torch.zeros_like(y) if dy is None else dy
    incoming = ConvGradients(dy, None, None, None, None, beside)
    if dmean is not None or dvar is not None:
        first, second = (torch.zeros_like(centre) if d is None else d for d in (dmean, dvar))
        incoming = ConvGradients(dy, first, second, y, centre, beside)
    dx, mean, var = lane_conv_backward(*a, *incoming, ctx.backend)
    if a.mean is None or a.var is None:
        return gradients(LaneConvArguments, x=dx)
    mean, var = mean.to(a.mean.dtype), var.to(a.var.dtype)
    return gradients(LaneConvArguments, x=dx, mean=mean, var=var)


lane_conv.register_autograd(_gradient, setup_context=_save)


class Fork(torch.autograd.Function):
    """The operator without a norm, and its x once more."""

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, mean, var = lane_conv(*flat)
        keep(ctx, (*flat[:-1], y, mean), flat[-1])
        return y, mean, var, flat[0].view_as(flat[0])

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple:
        return _gradient(ctx, *incoming)
