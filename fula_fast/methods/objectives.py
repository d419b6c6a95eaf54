"""Objectives of a stitch: normalised terms, and the two task losses.

With h_l the stitched model's activation at end-site l and g_l the end's own on the same input,
term(l) = ||h_l - g_l||_F / ||g_l||_F, not squared (FuLA preprint, Eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Method
from .weightings import Weighting

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


def soft_label_losses(logits: Tensor, target_logits: Tensor, labels: None = None) -> Tensor:
    """SLM of every lane: (L, B, C) logits against the end's, (B, C) or (L, B, C), to (L,).

    Cross-entropy to softmax of the end's logits, less the targets' entropy: the subtracted constant
    makes it a KL divergence, zero at agreement, with the same gradient (Csiszarik et al. 2021).
    """
    target = target_logits.detach().log_softmax(-1)
    each = (target.exp() * (target - logits.log_softmax(-1))).sum(-1)
    return each.mean(-1)


def label_losses(logits: Tensor, end_logits: None, labels: Tensor) -> Tensor:
    """TLM of every lane: cross-entropy of (L, B, C) logits to labels (B,), mean over B, to (L,)."""
    count = len(logits)
    expanded = labels.expand(count, -1).flatten()
    each = F.cross_entropy(logits.flatten(0, 1), expanded, reduction="none")
    return each.view(count, -1).mean(1)


def value(
    method: Method,
    terms: Sequence[Tensor],
    weighting: Weighting,
    logits: Tensor,
    targets: Tensor,
    labels: Tensor,
) -> Tensor:
    """A method's objective of one batch of a single model.

    `terms` run from the stitch's site to the last one; `logits` (B, C) are the stitched model's,
    `targets` (B, C) the end's own, `labels` (B,).
    """
    found = []
    if method.terms is not None:
        weights = method.terms(weighting, len(terms))
        found += [w * t for w, t in zip(weights, terms, strict=True) if w]
    if (loss := method.load()) is not None:
        given = (targets if method.end_logits else None, labels if method.labels else None)
        found.append(loss(logits[None], *given)[0])
    return sum(found)
