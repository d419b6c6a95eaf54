"""`hint_terms` in plain PyTorch: the oracle of tests and benches, and what runs, or what
`torch.compile` traces, where no compiled backend serves."""

from __future__ import annotations

from torch import Tensor

from ..shared.distance import squared_distance
from ..shared.sums import by_lane, wide
from .arguments import HintTermsArguments


def forward(a: HintTermsArguments) -> list[Tensor]:
    """dist2 (L_i, B) of every depth."""
    return [
        squared_distance(wide(by_lane(x, len(x) // max(len(t), 1), len(t))), t)
        for x, t in zip(a.activations, a.targets, strict=True)
    ]
