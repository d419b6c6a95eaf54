"""Robust accuracy of a run's stitched models and donors: columns of the results table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..device.precision import PLAIN, arithmetic
from ..measures.agreement import soft_agreement
from ..pipelines import Batch
from . import PackedModel, RobustResult, robust_evaluate

_PART = 256


def attacked_models(
    models: PackedModel | nn.Module,
    end: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    attack: str,
    options: Mapping[str, Any],
) -> list[tuple[dict[str, Any], RobustResult]]:
    """Columns of every model under an attack, and all that is known of it.

    `end`: eval-mode logits of the end donor. `images` (N, C, H, W) in [0, 1], `labels` (N,).
    `options`: of `robust_evaluate`. `robust_agreement_soft` is the soft agreement of stitched model
    and end donor on the adversarial images found on the stitched model (the clean image where none
    was). Models are to come in full precision, whatever they trained in: every column here,
    `robust_clean_accuracy` included, is of the model that adversarial images are confirmed on, and
    `robust_precision` says how they were searched for. `end` runs without TF32, as the models do.
    """
    results = robust_evaluate(models, images, labels, attack, keep_images=True, **options)
    with arithmetic(PLAIN):
        return [_columns(result, end, images) for result in results]


def _columns(
    result: RobustResult, end: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[dict[str, Any], RobustResult]:
    parts = result.adversarial.to(images).split(_PART)
    with torch.no_grad():
        seen = torch.cat([end(part).cpu() for part in parts])
    agreement = float(soft_agreement(result.logits.cpu(), seen))
    return result.row() | {"robust_agreement_soft": agreement}, result


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
