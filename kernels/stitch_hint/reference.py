"""`stitch_hint` in plain PyTorch: the oracle of tests and benches, and what runs, or what
`torch.compile` traces, where no compiled backend serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..shared.sums import wide
from .arguments import StitchHintArguments


def forward(a: StitchHintArguments) -> tuple[Tensor | None, Tensor | None]:
    """(y or None, dist2 or None)."""
    x, weight, target = a.x, a.weight, a.target
    features = _gathered(_channels_last(x), a.x_index)  # (L, B, ..., C1)
    rows = features.flatten(1, -2)
    y = torch.baddbmm(a.bias.to(x.dtype).unsqueeze(1), rows, weight.to(x.dtype).mT)
    y = y.reshape(*features.shape[:-1], weight.shape[1])
    dist2 = None
    if target is not None:
        aimed = _gathered(_channels_last(target.detach()), a.target_index)
        dist2 = (wide(y) - wide(aimed)).square().flatten(2).sum(2)
    return (_channels_second(y).flatten(0, 1) if a.write else None), dist2


def _gathered(x: Tensor, index: Sequence[int]) -> Tensor:
    """x[index] of the first axis, without a copy where all want the same one, or each its own."""
    if len(set(index)) == 1:
        return x[index[0]].expand(len(index), *x.shape[1:])
    return x if list(index) == list(range(len(x))) else x[list(index)]


def _channels_last(x: Tensor) -> Tensor:
    """(S, B, C, H, W) -> (S, B, H, W, C); tokens and vectors already end in their features."""
    return x.movedim(2, -1) if x.dim() == 5 else x


def _channels_second(x: Tensor) -> Tensor:
    """The inverse: (S, B, H, W, C) -> (S, B, C, H, W)."""
    return x.movedim(-1, 2) if x.dim() == 5 else x
