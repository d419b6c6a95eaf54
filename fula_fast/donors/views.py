"""Random crops of another size and what goes with them, drawn by kornia, keyed by seed and step."""

from __future__ import annotations

import hashlib
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FulaError, not_none
from ..models import Staged
from ..models.preparation import Preparation
from ..pipelines import Input
from .training_run import TrainingRecipe, TrainingRun


def kornia_augmentation(recipe: str) -> Any:
    """The module of its augmentations; raises `FulaError` where kornia is not installed."""
    try:
        from kornia import augmentation
    except ImportError:
        raise FulaError(
            f"recipe = '{recipe}' takes its augmentations from kornia; pip install "
            "'fula-fast[simclr]'"
        ) from None
    return augmentation


def crops(shape: tuple[int, ...], *, smallest: float, flip: bool) -> list[nn.Module]:
    """A random part of an image, `smallest` to all of its area, at the side of `shape` (C, H, W);
    `flip`: half of them mirrored."""
    augmentation = kornia_augmentation("imagenet")
    parts: list[nn.Module] = [
        augmentation.RandomResizedCrop((shape[1], shape[2]), scale=(smallest, 1.0))
    ]
    if flip:
        parts.append(augmentation.RandomHorizontalFlip(p=0.5))
    return parts


class Views:
    """Images (B, C, H, W) in [0, 1] to what a network takes, each call by a draw of its own."""

    def __init__(self, augmentation: nn.Module, given: Input, seed: int) -> None:
        self.augmentation, self.seed = augmentation, seed
        self.normalised = Preparation(Input(None, given.normalisation))
        self.numbers = count()  # of calls: the batch itself would have to come from the device

    def __call__(self, images: Tensor, times: int = 1) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # kornia draws on the host
            torch.manual_seed(key(self.seed, next(self.numbers)))
            found = torch.cat([self.augmentation(images) for _ in range(times)])
        return self.normalised(found).contiguous(memory_format=torch.channels_last)


def key(*parts: object) -> int:
    """A seed that every part changes."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


class CroppedRun(TrainingRun):
    """A training on random crops of another size, of batches of plain images in [0, 1]; `given`:
    what the network takes of images (C, H, W) = `image_shape`."""

    def __init__(
        self, staged: Staged, recipe: TrainingRecipe, stream: Any, precision: str, *,
        given: Input, image_shape: tuple[int, ...], flip: bool, seed: int,
    ) -> None:  # fmt: skip
        smallest = not_none(recipe.smallest_crop)
        parts = crops(given.shape(image_shape), smallest=smallest, flip=flip)
        self.views = Views(nn.Sequential(*parts), given, seed)
        super().__init__(staged, recipe, stream, precision)

    def step(self, batch: Any, epoch: int, rate: float) -> tuple[Tensor, Tensor]:
        """One update; the batch's loss and number of right answers."""
        return super().step(batch._replace(images=self.views(batch.images)), epoch, rate)
