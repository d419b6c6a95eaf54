"""`torch.ops.fula.stitch_hint`, its fake, and its gradient.

e = dy + 2 * ddist2 * (y - target);  dW = e^T x, db = sum of e, dx = sum over lanes of e W
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import custom_op

from ..shared.backend import implementation
from ..shared.layout import fronts_like, stitched
from ..shared.operators import Incoming, gradients, keep, kept, or_empty, schema
from ..shared.sums import accumulator
from .arguments import NOUN, StitchHintArguments


@custom_op(
    "fula::stitch_hint", mutates_args=(), schema=schema("(Tensor, Tensor)", StitchHintArguments)
)
def stitch_hint(*flat: Any) -> tuple[Tensor, Tensor]:
    """(y, dist2), empty where not asked for."""
    *fields, backend = flat
    a = StitchHintArguments(*fields)
    y, dist2 = implementation(NOUN, backend).forward(a)
    return a.x.new_empty(0) if y is None else y, or_empty(dist2, a.x)


@stitch_hint.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor]:
    a = StitchHintArguments(*flat[:-1])
    lanes, channels, _ = a.weight.shape
    y = stitched(a.x, lanes * a.x.shape[1], channels) if a.write else a.x.new_empty(0)
    dist2 = (0,) if a.target is None else (lanes, a.x.shape[1])
    return y, a.x.new_empty(dist2, dtype=accumulator(a.x.dtype))


@custom_op(
    "fula::stitch_hint_backward",
    mutates_args=(),
    schema=schema("(Tensor, Tensor, Tensor)", StitchHintArguments, Incoming, need_dx=bool),
)
def stitch_hint_backward(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(dweight, dbias, dx), dx empty where not needed."""
    *fields, dy, ddist2, need_dx, backend = flat
    a = StitchHintArguments(*fields)
    dw, db, dx = implementation(NOUN, backend).backward(a, Incoming(dy, ddist2), need_dx)
    return dw, db, a.x.new_empty(0) if dx is None else dx


@stitch_hint_backward.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, _, _, need_dx, _ = flat
    a = StitchHintArguments(*fields)
    dx = fronts_like(a.x) if need_dx else a.x.new_empty(0)
    return a.weight.new_empty(a.weight.shape), a.bias.new_empty(a.bias.shape), dx


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    *fields, backend = inputs
    keep(ctx, StitchHintArguments(*fields), backend)


def _gradient(ctx: Any, dy: Tensor | None, ddist2: Tensor | None) -> tuple:
    a = StitchHintArguments(*kept(ctx))
    incoming = Incoming(dy if a.write else None, None if a.target is None else ddist2)
    need_dx = ctx.needs_input_grad[0]
    dw, db, dx = stitch_hint_backward(*a, *incoming, need_dx, ctx.backend)
    return gradients(StitchHintArguments, x=dx if need_dx else None, weight=dw, bias=db)


stitch_hint.register_autograd(_gradient, setup_context=_save)
