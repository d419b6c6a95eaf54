"""`pgd_step` in plain PyTorch: the oracle of tests and benches, and what runs, or what
`torch.compile` traces, where no compiled backend serves."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.sums import wide
from .arguments import PgdStepArguments


def forward(a: PgdStepArguments) -> Tensor:
    """The next x_adv."""
    x, g, clean = wide(a.x_adv), wide(a.grad), wide(a.x_clean)
    if a.norm == "linf":
        offset = (x + a.step * g.sign() - clean).clamp(-a.eps, a.eps)
    else:
        offset = x + a.step * g * _inverse_norm(g) - clean
        offset = offset * (a.eps * _inverse_norm(offset)).clamp(max=1)
    return (clean + offset).clamp(0, 1).to(a.x_adv.dtype)


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / ||x|| per sample, shaped to multiply x; infinity is replaced by 0 at x = 0."""
    norm = x.flatten(1).square().sum(1).sqrt().reshape(-1, *[1] * (x.dim() - 1))
    return torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
