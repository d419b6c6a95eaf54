"""The linear probe of a frozen network: a classifier of its features, fitted to labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..device.precision import PLAIN, arithmetic, autocast
from ..errors import FulaError
from ..models import Staged
from ..models.staged import eval_mode
from ..pipelines import ImageSet, evaluation_batches


@dataclass(frozen=True)
class Classifier:
    """The last linear layer of a network's head, and its place."""

    parent: nn.Module
    name: str
    module: nn.Linear

    def put(self, module: nn.Module) -> None:
        """Let `module` stand in its place."""
        self.parent.add_module(self.name, module)


def classifier_of(staged: Staged) -> Classifier:
    """Raises `FulaError` for a head without a linear layer."""
    found = None
    for parent in staged.head.modules():
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear):
                found = Classifier(parent, name, module)
    if found is None:
        raise FulaError(f"model '{staged.name}' has no linear layer in its head, so no classifier")
    return found


def features(
    staged: Staged, images: ImageSet, *, batch_size: int = 500,
    device: str | torch.device = "cpu", precision: str = PLAIN, **options: Any,
) -> Tensor:  # fmt: skip
    """What the classifier takes of every image, (n, d), on the CPU; `options` as of
    `evaluation_batches`."""
    classifier, found = classifier_of(staged), []
    classifier.put(nn.Identity())
    try:
        with eval_mode(staged), arithmetic(precision):
            for batch in evaluation_batches(images, batch_size, device, **options):
                with autocast(batch.images.device, precision):
                    found.append(staged(batch.images).float().cpu())
    finally:
        classifier.put(classifier.module)
    return torch.cat(found)


def probed(staged: Staged, images: ImageSet, **how: Any) -> None:
    """Fit the classifier to the labels, the rest frozen; `how` as of `features`.

    Multinomial logistic regression with an L2 penalty on standardised features (scikit-learn's, C
    = 1), which is folded into the layer's weight and bias. A class without images gets what keeps
    it from being answered. Raises `FulaError` for a classifier without a bias.
    """
    from sklearn.linear_model import LogisticRegression

    layer = classifier_of(staged).module
    if layer.bias is None:
        raise FulaError(f"the classifier of model '{staged.name}' has no bias, which a probe needs")
    x, labels = features(staged, images, **how).double().numpy(), np.asarray(images.labels)
    mean, spread = x.mean(0), x.std(0)
    spread[spread == 0] = 1
    fit = LogisticRegression(max_iter=5000).fit((x - mean) / spread, labels)
    coefficients, intercept = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # of which one row is kept, the second's over the first
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    weight = np.zeros((layer.out_features, x.shape[1]))
    bias = np.full(layer.out_features, -1e4)
    weight[fit.classes_] = coefficients / spread
    bias[fit.classes_] = intercept - weight[fit.classes_] @ mean
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
