"""The survivors of an attack, handed to a search of any make (`NamedAttack.search`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..errors import FulaError
from .losses import LogitsFn
from .names import NamedAttack
from .options import AttackOptions
from .packed import PackedModel
from .record import Record

_SLACK = 1e-4
"""By what share of eps an image may leave the ball: rounding."""


def hand_over(
    exact: PackedModel, record: Record, named: NamedAttack, options: AttackOptions
) -> None:
    """Let the attack's search try the survivors, lane by lane; what fools them goes to `record`.

    Raises `FulaError` where it gives images of another form, or outside the ball.
    """
    search = _loaded(named.search)
    survivors = record.surviving()
    for lane in range(exact.lanes):
        index = [image for own, image in survivors if own == lane]
        if not index:
            continue
        x = record.pixels(index)
        found = search(_logits(exact, lane), x, record.labels[index], options)
        _check(named, found, x, options)
        moved = (found != x).flatten(1).any(1).nonzero()[:, 0].tolist()
        if moved:
            record.confirm([(lane, index[i]) for i in moved], found[moved])


def _loaded(search: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(search):
        return search
    module, _, name = search.partition(":")
    return getattr(import_module(module), name)


def _logits(exact: PackedModel, lane: int) -> LogitsFn:
    def logits(z: Tensor) -> Tensor:
        return exact.logits(z, torch.full((len(z),), lane, device=z.device))

    return logits


def _check(named: NamedAttack, found: Tensor, x: Tensor, options: AttackOptions) -> None:
    if found.shape != x.shape:
        raise FulaError(
            f"attack '{named.name}' gave images {tuple(found.shape)} for {tuple(x.shape)}; its "
            "search returns one image for each"
        )
    off = (found - x).flatten(1)
    size = off.abs().amax(1) if options.norm == "linf" else off.norm(dim=1)
    far = float(size.max())
    if not far <= options.eps * (1 + _SLACK) or not 0 <= found.min() <= found.max() <= 1:
        raise FulaError(
            f"attack '{named.name}' left the ball: it moved an image by {far:g} (eps = "
            f"{options.eps:g}), pixels {found.min():g} to {found.max():g}; clip what it returns"
        )
