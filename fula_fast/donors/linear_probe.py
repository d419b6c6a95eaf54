"""The linear probe of a frozen network: a classifier of its features, fitted to labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device.precision import PLAIN, arithmetic, autocast
from ..errors import FulaError
from ..models import Staged
from ..models.headed import classifier_of, embedding
from ..models.staged import eval_mode
from ..pipelines import ImageSet, evaluation_batches

PENALTY = 1.0
"""scikit-learn's 1 / C."""


def features(
    staged: Staged, images: ImageSet, *, batch_size: int = 500,
    device: str | torch.device = "cpu", precision: str = PLAIN, **options: Any,
) -> Tensor:  # fmt: skip
    """What a head takes of every image, (n, d), on the CPU: what the classifier is given, or the
    embedding of a network without one. Images come batch by batch; `options` as of
    `evaluation_batches`."""
    found = []
    with embedding(staged), eval_mode(staged), arithmetic(precision):
        for batch in evaluation_batches(images, batch_size, device, **options):
            with autocast(batch.images.device, precision):
                found.append(staged(batch.images).float().cpu())
    return torch.cat(found)


def linear_probe(x: Tensor, labels: np.ndarray, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, d) and bias (classes,) in float64, fitted to features (n, d) and labels.

    Multinomial logistic regression with an L2 penalty on standardised features (scikit-learn's, C
    = 1), which is folded into weight and bias. A class without images gets what keeps it from being
    answered. Raises `FulaError` for labels of a single class.
    """
    from sklearn.linear_model import LogisticRegression

    rows, labels = x.to(torch.float64, copy=True).numpy(), np.asarray(labels)
    if (labels == labels[0]).all():
        raise FulaError(
            f"a linear probe tells classes apart, but all {len(labels)} images are of class "
            f"{labels[0]}; give images of two classes at least, or head = 'none'"
        )
    mean, spread = rows.mean(0), rows.std(0)
    spread[spread == 0] = 1
    rows -= mean  # in place: they may be many
    rows /= spread
    fit = LogisticRegression(C=1 / PENALTY, max_iter=5000).fit(rows, labels)
    coefficients, intercept = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # of which one row is kept, the second's over the first
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    weight = np.zeros((classes, rows.shape[1]))
    bias = np.full(classes, -1e4)
    weight[fit.classes_] = coefficients / spread
    bias[fit.classes_] = intercept - weight[fit.classes_] @ mean
    return torch.from_numpy(weight), torch.from_numpy(bias)


def probed(staged: Staged, images: ImageSet, **how: Any) -> None:
    """Fit the network's own classifier to the labels (`linear_probe`), the rest frozen; `how` as of
    `features`.

    Raises `FulaError` for a classifier without a bias.
    """
    layer = classifier_of(staged).module
    if layer.bias is None:
        raise FulaError(f"the classifier of model '{staged.name}' has no bias, which a probe needs")
    found = linear_probe(features(staged, images, **how), images.labels, layer.out_features)
    with torch.no_grad():
        for own, fitted in zip((layer.weight, layer.bias), found, strict=True):
            own.copy_(fitted)
