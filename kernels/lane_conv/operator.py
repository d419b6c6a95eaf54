"""`torch.ops.fula.lane_conv`, its fake, and its gradient.

Statistics are values like any other. With N values of y a lane and channel, and d the gradient at h
where the ReLU is open (zero elsewhere),

    d/dy, in all = dy + dmean / N + dvar * 2 (y - mean) / N
    d            = conv^T (d/dy, in all)
    dx           = gain / sigma * d, or d without a norm; a fork's other gradient on top
    d/dmean_in   = -gain / sigma * sum(d),   d/dvar_in = -gain / (2 sigma^2) * sum(d * xhat)

so that a norm's gradient through its own statistics arrives at the convolution that took them, and
needs no pass of its own. `Closing` goes one step further: what comes to the sum that ends a block
goes to its convolutions as it is, and each scales it while it reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ..lane_norm import operator as lane_norm
from ..lane_norm.arguments import LaneNormArguments, ResidualNorm
from ..shared.backend import implementation
from ..shared.operators import Incoming, gradients, keep, kept, or_empty, schema
from ..shared.sums import accumulator
from .arguments import NOUN, Closed, ConvGradients, LaneConvArguments


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
    keep(ctx, (*_read(LaneConvArguments(*fields)), y, mean), backend)


def _read(a: LaneConvArguments) -> LaneConvArguments:
    """`a` as the gradient reads it: of an x without a norm behind it, shape and dtype alone."""
    return a if a.mean is not None else a._replace(x=a.x.new_empty(()).expand(a.x.shape))


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
    incoming = ConvGradients(dy, None, None, None, None, beside, None)
    if dmean is not None or dvar is not None:
        first, second = (torch.zeros_like(centre) if d is None else d for d in (dmean, dvar))
        incoming = ConvGradients(dy, first, second, y, centre, beside, None)
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
        keep(ctx, (*_read(LaneConvArguments(*flat[:-1])), y, mean), flat[-1])
        return y, mean, var, flat[0].view_as(flat[0])

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple:
        return _gradient(ctx, *incoming)


class Closing(torch.autograd.Function):
    """(z, dist2, mean, var[, residual's mean, var]) of `lane_conv_norm`: the fields of the last
    convolution, those of the projection's (or None for each), of `Closed`, and the backend."""

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor | None, ...]:
        last, projection, end = _parts(flat)
        backend = flat[-1]
        y, mean, var = lane_conv(*last, backend)
        residual, known = end.residual, []
        if projection is not None:
            residual, *known = lane_conv(*projection, backend)
        a, beside = _sum(end, last.lanes, (y, mean, var), (residual, *known))
        z, dist2 = lane_norm.joined(*a, *beside, backend)
        second = (None,) * len(last) if projection is None else _read(projection)
        made = y, mean, var, residual, *(known or (None, None))
        keep(ctx, (*_read(last), *second, *end._replace(residual=None), *made), backend)
        ctx.mark_non_differentiable(mean, var, *known)
        return z, dist2, mean, var, *(known or (None, None))

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        dz, ddist2, *_ = incoming
        *flat, y, mean, var, residual, first, second = kept(ctx)
        last, projection, end = _parts((*flat, ctx.backend))
        known = () if projection is None else (first, second)
        a, beside = _sum(end, last.lanes, (y, mean, var), (residual, *known))
        given = Incoming(None if dz is None else dz[: len(y)], ddist2)
        d, sums = lane_norm.joined_backward(*a, *beside, *given, ctx.backend)
        total, product, *again = sums.unbind(1)
        passed = _scaled(last, d, (y, mean, var, end.gain, end.eps), (total, product), ctx.backend)
        found = gradients(LaneConvArguments, **passed)[:-1]
        if projection is None:
            nothing = (None,) * len(LaneConvArguments._fields)
            rest = gradients(Closed, residual=d if residual is not None else None)
            return *found, *nothing, *rest
        norm = (residual, *known, end.residual_gain, end.residual_eps)
        passed = _scaled(projection, d, norm, (total, *again), ctx.backend)
        return *found, *gradients(LaneConvArguments, **passed)[:-1], *gradients(Closed)


def _parts(flat: tuple) -> tuple[LaneConvArguments, LaneConvArguments | None, Closed]:
    count = len(LaneConvArguments._fields)
    projection = None if flat[count] is None else LaneConvArguments(*flat[count : 2 * count])
    return LaneConvArguments(*flat[:count]), projection, Closed(*flat[2 * count : -1])


def _sum(
    end: Closed, lanes: int, own: tuple, beside: tuple
) -> tuple[LaneNormArguments, ResidualNorm]:
    """What ends a block, of (y, mean, var) and (residual, mean, var)."""
    (y, mean, var), (residual, *moments) = own, beside
    a = LaneNormArguments(
        y, end.gain, end.bias, mean, var, residual, end.target, lanes, False, end.eps, end.relu,
        end.room,
    )  # fmt: skip
    if end.residual_gain is None:
        return a, ResidualNorm(None, None, None, None, 0.0)
    first, second = moments
    return a, ResidualNorm(end.residual_gain, end.residual_bias, first, second, end.residual_eps)


def _scaled(
    a: LaneConvArguments, d: Tensor, norm: tuple, sums: tuple, backend: str
) -> dict[str, Tensor]:
    """The gradients of a convolution's x, mean and var from d behind its output's norm (y, mean,
    var, gain, eps), with the sums (L, C2) of d and of d * yhat."""
    y, mean, var, gain, eps = norm
    scale, dmean, dvar = lane_norm.moments(mean, var, gain, eps, *sums)
    incoming = ConvGradients(d, dmean, dvar, y, mean, None, scale)
    dx, first, second = lane_conv_backward(*a, *incoming, backend)
    if a.mean is None or a.var is None:
        return {"x": dx}
    return {"x": dx, "mean": first.to(a.mean.dtype), "var": second.to(a.var.dtype)}
