"""The registered operators in plain PyTorch: forward by `reference`, gradients written out.

What the compiled backends must yield, and what the operators run where none of them serves.
Forward values are recomputed from the inputs. With d the gradient at the sum before the ReLU, and
m the mean over a lane's samples and positions:

    lane_norm:   dx = w / sigma * (d - m(d) - xhat * m(d * xhat)) in training, w / sigma * d else
    stitch_hint: e = dy + 2 * ddist2 * (y - target); dW = e^T x, db = sum e, dx = sum of lanes e W
    hint_terms:  2 * ddist2 * (activation - target)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .reference import accumulator, gather, wide
from .shared.layout import fronts_like, like, placed

augment = reference.augment


def _per_sample(ddist2: Tensor, like: Tensor) -> Tensor:
    """(L, B) shaped to multiply `like` (L, B, ...)."""
    return ddist2.to(like.dtype).reshape(*ddist2.shape, *[1] * (like.dim() - 2))


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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(y, mean, var, dist2 or None), y as `layout.like(x)`."""
    y, mean, var, dist2 = reference.lane_norm(
        x, weight, bias, running_mean, running_var,
        lanes=lanes, training=training, eps=eps, residual=residual, relu=relu, target=target,
    )  # fmt: skip
    return placed(y, like(x)), mean, var, dist2


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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dresidual or None, and if `affine` sums (L, 2, C) of d, or dbias, and d * xhat, dweight)."""

    def each(t: Tensor) -> Tensor:  # (L*B, ...) -> (L, B, ...)
        return wide(t.reshape(lanes, len(t) // max(lanes, 1), *t.shape[1:]))

    def channel(t: Tensor) -> Tensor:  # (L, C) or (C,) -> (L, 1, C, 1, 1)
        return t.to(accumulator(x.dtype)).expand(lanes, -1)[:, None, :, None, None]

    inverse = (channel(var) + eps).rsqrt()
    xhat = (each(x) - channel(mean)) * inverse
    value = xhat * channel(weight) + channel(bias)
    if residual is not None:
        value = value + each(residual)
    d = torch.zeros_like(value) if dy is None else each(dy)
    if ddist2 is not None:
        y = value.relu() if relu else value
        d = d + 2 * _per_sample(ddist2, d) * (y - wide(target))
    if relu:
        d = torch.where(value <= 0, 0, d)
    sums = torch.stack([d.sum((1, 3, 4)), (d * xhat).sum((1, 3, 4))], 1)
    dx = d
    if training and d.numel():
        share = lanes * x.shape[1] / d.numel()
        dx = d - channel(sums[:, 0] * share) - xhat * channel(sums[:, 1] * share)
    dx = (dx * inverse * channel(weight)).reshape(x.shape).to(x.dtype)
    dresidual = None if residual is None else like(x).copy_(d.reshape(x.shape))  # never dy itself
    return placed(dx, like(x)), dresidual, sums if affine else None


def stitch_hint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None,
    target_index: Sequence[int],
    write: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(y or None, dist2 or None)."""
    return reference.stitch_hint(x, weight, bias, x_index, target, target_index, write)


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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dweight, dbias, dx or None)."""
    features = gather(reference.channels_last(x), x_index)  # (L, B, ..., C1)
    rows = wide(features.flatten(1, -2))
    cast = wide(weight.to(x.dtype))
    e = torch.zeros(*rows.shape[:2], weight.shape[1], dtype=rows.dtype, device=x.device)
    if dy is not None:
        last = dy.movedim(1, -1) if dy.dim() == 4 else dy
        e = e + wide(last.reshape(e.shape))
    if ddist2 is not None:
        aimed = wide(gather(reference.channels_last(target), target_index))
        y = rows @ cast.mT + bias.to(rows.dtype)[:, None]
        apart = y.reshape(aimed.shape) - aimed
        e = e + (2 * _per_sample(ddist2, apart) * apart).flatten(1, -2)
    dx = _sum_by_front(x, x_index, e @ cast) if need_dx else None
    return (e.mT @ rows).to(weight.dtype), e.sum(1).to(bias.dtype), dx


def _sum_by_front(x: Tensor, x_index: Sequence[int], each: Tensor) -> Tensor:
    """Sum every lane's gradient (L, rows, C1) into its front's, lane by lane."""
    total = each.new_zeros(reference.channels_last(x).shape)
    for lane, front in enumerate(x_index):
        total[front] += each[lane].reshape(total.shape[1:])
    return placed(reference.channels_second(total.to(x.dtype)), fronts_like(x))


def hint_terms(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """dist2 (L_i, B) of every depth."""
    return reference.hint_terms(activations, targets)


def hint_terms_backward(
    ddist2: Sequence[Tensor], activations: Sequence[Tensor], targets: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of the activations."""
    return [_hint_gradient(d, a, t) for d, a, t in zip(ddist2, activations, targets, strict=True)]


def _hint_gradient(ddist2: Tensor, activation: Tensor, target: Tensor) -> Tensor:
    each = wide(activation.reshape(*ddist2.shape, *activation.shape[1:]))
    grad = 2 * _per_sample(ddist2, each) * (each - wide(target))
    return placed(grad.reshape(activation.shape).to(activation.dtype), like(activation))


def pgd_step(
    x_adv: Tensor, grad: Tensor, x_clean: Tensor, step: float, eps: float, norm: str
) -> Tensor:
    """The next x_adv, as `layout.like(x_adv)`."""
    return placed(reference.pgd_step(x_adv, grad, x_clean, step, eps, norm), like(x_adv))
