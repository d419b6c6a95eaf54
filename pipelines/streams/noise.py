"""Clustered noise: class clusters in a receiver's activation space, with no sender at all.

One U(0, 1) tensor per class is the cluster's centre; a sample is clamp(centre + r·N(0, 1), 0, 1)
(Smith et al. 2025). Nothing is stored: samples are made on the device by a counter-based generator
keyed by (seed, epoch, index), fresh every epoch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import FulaError
from ..decode.images import Source, check_subset
from ..draws.frame import Frame, Normalisation
from ..draws.philox import normals, sample_words, uniforms
from ..draws.randomness import Purpose
from ..draws.shortcuts import Shortcut
from .base import Batch, StreamBase, on_device


@dataclass(frozen=True, eq=False)
class NoiseSet:
    """`count` samples of `shape` around class centres; sample i belongs to class i mod classes.

    `radius` is r; `split` (0 training, 1 test) keys the samples, not the centres.
    """

    shape: tuple[int, ...]
    num_classes: int
    radius: float
    seed: int
    count: int
    split: int

    def __len__(self) -> int:
        return self.count

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(c) for c in range(self.num_classes))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one sample: that of the receiver's activation."""
        return self.shape

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,)."""
        return np.arange(self.count) % self.num_classes

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the settings, which determine every sample."""
        settings = (self.shape, self.num_classes, self.radius, self.seed, self.count, self.split)
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def centres(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The classes' centres, float32 (classes, *shape)."""
        index = torch.arange(self.num_classes, device=device)
        words = sample_words(
            index, math.prod(self.shape), seed=self.seed, epoch=0, purpose=Purpose.NOISE_CENTRE
        )
        return uniforms(words).view(-1, *self.shape)

    def samples(self, index: torch.Tensor, epoch: int = 0) -> torch.Tensor:
        """The samples `index` (B,) int64 of an epoch: float32 (B, *shape) on the index's device."""
        size = math.prod(self.shape)
        purpose = (Purpose.NOISE_TRAIN, Purpose.NOISE_TEST)[self.split]
        words = sample_words(index, size + size % 2, seed=self.seed, epoch=epoch, purpose=purpose)
        noise = normals(words)[:, :size].view(-1, *self.shape)
        centres = self.centres(index.device)[index % self.num_classes]
        out = (centres + self.radius * noise).clamp(0, 1)
        return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out

    def first_classes(self, count: int) -> NoiseSet:
        """Itself. Raises `FulaError` unless it is every class: the samples have no class folders to
        leave out."""
        check_subset(count, self.num_classes)
        if count != self.num_classes:
            raise FulaError("clustered noise has no class subsets; give classes = N instead")
        return self


class NoiseStream(StreamBase):
    """Training batches of a `NoiseSet`, made on the device; crops and flips do not apply."""

    def __init__(self, image_set: NoiseSet, *args: Any, **kwargs: Any) -> None:
        super().__init__(image_set, *args, **kwargs)
        refuse_pixels(self.shortcut, self.normalisation, self.frame)

    def batches(self, epoch: int, order: np.ndarray, start_step: int = 0) -> Iterator[Batch]:
        for index in self.slices(order, start_step):
            yield noise_batch(self.image_set, index, epoch, self.device, self.dtype)


def refuse_pixels(
    shortcut: Shortcut | None, normalisation: Normalisation | None, frame: Frame | None
) -> None:
    """Raise `FulaError` for options that only images have."""
    if shortcut is not None or normalisation is not None or frame is not None:
        raise FulaError(
            "clustered noise takes neither shortcut nor normalisation nor frame; leave them out"
        )


def noise_batch(
    noise: NoiseSet, index: np.ndarray, epoch: int, device: torch.device, dtype: torch.dtype
) -> Batch:
    """The samples `index` (B,) of an epoch as a batch."""
    places = on_device(index, device)
    return Batch(noise.samples(places, epoch).to(dtype), places % noise.num_classes, places)


def clustered_noise(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    shape: tuple[int, ...] = (),
    classes: int = 10,
    radius: float = 0.1,
    seed: int = 0,
    train: int = 60_000,
    test: int = 10_000,
) -> Source:
    """Class clusters of noise with the `shape` of a receiver's activation; r is `radius`.

    Raises `FulaError` for a shape, radius or count that gives no samples.
    """
    if not shape or min(shape) < 1:
        raise FulaError(
            f"clustered-noise has shape {tuple(shape)}; give the receiver's activation shape, for "
            "example shape = [64, 8, 8]"
        )
    if radius < 0 or classes < 2 or min(train, test) < 1:
        raise FulaError(
            f"clustered-noise: radius {radius}, classes {classes}, train {train}, test {test}; "
            "radius must be at least 0, classes at least 2, counts at least 1"
        )
    trained = NoiseSet(tuple(shape), classes, radius, seed, train, 0)
    return Source("clustered-noise", trained, replace(trained, count=test, split=1))
