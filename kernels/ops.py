"""Registered operators (`torch.ops.fula.*`): what the compiled backends run behind.

Each has a fake implementation and, where it is differentiable, an autograd formula over a second
operator for the gradient, so that `torch.compile(fullgraph=True)` and CUDA graphs take them whole.
All are functional: no output aliases an input, nothing is changed in place. An output that was not
asked for is an empty tensor; the functions of `nouns` turn it into None. Gradients have no
gradients of their own: second derivatives need the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.library import custom_op

from .reference import accumulator
from .shared import backend
from .shared.layout import fronts_like, like, stitched


def _serving(noun: str, x: Tensor) -> ModuleType:
    """The module that implements `noun` for tensors like `x`."""
    chosen = backend.choose(noun, x)
    if chosen == "triton":
        from .triton import serve

        return serve
    if chosen == "cpp":
        from . import core

        return core
    from . import plain

    return plain


def _or_empty(value: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=accumulator(x.dtype)) if value is None else value


@custom_op("fula::lane_norm", mutates_args=())
def lane_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    target: Tensor | None,
    lanes: int,
    training: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, mean, var, dist2); the statistics are empty when not training, dist2 without target."""
    y, mean, var, dist2 = _serving("lane_norm", x).lane_norm(
        x, weight, bias, running_mean, running_var, residual, target, lanes, training, eps, relu
    )
    if not training:
        mean = var = None
    return y, _or_empty(mean, x), _or_empty(var, x), _or_empty(dist2, x)


@lane_norm.register_fake
def _(x, weight, bias, running_mean, running_var, residual, target, lanes, training, eps, relu):
    sums = accumulator(x.dtype)
    shape = (lanes, x.shape[1]) if training else (0,)
    dist2 = (0,) if target is None else (lanes, target.shape[0])
    stats = [x.new_empty(shape, dtype=sums) for _ in range(2)]
    return like(x), *stats, x.new_empty(dist2, dtype=sums)


@custom_op("fula::lane_norm_backward", mutates_args=())
def lane_norm_backward(
    dy: Tensor | None,
    ddist2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    target: Tensor | None,
    lanes: int,
    training: bool,
    eps: float,
    relu: bool,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dresidual, sums (L, 2, C) of d and d * xhat); empty without residual, without `affine`."""
    dx, dresidual, sums = _serving("lane_norm", x).lane_norm_backward(
        dy, ddist2, x, weight, bias, mean, var, residual, target, lanes, training, eps, relu, affine
    )
    return dx, _or_empty(dresidual, x), _or_empty(sums, x)


@lane_norm_backward.register_fake
def _(dy, ddist2, x, weight, bias, mean, var, residual, target, lanes, training, eps, relu, affine):
    shape = (lanes, 2, x.shape[1]) if affine else (0,)
    sums = x.new_empty(shape, dtype=accumulator(x.dtype))
    return like(x), _or_empty(None, x) if residual is None else like(x), sums


def _lane_norm_saved(ctx, inputs, output) -> None:
    x, weight, bias, running_mean, running_var, residual, target, *rest = inputs
    ctx.lanes, ctx.training, ctx.eps, ctx.relu = rest
    statistics = output[1:3] if ctx.training else (running_mean, running_var)
    ctx.save_for_backward(x, weight, bias, *statistics, residual, target)
    ctx.set_materialize_grads(False)


def _lane_norm_gradient(ctx, dy, dmean, dvar, ddist2):
    x, weight, bias, mean, var, residual, target = ctx.saved_tensors
    affine = any(ctx.needs_input_grad[1:3])
    ddist2 = None if target is None else ddist2
    dx, dresidual, sums = lane_norm_backward(
        dy, ddist2, x, weight, bias, mean, var, residual, target,
        ctx.lanes, ctx.training, ctx.eps, ctx.relu, affine,
    )  # fmt: skip
    dweight = dbias = None
    if affine:
        total = sums.sum(0) if weight.dim() == 1 else sums.unbind(1)
        dbias, dweight = total[0].to(bias.dtype), total[1].to(weight.dtype)
    dresidual = None if residual is None else dresidual
    return dx, dweight, dbias, None, None, dresidual, None, None, None, None, None


lane_norm.register_autograd(_lane_norm_gradient, setup_context=_lane_norm_saved)


@custom_op("fula::stitch_hint", mutates_args=())
def stitch_hint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None,
    target_index: Sequence[int],
    write: bool,
) -> tuple[Tensor, Tensor]:
    """(y, dist2), empty where not asked for."""
    y, dist2 = _serving("stitch_hint", x).stitch_hint(
        x, weight, bias, x_index, target, target_index, write
    )
    return x.new_empty(0) if y is None else y, _or_empty(dist2, x)


@stitch_hint.register_fake
def _(x, weight, bias, x_index, target, target_index, write):
    lanes, channels, _ = weight.shape
    y = stitched(x, lanes * x.shape[1], channels) if write else x.new_empty(0)
    dist2 = (0,) if target is None else (lanes, x.shape[1])
    return y, x.new_empty(dist2, dtype=accumulator(x.dtype))


@custom_op("fula::stitch_hint_backward", mutates_args=())
def stitch_hint_backward(
    dy: Tensor | None,
    ddist2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None,
    target_index: Sequence[int],
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dweight, dbias, dx), dx empty where not needed."""
    dw, db, dx = _serving("stitch_hint", x).stitch_hint_backward(
        dy, ddist2, x, weight, bias, x_index, target, target_index, need_dx
    )
    return dw, db, x.new_empty(0) if dx is None else dx


