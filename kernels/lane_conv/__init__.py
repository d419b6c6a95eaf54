"""`lane_conv`: a convolution of many lanes, the norm before it, and its output's statistics;
`lane_conv_fork`, for an input that another branch takes as well; and `lane_conv_norm`, which ends a
residual block."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..lane_norm import lane_norm
from ..shared import backend
from . import operator, reference
from .arguments import Affine, Closed, LaneConvArguments, Projection, checked, checked_end


def lane_conv(
    x: Tensor,
    weight: Tensor,
    *,
    lanes: int,
    stride: int = 1,
    padding: int = 0,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution behind a per-lane batch norm and ReLU that is never written, and the batch
    statistics of what it gives.

        y = conv(h, weight),  h = relu(gain * (x - mean_l) / sqrt(var_l + eps) + bias), or h = x

    x: (L*B, C1, H, W); weight: (C2, C1, K, K), the same for all lanes and without gradient; the
    zeros of `padding` lie around h. gain, bias: (C1,), without gradient; mean, var: (L, C1); all
    four or none. h is rounded to the dtype of x, as `lane_norm` rounds it.
    Returns y and each lane's mean and *biased* variance of y as rounded, (L, C2). Gradients go to
    x, mean and var, and come from all three outputs: a norm that is given these statistics
    (`lane_norm` with training=False) then has the gradient of one that takes its own.
    Raises `FulaError` for arguments that do not fit together.
    """
    a = checked(LaneConvArguments(x, weight, gain, bias, mean, var, lanes, stride, padding, eps))
    chosen = backend.choose("lane_conv", x)
    if chosen == "reference":
        return reference.forward(a)
    return operator.lane_conv(*a, chosen)


def lane_conv_fork(
    x: Tensor, weight: Tensor, *, lanes: int, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`lane_conv` without a norm, and x once more, (L*B, C1, H, W), for a branch beside it.

    Both branches' gradients at x are added where dx is written, without a pass of their own.
    Returns y, its statistics as `lane_conv` does, and x. Raises `FulaError` as it does.
    """
    a = checked(LaneConvArguments(x, weight, None, None, None, None, lanes, stride, padding, 0.0))
    chosen = backend.choose("lane_conv", x)
    if chosen == "reference":
        return (*reference.forward(a), x)
    return operator.Fork.apply(*a, chosen)


def lane_conv_norm(
    x: Tensor,
    weight: Tensor,
    *,
    lanes: int,
    norm: Affine,
    stride: int = 1,
    padding: int = 0,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    projection: Projection | None = None,
    relu: bool = False,
    target: Tensor | None = None,
    room: int = 0,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """The end of a residual block: `lane_conv`, batch norm by the statistics that it leaves, a
    residual, ReLU, and the distance to a target.

        z = relu(norm(lane_conv(x)) + residual), or + projection.norm(projection(residual))

    x to eps as of `lane_conv`; residual (L*B, C2, H', W'), or what the projection makes that of;
    relu, target (B, C2, H', W') and room as of `lane_norm`.
    Returns z, dist2 (L, B) or None without a target, and without gradient the statistics (L, C2) of
    both norms: mean, var, and those of the projection's where there is one.
    What comes to the sum goes to both convolutions as it is, and they scale it while they read it;
    a projection's normalised map is never written. Raises `FulaError` as both do.
    """
    a = checked(LaneConvArguments(x, weight, gain, bias, mean, var, lanes, stride, padding, eps))
    end = Closed(*norm, None, None, None, 0.0, target, relu, room)
    second, end = checked_end(a, projection, residual, end)
    chosen = backend.choose("lane_conv", x)
    if chosen != "reference":
        conv = second or (None,) * len(a)
        z, dist2, *moments = operator.Closing.apply(*a, *conv, *end, chosen)
        return z, None if target is None else dist2, tuple(m for m in moments if m is not None)
    y, *moments = reference.forward(a)
    if second is not None and projection is not None:
        residual, *more = reference.forward(second)
        residual = _normalised(residual, projection.norm, more, lanes=lanes)[0]
        moments += more
    z, *_, dist2 = _normalised(
        y, norm, moments[:2], lanes=lanes, residual=residual, relu=relu, target=target, room=room
    )
    return z, dist2, tuple(m.detach() for m in moments)


def _normalised(y: Tensor, norm: Affine, moments: list[Tensor], **options: Any) -> tuple:
    """`lane_norm` of y by given statistics."""
    gain, bias, eps = norm
    return lane_norm(y, gain, bias, *moments, training=False, eps=eps, **options)
