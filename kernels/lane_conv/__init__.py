"""`lane_conv`: a convolution of many lanes, the norm before it, and its output's statistics; and
`lane_conv_fork`, for an input that another branch takes as well."""

from __future__ import annotations

from torch import Tensor

from ..shared import backend
from . import operator, reference
from .arguments import LaneConvArguments, checked


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