@stitch_hint_backward.register_fake
def _(dy, ddist2, x, weight, bias, x_index, target, target_index, need_dx):
    dx = fronts_like(x) if need_dx else x.new_empty(0)
    return weight.new_empty(weight.shape), bias.new_empty(bias.shape), dx


def _stitch_hint_saved(ctx, inputs, output) -> None:
    x, weight, bias, ctx.x_index, target, ctx.target_index, ctx.write = inputs
    ctx.save_for_backward(x, weight, bias, target)
    ctx.set_materialize_grads(False)


def _stitch_hint_gradient(ctx, dy, ddist2):
    x, weight, bias, target = ctx.saved_tensors
    dy = dy if ctx.write else None
    ddist2 = None if target is None else ddist2
    dw, db, dx = stitch_hint_backward(
        dy, ddist2, x, weight, bias, ctx.x_index, target, ctx.target_index, ctx.needs_input_grad[0]
    )
    return dx if ctx.needs_input_grad[0] else None, dw, db, None, None, None, None


stitch_hint.register_autograd(_stitch_hint_gradient, setup_context=_stitch_hint_saved)


@custom_op("fula::hint_terms", mutates_args=())
def hint_terms(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """dist2 (L_i, B) of every depth."""
    return _serving("hint_terms", activations[0]).hint_terms(activations, targets)


@hint_terms.register_fake
def _(activations, targets):
    return [
        a.new_empty(a.shape[0] // max(t.shape[0], 1), t.shape[0], dtype=accumulator(a.dtype))
        for a, t in zip(activations, targets, strict=True)
    ]


@custom_op("fula::hint_terms_backward", mutates_args=())
def hint_terms_backward(
    ddist2: Sequence[Tensor], activations: Sequence[Tensor], targets: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of the activations."""
    serving = _serving("hint_terms", activations[0])
    return serving.hint_terms_backward(ddist2, activations, targets)


@hint_terms_backward.register_fake
def _(ddist2, activations, targets):
    return [like(a) for a in activations]


def _hint_terms_saved(ctx, inputs, output) -> None:
    activations, targets = inputs
    ctx.count = len(activations)
    ctx.save_for_backward(*activations, *targets)


def _hint_terms_gradient(ctx, ddist2):
    saved = ctx.saved_tensors
    grads = hint_terms_backward(list(ddist2), saved[: ctx.count], saved[ctx.count :])
    return grads, [None] * ctx.count


hint_terms.register_autograd(_hint_terms_gradient, setup_context=_hint_terms_saved)


@custom_op("fula::pgd_step", mutates_args=())
def pgd_step(
    x_adv: Tensor, grad: Tensor, x_clean: Tensor, step: float, eps: float, norm: str
) -> Tensor:
    """The next x_adv."""
    return _serving("pgd_step", x_adv).pgd_step(x_adv, grad, x_clean, step, eps, norm)


@pgd_step.register_fake
def _(x_adv, grad, x_clean, step, eps, norm):
    return like(x_adv)


@custom_op("fula::augment", mutates_args=())
def augment(
    images: Tensor,
    index: Tensor,
    dy: Tensor,
    dx: Tensor,
    flip: Tensor,
    pad: int,
    markers: Tensor | None,
    marker_index: Tensor | None,
    marker_y: Tensor | None,
    marker_x: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(B, C, H, W) of `dtype`, channels-last."""
    return _serving("augment", images).augment(
        images, index, dy, dx, flip, pad, markers, marker_index, marker_y, marker_x, dtype
    )


@augment.register_fake
def _(images, index, dy, dx, flip, pad, markers, marker_index, marker_y, marker_x, dtype):
    _, height, width, channels = images.shape
    out = images.new_empty(index.shape[0], height, width, channels, dtype=dtype)
    return out.permute(0, 3, 1, 2)
