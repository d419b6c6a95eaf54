"""`lane_conv` in plain PyTorch: the oracle of tests and benches, and what runs, or what
`torch.compile` traces, where no compiled backend serves."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..shared.sums import accumulator, by_lane, wide
from .arguments import LaneConvArguments


def forward(a: LaneConvArguments) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, var)."""
    y = functional.conv2d(_normalised(a), a.weight, None, a.stride, a.padding)
    value = wide(by_lane(y, a.lanes, _samples(a)))  # (L, B, C2, H', W')
    mean = value.mean((1, 3, 4))
    return y, mean, (value - _per_channel(mean)).square().mean((1, 3, 4))


def _samples(a: LaneConvArguments) -> int:
    return len(a.x) // a.lanes if a.lanes else 1


def _normalised(a: LaneConvArguments) -> Tensor:
    """h, in the dtype of x."""
    if a.gain is None or a.bias is None or a.mean is None or a.var is None:
        return a.x
    value = wide(by_lane(a.x, a.lanes, _samples(a)))
    gain, bias, mean, var = (t.to(accumulator(a.x.dtype)) for t in (a.gain, a.bias, a.mean, a.var))
    scale = (var + a.eps).rsqrt() * gain
    h = (value - _per_channel(mean)) * _per_channel(scale) + _per_channel(bias.expand_as(mean))
    return h.relu().flatten(0, 1).to(a.x.dtype)


def _per_channel(x: Tensor) -> Tensor:
    """(L, C) -> (L, 1, C, 1, 1)."""
    return x[:, None, :, None, None]
