"""Streams: device batches of an image set, the same numbers from every backend.

`reference` augments in NumPy and is the oracle; `resident` keeps the set as uint8 on the device and
augments there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ..errors import FulaError, nearest
from .augment import (
    Normalisation,
    crop_flip,
    gather_crop_flip,
    normalised,
    normalised_tensor,
    to_float_tensor,
    to_floats,
)
from .images import ImageSet
from .randomness import Augmentation, EpochDraw, Purpose, draw_epoch, permutation


class Batch(NamedTuple):
    """`images` float (B, C, H, W) channels-last, `labels` int64 (B,), `index` int64 (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


class Stream(Protocol):
    """Training batches, an epoch at a time; the incomplete last batch is dropped."""

    batch_size: int
    steps: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches `start_step` … `steps` - 1 of the epoch."""
        ...


class _StreamBase:
    """What every backend shares: the sizes, and the draw of an epoch."""

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        *,
        normalisation: Normalisation | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.image_set = image_set
        self.batch_size = batch_size
        self.steps = len(image_set) // batch_size if batch_size > 0 else 0
        if self.steps == 0:
            raise FulaError(
                f"batch size {batch_size} must lie in 1 … {len(image_set)}, the number of images"
            )
        self.seed = seed
        self.augmentation = augmentation
        self.normalisation = normalisation
        self.device = torch.device(device)
        self.dtype = dtype

    def draw(self, epoch: int) -> EpochDraw:
        """The epoch's random numbers."""
        return draw_epoch(len(self.image_set), self.seed, epoch, self.augmentation)


class ReferenceStream(_StreamBase):
    """The oracle: NumPy on the host, one batch at a time, then a copy to the device."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        draw = self.draw(epoch)
        for step in range(start_step, self.steps):
            yield self._batch(
                draw, draw.order[step * self.batch_size : (step + 1) * self.batch_size]
            )

    def _batch(self, draw: EpochDraw, index: np.ndarray) -> Batch:
        crops = crop_flip(
            self.image_set.gather(index),
            draw.dy[index],
            draw.dx[index],
            draw.flip[index],
            self.augmentation.pad,
        )
        floats = normalised(to_floats(crops), self.normalisation)
        return _to_batch(floats, self.image_set.labels[index], index, self.device, self.dtype)


class ResidentStream(_StreamBase):
    """The set as uint8 on the device, augmented there by tensor operations.

    `epoch` iterates. A captured step instead calls `load_epoch` outside the graph, which refills the
    same device buffers, and `batch_at` inside it: pure tensor operations without host contact.
    """

    def __init__(self, image_set: ImageSet, *args, **kwargs) -> None:
        super().__init__(image_set, *args, **kwargs)
        self._images = torch.from_numpy(np.ascontiguousarray(image_set.images)).to(self.device)
        self._labels = torch.from_numpy(image_set.labels).to(self.device)
        self._numbers: dict[str, torch.Tensor] = {}

    def load_epoch(self, epoch: int) -> None:
        """Put the epoch's random numbers into the device buffers (in place after the first)."""
        for name, array in vars(self.draw(epoch)).items():
            if array is None:
                continue
            host = torch.from_numpy(np.ascontiguousarray(array))
            if name in self._numbers:
                self._numbers[name].copy_(host)
            else:
                self._numbers[name] = host.to(self.device)

    def batch_at(self, step: torch.Tensor | int) -> Batch:
        """Batch number `step` of the loaded epoch; `step` may be a device scalar (int64)."""
        places = torch.arange(self.batch_size, device=self.device) + step * self.batch_size
        numbers = self._numbers
        index = numbers["order"][places]
        crops = gather_crop_flip(
            self._images,
            index,
            numbers["dy"][index],
            numbers["dx"][index],
            numbers["flip"][index],
            self.augmentation.pad,
        )
        floats = normalised_tensor(to_float_tensor(crops), self.normalisation)
        images = floats.permute(0, 3, 1, 2).to(self.dtype)
        return Batch(images, self._labels[index], index)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        self.load_epoch(epoch)
        for step in range(start_step, self.steps):
            yield self.batch_at(step)


_BACKENDS = {"reference": ReferenceStream, "resident": ResidentStream}


def open_stream(
    image_set: ImageSet,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    backend: str = "resident",
    normalisation: Normalisation | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Stream:
    """A training stream over `image_set` by the named backend; all give the same batches."""
    if backend not in _BACKENDS:
        raise FulaError(f"unknown stream '{backend}'{nearest(backend, _BACKENDS)}")
    return _BACKENDS[backend](
        image_set,
        batch_size,
        seed,
        augmentation,
        normalisation=normalisation,
        device=device,
        dtype=dtype,
    )


def _to_batch(
    floats: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
) -> Batch:
    images = torch.from_numpy(floats).permute(0, 3, 1, 2).to(device=device, dtype=dtype)
    return Batch(images, torch.from_numpy(labels).to(device), torch.from_numpy(index).to(device))


def evaluation_batches(
    image_set: ImageSet,
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    *,
    normalisation: Normalisation | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Batch]:
    """Every image once, in order, without augmentation; the last batch may be smaller."""
    if batch_size < 1:
        raise FulaError(f"batch size {batch_size} must be at least 1")
    for start in range(0, len(image_set), batch_size):
        index = np.arange(start, min(start + batch_size, len(image_set)))
        floats = normalised(to_floats(image_set.gather(index)), normalisation)
        yield _to_batch(floats, image_set.labels[index], index, torch.device(device), dtype)


def take(
    image_set: ImageSet,
    count: int,
    seed: int,
    device: str | torch.device = "cpu",
    *,
    normalisation: Normalisation | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`count` different random images (count, C, H, W), un-augmented: the samples of DM."""
    if not 1 <= count <= len(image_set):
        raise FulaError(
            f"{count} samples asked from {len(image_set)} images; take 1 … {len(image_set)}, or all"
        )
    index = permutation(seed, 0, Purpose.TAKE, len(image_set))[:count]
    floats = normalised(to_floats(image_set.gather(index)), normalisation)
    return _to_batch(floats, image_set.labels[index], index, torch.device(device), dtype).images
