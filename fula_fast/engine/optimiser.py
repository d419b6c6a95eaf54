"""One optimiser step for the stitches of all lanes, over one flat buffer.

Learning rate, weight decay and schedule are vectors over lanes. A lane whose loss is not finite is
frozen: `torch.where` keeps its parameters and moments (a product with zero would keep the NaN).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..study.protocol import Protocol


class FlatOptimiser:
    """Adam (L2 form) or SGD with momentum, elementwise over a flat buffer of parameters.

    `lane_of`: (P,) lane number of each parameter. `protocols`: one per lane. `steps`: of the whole
    training, for the schedule. Same formulas as `torch.optim.Adam` and `torch.optim.SGD`.
    """

    BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

    def __init__(
        self, flat: Tensor, lane_of: Tensor, protocols: Sequence[Protocol], steps: int
    ) -> None:
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

    def rates(self) -> Tensor:
        """Learning rate of each lane at the present step, (L,) float64."""
        third = torch.div(3 * self.done, self.steps, rounding_mode="floor")
        return torch.where(self.thirds, self.lr * 0.1 ** third.double(), self.lr)

    @torch.no_grad()
    def step(self, alive: Tensor) -> None:
        """Update the lanes in `alive` (L,) from `grad`; then `grad` is zero again."""
        kept = alive[self.lane_of]
        decay = self.decay.to(self.flat.dtype)[self.lane_of]
        g = torch.where(kept, self.grad + decay * self.flat, 0.0)
        rate = self.rates().to(self.flat.dtype)[self.lane_of]
        update = self._adam(g) if self.kind == "adam" else self._sgd(g)
        # A frozen lane's moments decay towards zero, but nothing of it moves any more.
        self.flat.sub_(torch.where(kept, rate * update, 0.0))
        self.grad.zero_()
        self.done += 1

    def _adam(self, g: Tensor) -> Tensor:
        first, second = self.moments
        first.lerp_(g, 1 - self.BETA1)
        second.mul_(self.BETA2).addcmul_(g, g, value=1 - self.BETA2)
        t = (self.done + 1).double()
        correction1 = (1 - self.BETA1**t).to(g.dtype)
        correction2 = (1 - self.BETA2**t).sqrt().to(g.dtype)
        return first / correction1 / (second.sqrt() / correction2 + self.EPS)

    def _sgd(self, g: Tensor) -> Tensor:
        (buffer,) = self.moments
        momentum = self.momentum.to(g.dtype)[self.lane_of]
        buffer.mul_(momentum).add_(g)
        return buffer

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint needs (not copied)."""
        moments = {f"moment{i}": m for i, m in enumerate(self.moments)}
        return {"flat": self.flat, "done": self.done, **moments}
