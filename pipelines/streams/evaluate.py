"""Un-augmented images: evaluation batches in order, and random samples for the closed form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ... import stops
from ...errors import FulaError
from ..decode.files import FileSet
from ..decode.images import ImageSet
from ..draws.frame import Frame, Normalisation
from ..draws.randomness import EVALUATION, NO_AUGMENTATION, Purpose, permutation
from ..draws.shortcuts import Markers, Shortcut, draw_markers, evaluation_markers
from .base import Batch, StreamBase, on_device
from .noise import NoiseSet, noise_batch, refuse_pixels


def evaluation_batches(
    image_set: ImageSet | FileSet | NoiseSet,
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    *,
    shortcut: Shortcut | None = None,
    marker_set: str = "shortcut",
    normalisation: Normalisation | None = None,
    frame: Frame | None = None,
    dtype: torch.dtype = torch.float32,
    order: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Every image once, in order, without augmentation; the last batch may be smaller.

    `order` (int64, any length) chooses other samples.

    With a `shortcut`, `marker_set` is `shortcut` (each image carries its class's marker), `clean`
    (none) or `rolled` (each image of class c carries the marker of class c - 1). Raises `FulaError`
    for a batch size below 1.
    """
    if batch_size < 1:
        raise FulaError(f"batch size {batch_size} must be at least 1")
    markers = _evaluation_markers(image_set, shortcut, marker_set)
    like = _plain(image_set, batch_size, shortcut, normalisation, frame, device, dtype)
    order = np.arange(len(image_set)) if order is None else order
    for start in range(0, len(order), batch_size):
        stops.check()
        index = order[start : start + batch_size]
        yield _batch(like, markers, index)


def _evaluation_markers(
    image_set: ImageSet | FileSet | NoiseSet, shortcut: Shortcut | None, marker_set: str
) -> Markers | None:
    if shortcut is None:
        if marker_set == "rolled":
            raise FulaError("evaluation set 'rolled' needs a shortcut, there is none; leave it out")
        return None
    sizes = (image_set.labels, image_set.num_classes, image_set.image_shape)
    return evaluation_markers(shortcut, marker_set, *sizes)


def take(
    image_set: ImageSet | FileSet | NoiseSet,
    count: int,
    seed: int,
    device: str | torch.device = "cpu",
    *,
    shortcut: Shortcut | None = None,
    normalisation: Normalisation | None = None,
    frame: Frame | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`count` different random images (count, C, H, W), un-augmented, with the shortcut if given.

    The samples of the closed form (DM). Raises `FulaError` for more images than there are.
    """
    if not 1 <= count <= len(image_set):
        raise FulaError(
            f"{count} samples asked from {len(image_set)} images; take 1 … {len(image_set)}, or all"
        )
    index = permutation(seed, 0, Purpose.TAKE, len(image_set))[:count]
    markers = None
    if shortcut is not None:
        sizes = (image_set.labels, image_set.num_classes, image_set.image_shape)
        markers = draw_markers(shortcut, *sizes, seed, EVALUATION)
    like = _plain(image_set, count, shortcut, normalisation, frame, device, dtype)
    return _batch(like, markers, index).images


def _plain(
    image_set: ImageSet | FileSet | NoiseSet,
    batch_size: int,
    shortcut: Shortcut | None,
    normalisation: Normalisation | None,
    frame: Frame | None,
    device: str | torch.device,
    dtype: torch.dtype,
) -> StreamBase:
    """What holds the settings of un-augmented batches."""
    if isinstance(image_set, NoiseSet):
        refuse_pixels(shortcut, normalisation, frame)
    options = {"normalisation": normalisation, "frame": frame, "device": device, "dtype": dtype}
    return StreamBase(image_set, batch_size, 0, NO_AUGMENTATION, **options)


def _batch(like: StreamBase, markers: Markers | None, index: np.ndarray) -> Batch:
    if isinstance(like.image_set, NoiseSet):
        return noise_batch(like.image_set, index, 0, like.device, like.dtype)
    return like.finish(on_device(like.image_set.gather(index), like.device), markers, index)
