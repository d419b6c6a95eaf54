"""Decoded image sets, and the conversions every source shares (channels, size)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...errors import FulaError
from ..draws.frame import Normalisation


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory: `images` uint8 (N, H, W, C), `labels` int64 (N,), class names.

    Without class names the labels are unknown: 0 stands for them (`unlabelled`).
    `images` may be a memory map. `skipped` names files left out: unreadable, or no image of a class
    folder. Raises `FulaError`
    for other shapes or dtypes.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise FulaError(
                f"images are {self.images.dtype} with shape {self.images.shape}; "
                "an image set needs uint8 (N, H, W, C)"
            )
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            raise FulaError(
                f"labels are {self.labels.dtype} with shape {self.labels.shape}; "
                f"{len(self.images)} images need int64 ({len(self.images)},)"
            )
        if not self.labelled and not self.labels.any():
            return
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise FulaError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but there are "
                f"{self.num_classes} classes; labels must lie in 0 … {self.num_classes - 1}"
            )

    @classmethod
    def unlabelled(cls, images: np.ndarray) -> ImageSet:
        """Images (N, H, W, C) without labels."""
        return cls(images, np.zeros(len(images), dtype=np.int64), ())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the labels are known."""
        return bool(self.classes)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), the input shape of a model for this set."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of shape, class names, labels and pixels."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        for start in range(0, len(self), 4096):
            digest.update(np.ascontiguousarray(self.images[start : start + 4096]).data)
        return digest.hexdigest()

    def gather(self, index: np.ndarray) -> np.ndarray:
        """The uint8 images (k, H, W, C) of the samples `index` (k,)."""
        return self.images[index]

    def first_classes(self, count: int) -> ImageSet:
        """The samples of the first `count` classes by label; the class list stays whole."""
        check_subset(count, self.num_classes)
        if count == self.num_classes:
            return self
        return self._chosen(np.flatnonzero(self.labels < count))

    def evenly(self, count: int) -> ImageSet:
        """At most `count` images, as many of each class as goes: the first ones of every class."""
        if count >= len(self):
            return self
        return self._chosen(evenly(self.labels, count))

    def _chosen(self, kept: np.ndarray) -> ImageSet:
        return ImageSet(self.images[kept], self.labels[kept], self.classes, self.skipped)


@dataclass(frozen=True, eq=False)
class Source:
    """A named data set with its training and test images.

    `normalisation` is the one its publication trains with; None leaves pixels in [0, 1].
    """

    name: str
    train: ImageSet
    test: ImageSet
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        check_classes(self.train.classes, self.test.classes, f"{self.name}: training", "test")
        if self.train.image_shape != self.test.image_shape:
            raise FulaError(
                f"{self.name}: training images are {self.train.image_shape}, test images "
                f"{self.test.image_shape} (C, H, W); give one size"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def labelled(self) -> bool:
        """Whether the labels are known."""
        return bool(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.image_shape

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over both sets' content."""
        both = self.train.content_hash + self.test.content_hash
        return hashlib.sha256(both.encode()).hexdigest()


def evenly(labels: np.ndarray, count: int) -> np.ndarray:
    """Which `count` of the samples with these labels (N,) are as many of each class as goes, the
    first ones of every class: sorted places (count,)."""
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    place = np.empty(len(labels), dtype=np.int64)  # of each image within its class
    place[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(np.argsort(place, kind="stable")[:count])


def check_subset(count: int, num_classes: int) -> None:
    """Raise `FulaError` unless the first `count` of `num_classes` classes are a subset."""
    if not 1 <= count <= num_classes:
        raise FulaError(f"a subset of {count} classes: give 1 … {num_classes}")


def check_classes(
    first: Sequence[str], second: Sequence[str], first_name: str, second_name: str
) -> None:
    """Raise `FulaError`, showing the first difference, unless both class lists are equal."""
    if tuple(first) == tuple(second):
        return
    if len(first) != len(second):
        extra = sorted(set(first) ^ set(second))[:3]
        raise FulaError(
            f"{first_name} has {len(first)} classes, {second_name} {len(second)} "
            f"(not in both: {', '.join(extra)}); use data with the same classes"
        )
    label = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    raise FulaError(
        f"label {label} is '{first[label]}' for {first_name} but '{second[label]}' for "
        f"{second_name}; use the same classes, or give their order with classes = [...]"
    )


def check_size(size: int | None, channels: int) -> None:
    """Raise `FulaError` unless images can have this side and these channels."""
    if size is not None and size < 1:
        raise FulaError(f"size = {size} must be at least 1 pixel")
    if channels not in (1, 3):
        raise FulaError(f"channels = {channels} must be 1 or 3")


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (N, H, W, 1 or 3) with `channels` channels: replicated, or ITU-R 601 luma."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma = images.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]  # Pillow's own "L" weights


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, H, W, C) at `size`: shorter side by antialiased bilinear, then the centre."""
    if images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    flat = images[..., 0] if images.shape[-1] == 1 else images
    out = np.empty((len(images), size, size, images.shape[-1]), dtype=np.uint8)
    for i, pixels in enumerate(flat):
        out[i] = np.asarray(fit(Image.fromarray(pixels), size)).reshape(out.shape[1:])
    return out


def fit(image, size: int):
    """A Pillow image with its shorter side at `size` pixels, cropped to the central square."""
    from PIL import Image

    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
