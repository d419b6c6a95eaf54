"""One optimiser step for the stitches of all lanes, over one flat buffer.

Learning rate, weight decay and schedule are vectors over lanes. A lane whose loss is not finite is
frozen: `torch.where` keeps its parameters and moments (a product with zero would keep the NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..study.protocol import Protocol

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam

Fuse = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes a function of elementwise operators one kernel, or leaves it."""


def unfused(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Leaves it."""
    return fn


class Lanes(NamedTuple):
    """By lane, (L,): whether it trains on, weight decay, learning rate, momentum."""

    alive: Tensor
    decay: Tensor
    rate: Tensor
    momentum: Tensor


class FlatOptimiser:
    """Adam (L2 form) or SGD with momentum, elementwise over a flat buffer of parameters.

    `lane_of`: (P,) lane number of each parameter. `protocols`: one per lane. `steps`: of the whole
    training, for the schedule. Same formulas as `torch.optim.Adam` and `torch.optim.SGD`.
    """

    def __init__(
        self, flat: Tensor, lane_of: Tensor, protocols: Sequence[Protocol], steps: int,
        *, fuse: Fuse = unfused,
    ) -> None:  # fmt: skip
        self.flat, self.lane_of, self.steps = flat, lane_of, max(steps, 1)
        self.grad = torch.zeros_like(flat)
        self.kind = protocols[0].optimiser if protocols else "adam"

        def vector(name: str) -> Tensor:
            values = [getattr(p, name) for p in protocols]
            return torch.tensor(values, dtype=torch.float64, device=flat.device)

        self.lr, self.decay, self.momentum = map(vector, ("lr", "weight_decay", "momentum"))
        thirds = [p.schedule == "thirds" for p in protocols]
        self.thirds = torch.tensor(thirds, device=flat.device)
        self.done = torch.zeros((), dtype=torch.int64, device=flat.device)
        self.moments = [torch.zeros_like(flat) for _ in range(2 if self.kind == "adam" else 1)]
        self._update = fuse(_adam if self.kind == "adam" else _sgd)

    def rates(self) -> Tensor:
        """Learning rate of each lane at the present step, (L,) float64."""
        third = torch.div(3 * self.done, self.steps, rounding_mode="floor")
        return torch.where(self.thirds, self.lr * 0.1 ** third.double(), self.lr)

    @torch.no_grad()
    def step(self, alive: Tensor) -> None:
        """Update the lanes in `alive` (L,) from `grad`."""
        kind = self.flat.dtype
        lanes = Lanes(alive, self.decay.to(kind), self.rates().to(kind), self.momentum.to(kind))
        self._update(self.flat, self.grad, self.lane_of, self.moments, lanes, self.done + 1)
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint needs (not copied)."""
        moments = {f"moment{i}": m for i, m in enumerate(self.moments)}
        return {"flat": self.flat, "done": self.done, **moments}


def _adam(
    flat: Tensor, grad: Tensor, lane_of: Tensor, moments: Sequence[Tensor], lanes: Lanes, t: Tensor
) -> None:
    first, second = moments
    g = _gradient(flat, grad, lane_of, lanes)
    first.lerp_(g, 1 - BETA1)
    second.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
    del g
    correction1 = (1 - BETA1 ** t.double()).to(flat.dtype)
    correction2 = (1 - BETA2 ** t.double()).sqrt().to(flat.dtype)
    _move(flat, first / correction1 / (second.sqrt() / correction2 + EPS), lane_of, lanes)


def _sgd(
    flat: Tensor, grad: Tensor, lane_of: Tensor, moments: Sequence[Tensor], lanes: Lanes, t: Tensor
) -> None:
    (buffer,) = moments
    buffer.mul_(_each(lanes.momentum, lane_of)).add_(_gradient(flat, grad, lane_of, lanes))
    _move(flat, buffer, lane_of, lanes)


def _gradient(flat: Tensor, grad: Tensor, lane_of: Tensor, lanes: Lanes) -> Tensor:
    return torch.where(_each(lanes.alive, lane_of), grad + _each(lanes.decay, lane_of) * flat, 0.0)


def _move(flat: Tensor, update: Tensor, lane_of: Tensor, lanes: Lanes) -> None:
    """A frozen lane's moments decay towards zero, but nothing of it moves any more."""
    moved = _each(lanes.rate, lane_of) * update
    flat.sub_(torch.where(_each(lanes.alive, lane_of), moved, 0.0))


def _each(values: Tensor, lane_of: Tensor) -> Tensor:
    """By parameter, (P,), what is given by lane, (L,). Indexing would widen the numbers of lanes
    first."""
    return values.index_select(0, lane_of)
