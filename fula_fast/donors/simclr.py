"""SimCLR (Chen et al. 2020): a network trained without labels, to know two views of an image.

The projector behind the features (d → 1024 → 128) is dropped afterwards; the classifier, which took
no part, becomes the linear probe of the frozen network: multinomial logistic regression of the
training labels on the features of unaugmented images (where there are labels).
"""

from __future__ import annotations

import hashlib
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..device.precision import autocast
from ..errors import FulaError
from ..models import Staged
from ..models.headed import classifier_of
from ..models.preparation import Preparation
from ..pipelines import ImageSet, Input
from .linear_probe import probed
from .training_run import TrainingRecipe, TrainingRun

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
    try:
        from kornia import augmentation
    except ImportError:
        raise FulaError(
            "recipe = 'simclr' takes its augmentations from kornia; pip install 'fula-fast[simclr]'"
        ) from None
    side = shape[1], shape[2]
    parts = list[nn.Module]()
    parts.append(augmentation.RandomResizedCrop(side, scale=(SMALLEST_CROP, 1.0)))
    if flip:
        parts.append(augmentation.RandomHorizontalFlip(p=0.5))
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
        self.views, self.seed = views(given.shape(image_shape), flip=flip), seed
        self.numbers = count()  # of steps: the batch itself would have to come from the device
        self.normalised = Preparation(Input(None, given.normalisation))
        self.classifier = classifier_of(staged)
        linear = self.classifier.module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_key(seed, "projector"))
            projector = nn.Sequential(
                nn.Linear(linear.in_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PROJECTED)
            )
        self.classifier.put(projector.to(linear.weight.device))
        super().__init__(staged, recipe, stream, precision)

    def step(self, batch: Any, epoch: int, rate: float) -> tuple[Tensor, Tensor]:
        """One update; the batch's loss and half the number of views that know their partner."""
        with torch.random.fork_rng(devices=[]):  # kornia draws on the host
            torch.manual_seed(_key(self.seed, next(self.numbers)))
            both = torch.cat([self.views(batch.images) for _ in range(2)])
        both = self.normalised(both).contiguous(memory_format=torch.channels_last)
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


def _key(*parts: object) -> int:
    """A seed that every part changes."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])
