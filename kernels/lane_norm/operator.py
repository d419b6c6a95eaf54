"""`torch.ops.fula.lane_norm`, its fake, and its gradient.

With d the gradient at the sum before the ReLU, and m the mean over a lane's samples and positions:

    dx = w / sigma * (d - m(d) - xhat * m(d * xhat)) in training, w / sigma * d else

Statistics that are given may have a gradient too (`lane_conv` takes it up): summed over a lane's
samples and positions, -w / sigma * sum(d) for the mean, -w / (2 sigma^2) * sum(d * xhat) for the
variance.

`joined` normalises by given statistics and adds a residual that may have a norm of its own. Its
gradient is d itself: the convolutions that wrote x and the residual scale it while they read it
(`lane_conv`, `Closing`), so that neither dx nor the residual's gradient is ever written.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import custom_op

from ..shared.backend import implementation
from ..shared.layout import like
from ..shared.operators import Incoming, gradients, keep, kept, or_empty, schema
from ..shared.sums import accumulator
from .arguments import NOUN, LaneNormArguments, ResidualNorm


@custom_op(
    "fula::lane_norm",
    mutates_args=(),
    schema=schema("(Tensor, Tensor, Tensor, Tensor)", LaneNormArguments),
)
def lane_norm(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, mean, var, dist2); the statistics are empty when not training, dist2 without target."""
    *fields, backend = flat
    a = LaneNormArguments(*fields)
    y, mean, var, dist2 = implementation(NOUN, backend).forward(a)
    if not a.training:
        mean = var = None
    return y, or_empty(mean, a.x), or_empty(var, a.x), or_empty(dist2, a.x)


@lane_norm.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = LaneNormArguments(*flat[:-1])
    sums = accumulator(a.x.dtype)
    shape = (a.lanes, a.x.shape[1]) if a.training else (0,)
    dist2 = (0,) if a.target is None else (a.lanes, a.target.shape[0])
    mean, var = (a.x.new_empty(shape, dtype=sums) for _ in range(2))
    return like(a.x, a.room), mean, var, a.x.new_empty(dist2, dtype=sums)


@custom_op(
    "fula::lane_norm_backward",
    mutates_args=(),
    schema=schema("(Tensor, Tensor, Tensor)", LaneNormArguments, Incoming, affine=bool),
)
def lane_norm_backward(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dresidual, sums (L, 2, C) of d and d * xhat), empty without residual or `affine`."""
    *fields, dy, ddist2, affine, backend = flat
    a = LaneNormArguments(*fields)
    serving = implementation(NOUN, backend)
    dx, dresidual, sums = serving.backward(a, Incoming(dy, ddist2), affine)
    return dx, or_empty(dresidual, a.x), or_empty(sums, a.x)


@lane_norm_backward.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, _, _, affine, _ = flat
    a = LaneNormArguments(*fields)
    shape = (a.lanes, 2, a.x.shape[1]) if affine else (0,)
    sums = a.x.new_empty(shape, dtype=accumulator(a.x.dtype))
    return like(a.x), or_empty(None, a.x) if a.residual is None else like(a.x), sums


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    *fields, backend = inputs
    a = LaneNormArguments(*fields)
    if a.training:
        a = a._replace(running_mean=output[1], running_var=output[2])
    keep(ctx, a, backend)


def _gradient(ctx: Any, dy: Tensor | None, dmean: None, dvar: None, ddist2: Tensor | None) -> tuple:
    a = LaneNormArguments(*kept(ctx))
    affine = any(ctx.needs_input_grad[1:3])
    given = not a.training and any(ctx.needs_input_grad[3:5])
    dy = None if dy is None else dy[: len(a.x)]
    incoming = Incoming(dy, None if a.target is None else ddist2)
    dx, dresidual, sums = lane_norm_backward(*a, *incoming, affine or given, ctx.backend)
    dweight = dbias = None
    if affine:
        total = sums.sum(0) if a.weight.dim() == 1 else sums.unbind(1)
        dbias, dweight = total[0].to(a.bias.dtype), total[1].to(a.weight.dtype)
    own: dict[str, Tensor] = {}
    if given:
        norm = a.running_mean, a.running_var, a.weight, a.eps
        _, own["running_mean"], own["running_var"] = moments(*norm, *sums.unbind(1))
    dresidual = None if a.residual is None else dresidual
    return gradients(LaneNormArguments, x=dx, weight=dweight, bias=dbias, residual=dresidual, **own)


def moments(
    mean: Tensor, var: Tensor, gain: Tensor, eps: float, total: Tensor, product: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(gain / sigma, and the gradients of given statistics), (L, C) each, from the sums (L, C) of d
    and of d times the normalised value."""
    inverse = (var.to(total.dtype) + eps).rsqrt()
    scale = inverse * gain
    dmean, dvar = -scale * total, -0.5 * scale * inverse * product
    return scale, dmean.to(mean.dtype), dvar.to(var.dtype)


lane_norm.register_autograd(_gradient, setup_context=_save)


@custom_op(
    "fula::lane_norm_joined",
    mutates_args=(),
    schema=schema("(Tensor, Tensor)", LaneNormArguments, ResidualNorm),
)
def joined(*flat: Any) -> tuple[Tensor, Tensor]:
    """(y, dist2), the latter empty without target; no gradient of its own."""
    a, beside, _ = _split(flat[:-1])
    y, dist2 = implementation(NOUN, flat[-1]).joined(a, beside)
    return y, or_empty(dist2, a.x)


@joined.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor]:
    a, _, _ = _split(flat[:-1])
    dist2 = (0,) if a.target is None else (a.lanes, a.target.shape[0])
    return like(a.x, a.room), a.x.new_empty(dist2, dtype=accumulator(a.x.dtype))


@custom_op(
    "fula::lane_norm_joined_backward",
    mutates_args=(),
    schema=schema("(Tensor, Tensor)", LaneNormArguments, ResidualNorm, Incoming),
)
def joined_backward(*flat: Any) -> tuple[Tensor, Tensor]:
    """(d, sums (L, 2, C) of d and d * xhat, (L, 3, C) with d * rhat where the residual has a
    norm)."""
    a, beside, incoming = _split(flat[:-1])
    return implementation(NOUN, flat[-1]).joined_backward(a, beside, Incoming(*incoming))


@joined_backward.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor]:
    a, beside, _ = _split(flat[:-1])
    sums = (a.lanes, 2 if beside.residual_mean is None else 3, a.x.shape[1])
    return like(a.x), a.x.new_empty(sums, dtype=accumulator(a.x.dtype))


def _split(fields: tuple) -> tuple[LaneNormArguments, ResidualNorm, tuple]:
    first = len(LaneNormArguments._fields)
    second = first + len(ResidualNorm._fields)
    return LaneNormArguments(*fields[:first]), ResidualNorm(*fields[first:second]), fields[second:]
