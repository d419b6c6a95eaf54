"""Streams: device batches of an image set, the same numbers from every backend.

`reference` augments in NumPy and is the oracle; `resident` keeps the set as uint8 on the device and
augments there; `dali` decodes, crops and flips in DALI with prefetch, for sets of any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ...errors import FulaError, nearest
from ...kernels import augment
from ..decode.files import FileSet
from ..decode.images import ImageSet
from ..draws.augment import (
    Normalisation,
    crop_flip,
    moments_on,
    normalised,
    normalised_tensor,
    to_float_tensor,
    to_floats,
)
from ..draws.randomness import Augmentation, EpochDraw, draw_epoch
from ..draws.shortcuts import Markers, Shortcut, draw_markers, paste, paste_tensor

BACKENDS = ("reference", "resident", "dali")


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
    """What every backend shares: sizes, the draw of an epoch, and sharding.

    `shard` = (k, n) keeps every n-th sample of the epoch's order, from the k-th on.
    """

    def __init__(
        self,
        image_set: ImageSet | FileSet,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        *,
        shortcut: Shortcut | None = None,
        normalisation: Normalisation | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.image_set = image_set
        self.batch_size = batch_size
        self.steps = len(image_set) // shard[1] // batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.shortcut = shortcut
        self.normalisation = normalisation
        self.device = torch.device(device)
        self.dtype = dtype
        self.shard = shard
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
        """The samples of this stream's shard, in the epoch's order."""
        shard, shards = self.shard
        return self.draw(epoch).order[shard::shards]

    def places(self, order: np.ndarray, start_step: int) -> range:
        """The numbers of the whole batches of `order`, from `start_step` on."""
        steps = len(order) // self.batch_size
        if not 0 <= start_step <= steps:
            raise FulaError(f"start step {start_step} must lie in 0 … {steps}, the steps there are")
        return range(start_step, steps)

    def slices(self, order: np.ndarray, start_step: int) -> Iterator[np.ndarray]:
        """The sample indices of each whole batch."""
        for step in self.places(order, start_step):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches `start_step` … `steps` - 1 of the epoch; `FulaError` for a start outside it."""
        order = self.order(epoch)[: self.steps * self.batch_size]
        return self.batches(epoch, order, start_step)

    def batches(self, epoch: int, order: np.ndarray, start_step: int = 0) -> Iterator[Batch]:
        raise NotImplementedError

    def finish(self, pixels: torch.Tensor, markers: Markers | None, index: np.ndarray) -> Batch:
        """uint8 pixels (B, H, W, C) on the device to a batch: floats, markers, normalisation."""
        floats = to_float_tensor(pixels)
        if markers is not None:
            table = markers.table[markers.index[index]]
            places = (table, markers.y[index], markers.x[index])
            floats = paste_tensor(floats, *(on_device(p, self.device) for p in places))
        return self.batch(normalised_tensor(floats, self.moments), index)

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
            images = on_device(normalised(floats, self.normalisation), self.device)
            yield self.batch(images, index)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A host array as a tensor on `device`; to CUDA from pinned memory, without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class ResidentStream(StreamBase):
    """The set as uint8 on the device, augmented there by the kernel `augment`.

    `epoch` iterates. A captured step instead calls `load_epoch` outside the graph, which refills the
    same device buffers, and `batch_at` inside it: device operations without host contact. One
    epoch is loaded at a time: starting another ends an iteration in progress.
    """

    def __init__(self, image_set: ImageSet, *args, **kwargs) -> None:
        super().__init__(image_set, *args, **kwargs)
        if not isinstance(image_set, ImageSet):
            raise FulaError(
                "a resident stream needs decoded images, these stay files; use stream = 'dali', or "
                "load them with cached = true"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(image_set.images))
        self._images = pixels.to(self.device)  # not pinned: a copy made once would stay locked
        self._labels = on_device(image_set.labels, self.device)
        self._numbers: dict[str, torch.Tensor] = {}
        self._loaded = 0
        exact = self.moments is not None or self.dtype == torch.float64
        self._made = torch.float32 if exact else self.dtype

    def load_epoch(self, epoch: int, order: np.ndarray | None = None) -> None:
        """Put the epoch's random numbers into the device buffers (in place after the first)."""
        draw, markers = self.draw(epoch), self.markers(epoch)
        order = self.order(epoch) if order is None else order
        self._store(order=order, dy=draw.dy, dx=draw.dx, flip=draw.flip)
        if markers is not None:
            # all rows of a table of noise: they are far fewer than the resident pixels
            self._store(**{f"marker_{name}": np.asarray(a) for name, a in vars(markers).items()})
        self._loaded += 1

    def _store(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            host = on_device(array, self.device)
            if name in self._numbers and self._numbers[name].shape == host.shape:
                self._numbers[name].copy_(host)
            else:
                self._numbers[name] = host.clone()

    def batch_at(self, step: torch.Tensor | int) -> Batch:
        """Batch number `step` of the loaded epoch; `step` may be a device scalar (int64)."""
        places = torch.arange(self.batch_size, device=self.device) + step * self.batch_size
        numbers = self._numbers
        index = numbers["order"][places]
        images = augment(
            self._images,
            index,
            numbers["dy"],
            numbers["dx"],
            numbers["flip"],
            self.augmentation.pad,
            *(numbers.get(f"marker_{name}") for name in ("table", "index", "y", "x")),
            dtype=self._made,
        )
        if self.moments is not None:
            images = normalised_tensor(images.permute(0, 2, 3, 1), self.moments).permute(0, 3, 1, 2)
        return Batch(images.to(self.dtype), self._labels[index], index)

    def batches(self, epoch: int, order: np.ndarray, start_step: int = 0) -> Iterator[Batch]:
        steps = self.places(order, start_step)
        self.load_epoch(epoch, order)
        loaded = self._loaded
        for step in steps:
            if self._loaded != loaded:
                raise RuntimeError("another epoch of this resident stream was begun; open a second")
            yield self.batch_at(step)


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


def open_stream(
    image_set: ImageSet | FileSet,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    backend: str = "resident",
    shortcut: Shortcut | None = None,
    normalisation: Normalisation | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    shard: tuple[int, int] = (0, 1),
) -> Stream:
    """A training stream over `image_set` by the named backend; all give the same batches.

    Raises `FulaError` for an unknown backend, a batch larger than the (shard's) data, and for
    `dali` where it is not installed.
    """
    if not 0 <= shard[0] < shard[1]:
        raise FulaError(f"shard {shard[0]} of {shard[1]}: shards are numbered from 0")
    mine = len(image_set) // shard[1]
    if not 1 <= batch_size <= mine:
        raise FulaError(f"batch size {batch_size} must lie in 1 … {mine}, the number of images")
    return backend_class(backend, image_set)(
        image_set,
        batch_size,
        seed,
        augmentation,
        shortcut=shortcut,
        normalisation=normalisation,
        device=device,
        dtype=dtype,
        shard=shard,
    )


def backend_class(name: str, image_set: ImageSet | FileSet) -> type[StreamBase]:
    """The stream class of the named backend; made-up samples have the same one for all."""
    if name not in BACKENDS:
        raise FulaError(f"unknown stream '{name}'{nearest(name, BACKENDS)}")
    if not isinstance(image_set, ImageSet | FileSet):
        from .noise import NoiseStream

        return NoiseStream
    if name == "dali":
        from .dali_stream import DaliStream

        return DaliStream
    return ReferenceStream if name == "reference" else ResidentStream
