"""`stitch_hint` by the C++ library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..shared.cpu import as_sums, call, sums
from ..shared.layout import fronts_like, stitched
from ..shared.operators import Incoming
from .arguments import StitchHintArguments


def forward(a: StitchHintArguments) -> tuple[Tensor | None, Tensor | None]:
    """(y or None, dist2 or None)."""
    x = a.x
    lanes, channels, _ = a.weight.shape
    y = stitched(x, lanes * x.shape[1], channels) if a.write else None
    dist2 = None if a.target is None else sums(x, lanes, x.shape[1])
    call(
        "stitch_hint_forward", _features_second(x), as_sums(a.weight, x), as_sums(a.bias, x),
        _numbers(a.x_index), _features_second(a.target),
        None if a.target is None else _numbers(a.target_index), _stitched_view(y), dist2,
    )  # fmt: skip
    return y, dist2


def backward(
    a: StitchHintArguments, incoming: Incoming, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dweight, dbias, dx or None)."""
    x, (dy, ddist2) = a.x, incoming
    dw, db = sums(x, *a.weight.shape), sums(x, *a.bias.shape)
    dx = fronts_like(x) if need_dx else None
    aimed = None if ddist2 is None else _features_second(a.target)
    call(
        "stitch_hint_backward", _stitched_view(dy), as_sums(ddist2, x), _features_second(x),
        as_sums(a.weight, x), as_sums(a.bias, x), _numbers(a.x_index), aimed,
        None if aimed is None else _numbers(a.target_index), None, dw, db, _features_second(dx),
    )  # fmt: skip
    return dw.to(a.weight.dtype), db.to(a.bias.dtype), dx


def _features_second(x: Tensor | None) -> Tensor | None:
    """Features behind the batch: tokens (..., T, C) as (..., C, T); others have them there."""
    if x is None:
        return None
    x = x.detach()
    if x.dim() == 4:
        return x.contiguous().transpose(2, 3)
    if x.dim() == 5:
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, x.shape[:2])
    return x.contiguous()


def _stitched_view(y: Tensor | None) -> Tensor | None:
    """y (L*B, ...) as the library sees it, features behind the batch."""
    return None if y is None else _features_second(y.unsqueeze(0)).squeeze(0)


def _numbers(index: Sequence[int]) -> Tensor:
    return torch.tensor(index, dtype=torch.int64)
