"""Robust accuracy of a run's stitched models and donors: columns of the results table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .attacks import PackedModel, robust_evaluate
from .measures.agreement import soft_agreement
from .pipelines import Batch
from .protocol import Protocol

_PART = 256


def robust_columns(
    models: PackedModel | nn.Module,
    end: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
) -> list[dict[str, Any]]:
    """Columns of every model under the protocol's attack (`protocol.robust`).

    `end`: eval-mode logits of the end donor. `images` (N, C, H, W) in [0, 1], `labels` (N,).
    `robust_agreement_soft` is the soft agreement of stitched model and end donor on the adversarial
    images found on the stitched model (the clean image where none was).
    """
    attack = protocol.attack
    results = robust_evaluate(
        models, images, labels, protocol.robust,
        norm=attack.norm, eps=attack.eps, step=attack.step, keep_images=True,
    )  # fmt: skip
    columns = []
    for result in results:
        seen = torch.cat([end(part).cpu() for part in result.adversarial.to(images).split(_PART)])
        agreement = float(soft_agreement(result.logits.cpu(), seen))
        columns.append(result.row() | {"robust_agreement_soft": agreement})
    return columns


def attacked_images(batches: Iterable[Batch], limit: int | None) -> tuple[Tensor, Tensor]:
    """The first `limit` test images (all where None) and their labels."""
    images, labels = [], []
    for batch in _until(batches, limit):
        images.append(batch.images)
        labels.append(batch.labels)
    return torch.cat(images)[:limit], torch.cat(labels)[:limit]


def _until(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    count = 0
    for batch in batches:
        yield batch
        count += len(batch.labels)
        if limit is not None and count >= limit:
            return
