"""Class-paired streams over two sources: for cross-modal and autoencoder stitching.

Inputs are paired by class, not by sample: each sample of the first set meets a random sample of the
second with the same label, drawn anew every epoch as a pure function of (seed, epoch, sample).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import FulaError
from ..decode.files import FileSet
from ..decode.images import ImageSet
from ..draws.randomness import EVALUATION, Augmentation, Purpose, words
from .base import Batch, StreamBase
from .evaluate import evaluation_batches
from .open_stream import backend_class

Images = ImageSet | FileSet


class PairedStream:
    """Pairs of batches with equal labels; `batch_size` and `steps` are those of the first set.

    The sets need not have the same image shape, size or class names, only as many classes: class c
    of one meets class c of the other. Options are those of `open_stream`; both sets are augmented.
    """

    def __init__(
        self,
        first: Images,
        second: Images,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        backend: str = "resident",
        **options: Any,
    ) -> None:
        check_pairable(first, second)
        if not 1 <= batch_size <= len(first):
            raise FulaError(f"batch size {batch_size} must lie in 1 … {len(first)}, the images")
        self._streams: tuple[StreamBase, StreamBase] = tuple(
            backend_class(backend, images)(images, batch_size, seed, augmentation, **options)
            for images in (first, second)
        )
        self.batch_size, self.steps = batch_size, self._streams[0].steps
        self._seed = seed

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of batches `start_step` … `steps` - 1 of the epoch."""
        first, second = self._streams
        order = first.order(epoch)[: self.steps * self.batch_size]
        partners = draw_partners(first.image_set, second.image_set, self._seed, epoch)[order]
        yield from zip(
            first.batches(epoch, order, start_step),
            second.batches(epoch, partners, start_step),
            strict=True,
        )


def paired_evaluation(
    first: Images, second: Images, batch_size: int = 512, device: str = "cpu", **options: Any
) -> Iterator[tuple[Batch, Batch]]:
    """The first set in order, each sample with one fixed partner; options: `evaluation_batches`."""
    check_pairable(first, second)
    partners = draw_partners(first, second, 0, EVALUATION)
    chosen = evaluation_batches(second, batch_size, device, order=partners, **options)
    yield from zip(evaluation_batches(first, batch_size, device, **options), chosen, strict=True)


def draw_partners(first: Images, second: Images, seed: int, epoch: int) -> np.ndarray:
    """For each sample of `first`, a sample of `second` of the same class: int64 (N,)."""
    by_class = np.argsort(second.labels, kind="stable")
    counts = np.bincount(second.labels, minlength=second.num_classes)
    starts = np.cumsum(counts) - counts
    raw = words(seed, epoch, Purpose.PAIR, len(first)) >> np.uint64(32)
    place = (raw * counts[first.labels].astype(np.uint64)) >> np.uint64(32)
    return by_class[starts[first.labels] + place.astype(np.int64)]


def check_pairable(first: Images, second: Images) -> None:
    """Raise `FulaError` unless every class of `first` has a partner in `second`."""
    if first.num_classes != second.num_classes:
        raise FulaError(
            f"paired sources have {first.num_classes} and {second.num_classes} classes; class c of "
            "one meets class c of the other, so give sources with as many classes"
        )
    lonely = np.setdiff1d(first.labels, second.labels)
    if len(lonely):
        raise FulaError(
            f"class '{second.classes[lonely[0]]}' of the second source has no image to pair; give "
            "a source with every class"
        )
