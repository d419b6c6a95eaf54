"""`lane_norm`: per-lane batch norm, residual, ReLU, and the distance to a target, in one pass."""

from __future__ import annotations

from torch import Tensor

from ..shared import backend
from ..shared.sums import accumulator
from . import operator, reference
from .arguments import LaneNormArguments, checked


def lane_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    lanes: int,
    training: bool,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
    target: Tensor | None = None,
    room: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Batch norm with every lane's own statistics, residual add, ReLU, and distance to a target.

        y = relu(weight * (x - mean_l) / sqrt(var_l + eps) + bias + residual)

    x, residual: (L*B, C, H, W); weight, bias: (C,) shared, or (L, C); running_mean, running_var:
    (L, C), read only when not training; target: (B, C, H, W), shared by the lanes.
    Returns y, the statistics used (mean and *biased* variance, (L, C), without gradient), and
    dist2 (L, B) = sum over a sample of (y - target)**2, or None without a target. In training the
    caller updates its running statistics. `room`: y has that many samples more, behind those of x,
    for the caller to fill: their values are undefined, and no gradient comes from them.
    Raises `FulaError` for arguments that do not fit together.
    """
    a = checked(
        LaneNormArguments(
            x, weight, bias, running_mean, running_var, residual, target, lanes, training, eps,
            relu, room,
        )
    )  # fmt: skip
    chosen = backend.choose("lane_norm", x)
    if chosen == "reference":
        return reference.forward(a)
    y, mean, var, dist2 = operator.lane_norm(*a, chosen)
    if not training:
        mean, var = (s.to(accumulator(x.dtype)) for s in (running_mean, running_var))
    return y, mean.detach(), var.detach(), None if target is None else dist2
