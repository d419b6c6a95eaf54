"""Objectives of a stitch: normalised terms, and the two task losses.

With h_l the stitched model's activation at end-site l and g_l the end's own on the same input,
term(l) = ||h_l - g_l||_F / ||g_l||_F, not squared (FuLA preprint, Eq. 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FulaError, nearest
from ..study.protocol import TRAINED

Norm = Literal["batch", "sample"]


def term(h: Tensor, g: Tensor, norm: Norm = "batch") -> Tensor:
    """||h - g|| / ||g|| of (B, ...) tensors: over the whole batch, or per sample and then the mean.

    No gradient flows to `g`. At h = g the gradient is zero. A target that is zero everywhere in
    the scope has no relative distance: its ratio and gradient are zero.
    """
    dims = tuple(range(h.dim())) if norm == "batch" else tuple(range(1, h.dim()))
    g = g.detach()
    distance = torch.linalg.vector_norm(h - g, dim=dims)
    scale = torch.linalg.vector_norm(g, dim=dims)
    one = torch.ones_like(scale)
    return torch.where(scale == 0, 0 * distance, distance / scale.where(scale != 0, one)).mean()


def soft_label_losses(logits: Tensor, target_logits: Tensor) -> Tensor:
    """SLM of every lane: (L, B, C) logits against the end's, (B, C) or (L, B, C), to (L,).

    Cross-entropy to softmax of the end's logits, less the targets' entropy: the subtracted constant
    makes it a KL divergence, zero at agreement, with the same gradient (Csiszarik et al. 2021).
    """
    target = target_logits.detach().log_softmax(-1)
    each = (target.exp() * (target - logits.log_softmax(-1))).sum(-1)
    return each.mean(-1)


def values(
    terms: list[Tensor], weights: tuple[float, ...], logits: Tensor, targets: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """All four objectives of one batch.

    `terms` and `weights` run from the stitch's site to the last one; `logits` (B, C) are the
    stitched model's, `targets` (B, C) the end's own, `labels` (B,).
    """
    return {
        "hint": terms[0],
        "fula": sum(w * t for w, t in zip(weights, terms, strict=True) if w),
        "slm": soft_label_losses(logits[None], targets)[0],
        "tlm": F.cross_entropy(logits, labels),
    }


def mixture(method: str | Mapping[str, float]) -> dict[str, float]:
    """Weights of the four trained objectives: a name, or non-negative weights by name.

    `dm` has no objective and gives an empty mixture. Raises `FulaError` for unknown names and
    for weights that are negative or all zero.
    """
    if method == "dm":
        return {}
    weights = {method: 1.0} if isinstance(method, str) else dict(method)
    for name, weight in weights.items():
        if name not in TRAINED:
            raise FulaError(f"unknown objective '{name}'{nearest(name, TRAINED)}")
        if not weight >= 0:
            raise FulaError(f"objective weight {name} = {weight} must be non-negative")
    if not sum(weights.values()) > 0:
        raise FulaError(f"objective weights {weights} must have a positive sum")
    return {name: weight for name, weight in weights.items() if weight > 0}
