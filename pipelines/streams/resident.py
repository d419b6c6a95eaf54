"""A set that lives on the device as uint8 and is augmented there: `ResidentStream`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...errors import FulaError
from ...kernels import augment
from ..decode.images import ImageSet
from ..draws.augment import normalised_tensor
from ..draws.frame import framed
from .base import Batch, StreamBase, on_device


class ResidentStream(StreamBase):
    """The set as uint8 on the device, augmented there by the kernel `augment`.

    `epoch` iterates. A captured step instead calls `load_epoch` outside the graph, which refills
    the same device buffers, and `batch_at` inside it: device operations without host contact. One
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
        exact = self.moments is not None or self.frame is not None or self.dtype == torch.float64
        self._made = torch.float32 if exact else self.dtype

    def load_epoch(self, epoch: int, order: np.ndarray | None = None) -> None:
        """Put the epoch's random numbers into the device buffers (in place after the first).

        `order` (N,): samples in an order of the caller's.
        """
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
        images = framed(images, self.frame)
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
