"""The images of a cell: those that train its stitch, those behind the closed form, and
its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import pipelines
from ..pipelines import Augmentation, Batch, Frame, ImageSet, Normalisation, Stream
from ..study.cell import Cell

_BATCH = 500


@dataclass(frozen=True)
class CellImages:
    """A cell's two image sets, each with its normalisation (None: pixels in [0, 1]), where
    batches go, and the frame of all images. Training images of the cell's class subset alone are
    used."""

    cell: Cell
    train: ImageSet
    test: ImageSet
    train_moments: Normalisation | None
    test_moments: Normalisation | None
    device: torch.device
    frame: Frame | None = None

    @property
    def _training(self) -> ImageSet:
        subset = self.cell.subset
        return self.train if subset is None else self.train.first_classes(subset)

    @property
    def shortcut(self) -> pipelines.Shortcut | None:
        """The marker on all of the cell's images."""
        mark = self.cell.shortcut
        return mark and pipelines.Shortcut(**mark.model_dump())

    def _options(self, moments: Normalisation | None) -> dict[str, Any]:
        return {
            "shortcut": self.shortcut, "normalisation": moments, "frame": self.frame,
            "device": self.device,
        }  # fmt: skip

    def stream(self, backend: str = "resident") -> Stream:
        """Training batches."""
        rule = self.cell.protocol
        return pipelines.open_stream(
            self._training,
            batch_size=rule.batch_size,
            seed=self.cell.data_seed,
            augmentation=Augmentation(rule.crop_padding, rule.flip),
            backend=backend,
            **self._options(self.train_moments),
        )

    def closed_form(self, samples: int | str) -> Tensor | Iterator[Tensor]:
        """Un-augmented training images: some, or all in batches."""
        options, images = self._options(self.train_moments), self._training
        if samples == "all":
            return (b.images for b in pipelines.evaluation_batches(images, _BATCH, **options))
        count = min(samples, len(images))
        return pipelines.take(images, count, self.cell.data_seed, **options)

    def tests(
        self, marker_set: str = "shortcut", batch_size: int = _BATCH
    ) -> Callable[[], Iterator[Batch]]:
        """Fresh batches of the test images, with the markers of `marker_set`."""
        options = self._options(self.test_moments) | {"marker_set": marker_set}
        return partial(pipelines.evaluation_batches, self.test, batch_size, **options)
