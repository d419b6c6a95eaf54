"""fula_fast.kernels in somebody else's training loop: plain PyTorch, no engine.

A small network is trained twice from the same start: once with `nn.BatchNorm2d` + ReLU and a
hand-written distance to a teacher, once with `lane_norm`, which gives the activation and its
distance together. Both end with the same weights.

    python tests/whole/embed/foreign_loop.py
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fula_fast import kernels


class Plain(nn.Module):
    """Convolution, batch norm, ReLU; returns the activation and its distance to `target`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x)).relu()
        return y, (y - target).square().flatten(1).sum(1)


class Fused(Plain):
    """The same through one operator."""

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        nothing = x.new_zeros(1, 8)  # running statistics: not read in training
        y, _, _, dist2 = kernels.lane_norm(
            self.conv(x), self.norm.weight, self.norm.bias, nothing, nothing,
            lanes=1, training=True, eps=self.norm.eps, relu=True, target=target,
        )  # fmt: skip
        return y, dist2[0]


def train(model: Plain, teacher: Plain, steps: int = 20) -> list[float]:
    """Losses of the normalised distance to the teacher's activations."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.rand(16, 3, 12, 12, generator=generator)
        with torch.no_grad():
            target, _ = teacher(x, torch.zeros(16, 8, 12, 12))
        _, dist2 = model(x, target)
        loss = kernels.term(dist2[None], kernels.squared_norm(target)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    teacher, plain = Plain(), Plain()
    fused = Fused()
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    expected, got = train(plain, teacher), train(fused, teacher)
    worst = max(abs(a - b) for a, b in zip(expected, got, strict=True))
    print(f"loss {got[0]:.4f} -> {got[-1]:.4f}; largest difference to plain PyTorch {worst:.1e}")
    if worst > 1e-4 or got[-1] > 0.7 * got[0]:
        raise SystemExit("the fused loop does not follow the plain one")


if __name__ == "__main__":
    main()
