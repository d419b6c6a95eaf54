"""`lane_norm` in plain PyTorch: the oracle of tests and benches, and what runs, or what
`torch.compile` traces, where no compiled backend serves."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.distance import squared_distance
from ..shared.sums import by_lane, wide
from .arguments import LaneNormArguments


def forward(a: LaneNormArguments) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(y, mean, var, dist2 or None)."""
    samples = a.x.shape[0] // a.lanes if a.lanes else len(a.x if a.target is None else a.target)
    value = wide(by_lane(a.x, a.lanes, samples))  # (L, B, C, H, W)
    mean, var = _statistics(a, value)
    scale = (var + a.eps).rsqrt() * a.weight.to(value.dtype)
    y = (value - _per_channel(mean)) * _per_channel(scale)
    y = y + _per_channel(a.bias.to(value.dtype).expand_as(mean))
    if a.residual is not None:
        y = y + wide(by_lane(a.residual, a.lanes, samples))
    if a.relu:
        y = y.relu()
    dist2 = None if a.target is None else squared_distance(y, a.target)
    y = y.flatten(0, 1).to(a.x.dtype)
    if a.room:
        y = torch.cat([y, y.new_zeros(a.room, *y.shape[1:])])
    return y, mean.detach(), var.detach(), dist2


def _statistics(a: LaneNormArguments, value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (L, C): those of `value` (L, B, C, H, W), or the running ones."""
    if not a.training:
        return a.running_mean.to(value.dtype), a.running_var.to(value.dtype)
    mean = value.mean((1, 3, 4))
    return mean, (value - _per_channel(mean)).square().mean((1, 3, 4))


def _per_channel(x: Tensor) -> Tensor:
    """(L, C) -> (L, 1, C, 1, 1)."""
    return x[:, None, :, None, None]
