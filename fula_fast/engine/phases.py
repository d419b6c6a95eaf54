"""What the steps of a wave are like, from which one on: the lanes' losses, and their route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..methods import Method, methods
from .lanes import Lane, LossPart, Route


@dataclass(frozen=True, eq=False)
class Phase:
    """Steps of one form, from number `start` on.

    `lanes`: with their losses of that time. `routes`: of each turn, by its number. `full`: the
    statistics of all lanes move, else those of the lanes that pass alone. `weights`, (L, columns)
    each: of every end site's term, then of every task's loss, in the first part of each lane's
    loss, in the second, ….
    """

    start: int
    lanes: Sequence[Lane]
    routes: Mapping[int, Route]
    full: bool
    weights: tuple[Tensor, ...]


def tasks() -> tuple[Method, ...]:
    """The methods with a loss on logits: a column each behind the end sites'."""
    return tuple(method for method in methods() if method.loss is not None)


def loss_weights(lanes: Sequence[Lane]) -> list[list[list[float]]]:
    """`weights` of a `Phase` as lists; zero where a lane has fewer parts."""
    names = [task.name for task in tasks()]
    none = [0.0] * (len(lanes[0].site_weights) + len(names))
    parts = max(len(lane.parts) for lane in lanes)
    return [
        [_weights(lane.parts[k], names) if k < len(lane.parts) else none for lane in lanes]
        for k in range(parts)
    ]


def _weights(part: LossPart, names: Sequence[str]) -> list[float]:
    return [*part.site_weights, *(part.tasks.get(name, 0.0) for name in names)]
