"""Streams: device batches of an image set, the same numbers from every backend.

`reference` augments in NumPy and is the oracle; `resident` keeps the set as uint8 on the device and
augments there; `dali` decodes, crops and flips in DALI with prefetch, for sets of any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ... import stops
from ...errors import FulaError
from ..decode.files import FileSet
from ..decode.images import ImageSet
from ..draws.augment import (
    crop_flip,
    moments_on,
    normalised,
    normalised_tensor,
    to_float_tensor,
    to_floats,
)
from ..draws.frame import Frame, Normalisation, framed
from ..draws.randomness import Augmentation, EpochDraw, draw_epoch
from ..draws.shortcuts import Markers, Shortcut, draw_markers, paste, paste_tensor


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

    def batches(self, epoch: int, order: np.ndarray, start_step: int = 0) -> Iterator[Batch]:
        """The same for samples in an `order` (int64, any length) of the caller's."""
        ...


class StreamBase:
    """What every backend shares: sizes, and the draw of an epoch."""

    def __init__(
        self,
        image_set: ImageSet | FileSet,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        *,
        shortcut: Shortcut | None = None,
        normalisation: Normalisation | None = None,
        frame: Frame | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.image_set = image_set
        self.batch_size = batch_size
        self.steps = len(image_set) // batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.shortcut = shortcut
        self.normalisation, self.frame = normalisation, frame
        self.device = torch.device(device)
        self.dtype = dtype
        self.moments = moments_on(normalisation, self.device)

    def draw(self, epoch: int) -> EpochDraw:
        """The epoch's order, crops and flips of all samples."""
        return draw_epoch(len(self.image_set), self.seed, epoch, self.augmentation)

    def markers(self, epoch: int) -> Markers | None:
        """The epoch's markers, where there is a shortcut."""
        if self.shortcut is None:
            return None
        images = self.image_set
        return draw_markers(
            self.shortcut, images.labels, images.num_classes, images.image_shape, self.seed, epoch
        )

    def order(self, epoch: int) -> np.ndarray:
        """The samples in the epoch's order."""
        return self.draw(epoch).order

    def places(self, order: np.ndarray, start_step: int) -> Iterator[int]:
        """The numbers of the whole batches of `order` (N,), from `start_step` on.

        Raises `FulaError` for a step beyond them, and between two batches the interrupt that a
        library has dropped.
        """
        steps = len(order) // self.batch_size
        if not 0 <= start_step <= steps:
            raise FulaError(f"start step {start_step} must lie in 0 … {steps}, the steps there are")
        for step in range(start_step, steps):
            stops.check()
            yield step

    def slices(self, order: np.ndarray, start_step: int) -> Iterator[np.ndarray]:
        """The sample indices (batch_size,) of each whole batch of `order` (N,)."""
        for step in self.places(order, start_step):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches `start_step` … `steps` - 1 of the epoch; `FulaError` for a start outside it."""
        order = self.order(epoch)[: self.steps * self.batch_size]
        return self.batches(epoch, order, start_step)

    def batches(self, epoch: int, order: np.ndarray, start_step: int = 0) -> Iterator[Batch]:
        raise NotImplementedError

    def finish(self, pixels: torch.Tensor, markers: Markers | None, index: np.ndarray) -> Batch:
        """uint8 pixels (B, H, W, C) on the device to a batch: floats, markers, frame,
        normalisation."""
        floats = to_float_tensor(pixels)
        if markers is not None:
            table = markers.table[markers.index[index]]
            places = (table, markers.y[index], markers.x[index])
            floats = paste_tensor(floats, *(on_device(p, self.device) for p in places))
        return self.batch(normalised_tensor(self.framed(floats), self.moments), index)

    def framed(self, images: torch.Tensor) -> torch.Tensor:
        """Float images (B, H, W, C) in the stream's frame."""
        if self.frame is None:
            return images
        return framed(images.permute(0, 3, 1, 2), self.frame).permute(0, 2, 3, 1)

    def batch(self, images: torch.Tensor, index: np.ndarray) -> Batch:
        """Finished images (B, H, W, C) with their labels."""
        labels = on_device(self.image_set.labels[index], self.device)
        images = images.permute(0, 3, 1, 2).to(self.dtype)
        return Batch(images, labels, on_device(index, self.device))


class ReferenceStream(StreamBase):
    """The oracle: NumPy on the host, one batch at a time, then a copy to the device."""

    def batches(self, epoch: int, order: np.ndarray, start_step: int = 0) -> Iterator[Batch]:
        draw, markers = self.draw(epoch), self.markers(epoch)
        for index in self.slices(order, start_step):
            crops = crop_flip(
                self.image_set.gather(index),
                draw.dy[index],
                draw.dx[index],
                draw.flip[index],
                self.augmentation.pad,
            )
            floats = to_floats(crops)
            floats = floats if markers is None else paste(floats, markers, index)
            floats = self.framed(torch.from_numpy(floats)).numpy()
            images = on_device(normalised(floats, self.normalisation), self.device)
            yield self.batch(images, index)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A host array of any shape as a tensor on `device`; to CUDA from pinned memory, without
    waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def into_buffers(batches: Iterable[Batch], buffers: Batch) -> Iterator[Batch]:
    """Each batch copied into the same `buffers`, the static inputs of a captured step.

    Host batches go through pinned memory; no copy waits for the device.
    """
    for batch in batches:
        for source, target in zip(batch, buffers, strict=True):
            if target.is_cuda and not source.is_cuda:
                source = source.pin_memory()
            target.copy_(source, non_blocking=True)
        yield buffers
