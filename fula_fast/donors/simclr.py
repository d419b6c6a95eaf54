"""SimCLR (Chen et al. 2020): a network trained without labels, to know two views of an image.

The projector behind the features (d → 1024 → 128) is dropped afterwards; the classifier, which took
no part, becomes the linear probe of the frozen network: multinomial logistic regression of the
training labels on the features of unaugmented images (where there are labels).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..device.precision import autocast
from ..models import Staged
from ..models.headed import classifier_of
from ..pipelines import ImageSet, Input
from .linear_probe import probed
from .training_run import TrainingRecipe, TrainingRun
from .views import Views, crops, key, kornia_augmentation

TEMPERATURE = 0.5
HIDDEN, PROJECTED = 1024, 128
SMALLEST_CROP = 0.2
JITTER, JITTERED = (0.4, 0.4, 0.4, 0.1), 0.8
GRAYED = 0.1


def similarities(z: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Of projections (2B, D), rows i and B + i of two views of an image: (2B, 2B) cosines over the
    temperature, no row similar to itself."""
    z = normalize(z.float(), dim=1)
    return (z @ z.T / temperature).fill_diagonal_(float("-inf"))


def nt_xent(similar: Tensor) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, Eq. 1) of `similarities`
    (2B, 2B): the mean over all rows."""
    return cross_entropy(similar, _partners(similar))


def _partners(z: Tensor) -> Tensor:
    """Of each row the number of the other view's, (2B,)."""
    return torch.arange(len(z), device=z.device).roll(len(z) // 2)


def views(shape: tuple[int, ...], *, flip: bool) -> nn.Module:
    """The random augmentation of images (B, C, H, W) in [0, 1] to (B, *shape), each by its draw:
    a crop of 0.2 to 1 of the area, a flip, colour jitter (0.4, 0.4, 0.4, 0.1) of four in five, one
    in ten in gray. Colours stay where there is one channel.

    Raises `FulaError` where kornia is not installed.
    """
    augmentation = kornia_augmentation("simclr")
    parts = crops(shape, smallest=SMALLEST_CROP, flip=flip)
    if shape[0] == 3:
        parts.append(augmentation.ColorJitter(*JITTER, p=JITTERED))
        parts.append(augmentation.RandomGrayscale(p=GRAYED))
    return nn.Sequential(*parts)


class SimclrRun(TrainingRun):
    """A training of which a step compares two views of every image of a batch, plain in [0, 1]; the
    accuracy of an epoch is the share of views whose nearest view is their partner.

    `given`: what the network takes of images (C, H, W) = `image_shape`. Raises `FulaError` for a
    network without a linear classifier.
    """

    def __init__(
        self, staged: Staged, recipe: TrainingRecipe, stream: Any, precision: str, *,
        given: Input, image_shape: tuple[int, ...], flip: bool, seed: int,
    ) -> None:  # fmt: skip
        self.views = Views(views(given.shape(image_shape), flip=flip), given, seed)
        self.classifier = classifier_of(staged)
        linear = self.classifier.module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, "projector"))
            projector = nn.Sequential(
                nn.Linear(linear.in_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PROJECTED)
            )
        self.classifier.put(projector.to(linear.weight.device))
        super().__init__(staged, recipe, stream, precision)

    def step(self, batch: Any, epoch: int, rate: float) -> tuple[Tensor, Tensor]:
        """One update; the batch's loss and half the number of views that know their partner."""
        both = self.views(batch.images, 2)
        self.staged.train()
        with autocast(both.device, self.precision):
            z = self.staged(both)
        similar = similarities(z)
        loss = nt_xent(similar)
        self.update(loss, rate)
        return loss.detach(), (similar.detach().argmax(1) == _partners(similar)).sum() / 2

    def finish(self, images: ImageSet, **common: Any) -> None:
        """Put the classifier back, as the linear probe of labelled `images`."""
        self.classifier.put(self.classifier.module)
        if images.classes:
            probed(self.staged, images, precision=self.precision, **common)
