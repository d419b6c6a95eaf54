"""`lane_norm` by the C++ library."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.cpu import as_sums, call, laid, sums
from ..shared.layout import layout_of, like
from ..shared.operators import Incoming
from .arguments import LaneNormArguments


def forward(a: LaneNormArguments) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(y, mean, var, dist2 or None)."""
    y, layout = like(a.x, a.room), layout_of(a.x)
    mean, var = as_sums(a.running_mean, a.x), as_sums(a.running_var, a.x)
    if a.training:
        mean, var = (sums(a.x, a.lanes, a.x.shape[1]) for _ in range(2))
    dist2 = None if a.target is None else sums(a.x, a.lanes, len(a.target))
    call(
        "lane_norm_forward", laid(a.x, layout), as_sums(a.weight, a.x), as_sums(a.bias, a.x), mean,
        var, laid(a.residual, layout), laid(a.target, layout), a.lanes, a.training, a.eps, a.relu,
        y[: len(a.x)], dist2,
    )  # fmt: skip
    return y, mean, var, dist2


def backward(
    a: LaneNormArguments, incoming: Incoming, affine: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dresidual or None, sums (L, 2, C) of d and d * xhat if `affine`)."""
    x, (dy, ddist2), layout = a.x, incoming, layout_of(a.x)
    dx, dresidual = like(x), None if a.residual is None else like(x)
    both = [sums(x, a.lanes, x.shape[1]) for _ in range(2)] if affine else []
    dbias, dweight = both or (None, None)
    call(
        "lane_norm_backward", laid(dy, layout), as_sums(ddist2, x), laid(x, layout),
        *(as_sums(t, x) for t in (a.weight, a.bias, a.running_mean, a.running_var)),
        laid(a.residual, layout), None if ddist2 is None else laid(a.target, layout),
        a.lanes, a.training, a.eps, a.relu, dx, dresidual, dweight, dbias,
    )  # fmt: skip
    return dx, dresidual, torch.stack(both, 1) if both else None
