"""Data that a Python caller gives: read once, in order, to uint8 in memory.

Images follow the rules of `arrays`; Pillow images are converted and resized as files are. While
`at_hand(source)` lasts, `load_source("given", content=HASH)` finds such a source again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...device.memory import CPU_SHARE, available_memory
from ...errors import FulaError
from ..decode.decoder import picture_pixels
from ..decode.images import ImageSet, Source, resized, with_channels
from .arrays import image_array, label_array
from .samples import Part, Samples, is_picture, on_host, samples_of

GIVEN = "given"
"""The name of such a source."""

_GROWTH = 1.5


@dataclass(frozen=True)
class ImageForm:
    """How images are to be: `channels` of all, `size` of Pillow images (None: their own), and of
    arrays too where `resizes`."""

    channels: int
    size: int | None = None
    resizes: bool = False


@dataclass(frozen=True)
class Read:
    """Data that were read: uint8 (N, H, W, C), int64 (N,) or None without labels, class names where
    the data have them, and what the user should know."""

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def read(data: Any, form: ImageForm, where: str) -> Read:
    """All of `data` (see `samples`), which messages call `where`.

    Raises `FulaError` for what is no data, breaks the rules of arrays, or does not fit the memory.
    """
    found = samples_of(data, where)
    buffer = _Buffer(found, where)
    labels = list(_images_into(buffer, found.parts, form, where))
    if not len(buffer):
        raise FulaError(f"{where} has no images; give some")
    return Read(buffer.images, _labels(labels, len(buffer), where), found.classes, found.notes)


def _images_into(
    buffer: _Buffer, parts: Iterable[Part], form: ImageForm, where: str
) -> Iterator[np.ndarray | None]:
    """Fill the buffer; yields the labels of each part."""
    for images, labels in parts:
        buffer.add(_pixels(images, form, f"the part of {where} from image {len(buffer)} on"))
        yield None if labels is None else on_host(labels)


def _pixels(images: Any, form: ImageForm, where: str) -> np.ndarray:
    """uint8 (B, H, W, C) of a part's images."""
    if len(images) and is_picture(images[0]):
        return np.stack([picture_pixels(image, form.size, form.channels) for image in images])
    pixels = with_channels(image_array(on_host(images), where), form.channels)
    return resized(pixels, form.size) if form.resizes and form.size else pixels


def _labels(parts: list[np.ndarray | None], images: int, where: str) -> np.ndarray | None:
    missing = sum(part is None for part in parts)
    if missing == len(parts):
        return None
    if missing:
        raise FulaError(f"{where} gives labels to some images only; give them to all, or to none")
    try:
        joined = np.concatenate(parts)
    except ValueError as error:
        raise FulaError(f"{where} has labels of several forms ({error}); give numbers") from None
    return label_array(joined, images, f"the labels of {where}")


class _Buffer:
    """Images that are gathered in one block: of the expected size at once, else growing by half."""

    def __init__(self, expected: Samples, where: str) -> None:
        self._expected, self._where = expected.count, where
        self._block: np.ndarray | None = None
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    @property
    def images(self) -> np.ndarray:
        """uint8 (N, H, W, C)."""
        return self._block[: self._filled]

    def add(self, images: np.ndarray) -> None:
        """Append images (B, H, W, C) of the same shape as those before."""
        shape = images.shape[1:]
        if self._block is None and len(images) == self._expected:
            self._block, self._filled = images, len(images)  # all there is: no copy
            return
        if self._block is None:
            self._block = self._room(max(self._expected or 0, len(images)), shape, 0)
        if shape != self._block.shape[1:]:
            raise FulaError(
                f"{self._where}: image {self._filled} is {_shown(shape)}, those before are "
                f"{_shown(self._block.shape[1:])} (H, W, C); give one size: size in [data] for "
                "Pillow images, or resize them in a transform"
            )
        needed = self._filled + len(images)
        if needed > len(self._block):
            wider = max(needed, int(_GROWTH * len(self._block)))
            block = self._room(wider, shape, self._block.nbytes)
            block[: self._filled] = self.images
            self._block = block
        self._block[self._filled : needed] = images
        self._filled = needed

    def _room(self, count: int, shape: tuple[int, ...], held: int) -> np.ndarray:
        """Memory for so many images; `held` bytes are in use already."""
        needed, free = count * prod(shape), int(CPU_SHARE * available_memory()) + held
        if needed > free:
            raise FulaError(
                f"{self._where}: {count} images of {_shown(shape)} need {needed / 2**30:.1f} GiB, "
                f"more than the {free / 2**30:.1f} GiB that data in memory may take; give fewer or "
                "smaller ones, or class folders (source = 'imagefolder', cached = false)"
            )
        return np.empty((count, *shape), dtype=np.uint8)


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def every_fifth(labels: np.ndarray | None, count: int) -> np.ndarray:
    """Which of `count` images are test images: every fifth of a class, in order; every fifth where
    there are no labels. (N,) bool."""
    if labels is None:
        return np.arange(count) % 5 == 4
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    place = np.empty(count, dtype=np.int64)  # of each image within its class
    place[by_class] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place % 5 == 4


# A source of the caller's own, found by name while a run lasts

_sources: dict[str, Source] = {}


@contextmanager
def at_hand(source: Source) -> Iterator[str]:
    """Let `load_source("given", content=...)` find a source inside the block; gives its content
    hash."""
    content = source.content_hash
    before = _sources.get(content)
    _sources[content] = source
    try:
        yield content
    finally:
        if before is None:
            del _sources[content]


def given(
    folder: Path, size: int | None, channels: int, download: bool, *, content: str | None = None
) -> Source:
    """The source at hand with that content hash, as it was read. Raises `FulaError` where there is
    none."""
    if content not in _sources:
        named = f" (content {content[:16]}…)" if content else ""
        raise FulaError(
            f"the data of this run{named} were given from Python and are not at hand; give the "
            "same again: fula_fast.sweep(spec, FOLDER, data=..., resume=True); commands of the "
            "shell need data in files (npz, imagefolder)"
        )
    return _sources[content]


def image_set(read_: Read, classes: tuple[str, ...], kept: np.ndarray | None = None) -> ImageSet:
    """What was read, or its rows `kept` (n,), under these class names; unlabelled without any."""
    images, labels = read_.images, read_.labels
    if kept is not None:
        images, labels = images[kept], None if labels is None else labels[kept]
    return ImageSet.unlabelled(images) if labels is None else ImageSet(images, labels, classes)
