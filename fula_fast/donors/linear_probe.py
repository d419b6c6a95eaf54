"""The linear probe of a frozen network: a classifier of its features, fitted to labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..device.precision import PLAIN, arithmetic, autocast
from ..errors import FulaError
from ..models import Staged
from ..models.headed import classifier_of, embedding
from ..models.staged import eval_mode
from ..pipelines import ImageSet, evaluation_batches

PENALTY = 1.0
"""scikit-learn's 1 / C."""
_ROOM = 2**20
"""Numbers in float64 that a fit holds at once beside the features."""
_log = logging.getLogger(__name__)


def features(
    staged: Staged, images: ImageSet, *, batch_size: int = 500,
    device: str | torch.device = "cpu", precision: str = PLAIN, **options: Any,
) -> Tensor:  # fmt: skip
    """What a head takes of every image, (n, d), on the CPU: what the classifier is given, or the
    embedding of a network without one. Images come batch by batch; `options` as of
    `evaluation_batches`."""
    found = torch.empty(0)
    with embedding(staged), eval_mode(staged), arithmetic(precision):
        start = 0
        for batch in evaluation_batches(images, batch_size, device, **options):
            with autocast(batch.images.device, precision):
                own = staged(batch.images)
            if not start:  # all at once: joined later, they would be held twice
                found = torch.empty(len(images), *own.shape[1:])
            found[start : start + len(own)] = own
            start += len(own)
    return found


def linear_probe(x: Tensor, labels: np.ndarray, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, d) and bias (classes,) in float64, fitted to features (n, d) and labels.

    Multinomial logistic regression with an L2 penalty on standardised features, folded into weight
    and bias: the function, the start and the end of scikit-learn's (C = 1, L-BFGS; two classes as
    one row), computed from few images at a time. Beside the features it holds little, where
    scikit-learn would hold them twice more and the answers to all images. A class without images
    gets what keeps it from being answered. Raises `FulaError` for labels of a single class.
    """
    labels = np.asarray(labels)
    known, places = np.unique(labels, return_inverse=True)
    if len(known) == 1:
        raise FulaError(
            f"a linear probe tells classes apart, but all {len(labels)} images are of class "
            f"{labels[0]}; give images of two classes at least, or head = 'none'"
        )
    from scipy.optimize import minimize  # most runs fit no head

    loss = _Loss(x, torch.from_numpy(places), len(known))
    found = minimize(
        loss, np.zeros(loss.rows * (x.shape[1] + 1)), jac=True, method="L-BFGS-B",
        options={"maxiter": 5000, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps},
    )  # fmt: skip
    if not found.success:
        _log.warning("the linear probe did not converge (%s)", found.message)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    bias = torch.full((classes,), -1e4, dtype=torch.float64)
    weight[known], bias[known] = loss.layer(torch.from_numpy(found.x))
    return weight, bias


class _Loss:
    """(1/n) (sum of cross-entropies + PENALTY/2 ||W||^2) of weights W and biases of standardised
    features x (n, d), and its gradient; `rows` of both, of two classes the second's over the first.
    """

    def __init__(self, x: Tensor, labels: Tensor, classes: int) -> None:
        self.x, self.labels, self.classes = x, labels, classes
        self.rows = classes if classes > 2 else 1
        self.step = max(_ROOM // max(x.shape[1], classes), 1)
        zeros = x.new_zeros(x.shape[1], dtype=torch.float64)
        self.mean = sum((part.sum(0) for part, _ in self._parts()), zeros) / len(x)
        squares = sum(((part - self.mean).square().sum(0) for part, _ in self._parts()), zeros)
        self.spread = (squares / len(x)).sqrt()
        self.spread[self.spread == 0] = 1

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A few images' features, in float64, and their labels."""
        for part, labels in zip(self.x.split(self.step), self.labels.split(self.step), strict=True):
            yield part.double(), labels

    def layer(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (classes, d) and bias (classes,) for features as they are."""
        whole = numbers.view(self.rows, -1)
        weight = whole[:, :-1] / self.spread
        bias = whole[:, -1] - weight @ self.mean
        if self.rows == 1:
            return torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return weight, bias

    def __call__(self, numbers: np.ndarray) -> tuple[float, np.ndarray]:
        own = torch.from_numpy(numbers)
        weight, bias = self.layer(own)
        total = own.new_zeros(())
        slopes, sums = torch.zeros_like(weight), torch.zeros_like(bias)
        for x, labels in self._parts():
            logits = torch.addmm(bias, x, weight.T)
            total += cross_entropy(logits, labels, reduction="sum")
            slope = logits.softmax(1)
            slope[torch.arange(len(labels)), labels] -= 1
            slopes += slope.T @ x
            sums += slope.sum(0)
        penalised = own.view(self.rows, -1)[:, :-1]
        total += PENALTY / 2 * penalised.square().sum()
        if self.rows == 1:
            slopes, sums = ((s[1:] - s[:1]) / 2 for s in (slopes, sums))
        slopes = (slopes - sums[:, None] * self.mean) / self.spread + PENALTY * penalised
        gradient = torch.cat([slopes, sums[:, None]], 1).flatten() / len(self.x)
        return float(total) / len(self.x), gradient.numpy()


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
