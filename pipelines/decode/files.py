"""Image files as sets: decoded once into the cache (`decoded`), or as they are asked for
(`FileSet`), which keeps only names in memory.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...errors import FulaError, nearest, printable
from .cache import build_once, load_array, save_arrays
from .decoder import Decoder, decode_file
from .folders import FolderIndex
from .images import ImageSet, check_size, check_subset, evenly
from .open_decoder import open_decoder

_log = logging.getLogger(__name__)
_CHUNK = 1024
_ON_ERROR = ("raise", "skip")


@dataclass(frozen=True, eq=False)
class FileSet:
    """Images that stay files: decoded to square uint8 when gathered, never all in memory."""

    index: FolderIndex
    size: int
    channels: int
    decoder: Decoder
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,)."""
        return self.index.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    @property
    def num_classes(self) -> int:
        return len(self.index.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of names, labels, sizes and decoding; the files' bytes are not read."""
        setting = (self.classes, self.size, self.channels, self.decoder.name)
        digest = hashlib.sha256(repr(setting).encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        for i in range(len(self)):
            name = self.index.tree.name(self.index.samples[i])
            digest.update(f"{name!r} {self.index.size(i)}\n".encode())
        return digest.hexdigest()

    def gather(self, index: np.ndarray) -> np.ndarray:
        """Decode the samples `index` (k,) to uint8 (k, size, size, C)."""
        return np.stack(self.decoder(self.index, index, self.size, self.channels))

    def first_classes(self, count: int) -> FileSet:
        """The samples of the first `count` classes by label; the class list stays whole."""
        check_subset(count, self.num_classes)
        return replace(self, index=self.index.only(self.labels < count))

    def evenly(self, count: int) -> FileSet:
        """At most `count` images, as many of each class as goes: the first ones of every class."""
        kept = np.zeros(len(self), dtype=bool)
        kept[evenly(self.labels, count)] = True
        return replace(self, index=self.index.only(kept))


def decoded(
    index: FolderIndex,
    size: int | None,
    channels: int,
    on_error: str = "raise",
    decoder: str | Decoder = "auto",
) -> ImageSet:
    """All images of `index`, square at `size`, decoded once and kept in the cache.

    `size` None takes the first image's own size, which must then be every image's. With
    `on_error="skip"` unreadable files are left out, logged, and named in `skipped`. `decoder`:
    a name (see `decode.open_decoder`) or a decoder of another kind; part of the cache's key.
    """
    check_on_error(on_error)
    reader = open_decoder(decoder) if isinstance(decoder, str) else decoder
    shape = _first_shape(index, size, channels, on_error)
    entry = build_once(
        f"decoded/{reader.name}-{shape[0]}x{shape[1]}x{channels}-{on_error}",
        index.key(),
        lambda folder: _fill(folder, index, reader, size, shape, on_error),
    )
    kept = load_array(entry, "kept")
    return ImageSet(
        load_array(entry, "images"),
        filled(index.only(kept)).labels,
        index.classes,
        (*index.left_out, *report_skipped(index, kept)),
    )


def file_set(
    index: FolderIndex,
    size: int | None,
    channels: int,
    on_error: str = "raise",
    decoder: str = "auto",
) -> FileSet:
    """The images of `index`, decoded when gathered; `size` is required.

    With `on_error="skip"` every file is decoded once beforehand to find the unreadable ones (the
    result is cached), since a stream cannot drop a sample without changing its batches. Raises
    `FulaError` without a size.
    """
    check_on_error(on_error)
    if size is None:
        raise FulaError("images that stay files need a size; give size = N")
    check_size(size, channels)
    reader = open_decoder(decoder)
    if on_error == "raise":
        return FileSet(index, size, channels, reader, index.left_out)
    key = index.key()
    entry = build_once(f"readable/{reader.name}", key, lambda f: _scan(f, index, reader, channels))
    kept = load_array(entry, "kept")
    skipped = report_skipped(index, kept)
    return FileSet(filled(index.only(kept)), size, channels, reader, (*index.left_out, *skipped))


class NoFiles(FulaError):
    """Options about reading files, for data that are none."""


def refuse_reading(message: str, on_error: str, decoder: str, cached: bool) -> None:
    """Raise `NoFiles` unless the options about reading files are left at their defaults."""
    if (on_error, decoder, cached) != ("raise", "auto", True):
        raise NoFiles(message)


def check_on_error(on_error: str) -> None:
    """Raise `FulaError` unless `on_error` is `raise` or `skip`."""
    if on_error not in _ON_ERROR:
        raise FulaError(f"unknown on_error '{on_error}'{nearest(on_error, _ON_ERROR)}")


def _first_shape(
    index: FolderIndex, size: int | None, channels: int, on_error: str
) -> tuple[int, int, int]:
    """(H, W, C) of all images: square at `size`, or as the first readable one."""
    if size is not None:
        check_size(size, channels)
        return size, size, channels
    for i in range(len(index)):
        try:
            return decode_file(index, i, None, channels).shape
        except FulaError:
            if on_error == "raise":
                raise
    raise FulaError(f"folder '{index.tree.root}' has no readable image; fetch it again")


def _chunks(index: FolderIndex, reader: Decoder, size: int | None, channels: int, on_error: str):
    """(sample, pixels or None) of every file, in order."""
    for start in range(0, len(index), _CHUNK):
        samples = range(start, min(start + _CHUNK, len(index)))
        images = reader(index, samples, size, channels, on_error)
        yield from zip(samples, images, strict=True)


def _fill(
    folder, index: FolderIndex, reader: Decoder, size: int | None, shape: tuple, on_error: str
) -> None:
    """Write the cache entry through a memory map; unreadable images leave no gap."""
    target = np.lib.format.open_memmap(
        folder / "all.npy", mode="w+", dtype=np.uint8, shape=(len(index), *shape)
    )
    kept = np.zeros(len(index), dtype=bool)
    done = 0
    for i, pixels in _chunks(index, reader, size, shape[2], on_error):
        if pixels is None:
            continue
        if pixels.shape != shape:
            raise FulaError(
                f"image '{index.where(i)}' is {pixels.shape[1]}x{pixels.shape[0]}, the first one "
                f"{shape[1]}x{shape[0]}; give one size = N for all"
            )
        target[done] = pixels
        kept[i] = True
        done += 1
    target.flush()
    if done == len(index):
        (folder / "all.npy").rename(folder / "images.npy")
    else:
        save_arrays(folder, images=target[:done])
        (folder / "all.npy").unlink()
    save_arrays(folder, kept=kept)


def _scan(folder, index: FolderIndex, reader: Decoder, channels: int) -> None:
    images = _chunks(index, reader, 8, channels, "skip")
    save_arrays(folder, kept=np.array([pixels is not None for _, pixels in images]))


def report_skipped(index: FolderIndex, kept: np.ndarray) -> tuple[str, ...]:
    """The places of the files not `kept` (bool (N,)), after a warning."""
    skipped = tuple(index.where(i) for i in np.flatnonzero(~kept))
    if skipped:
        _log.warning(
            "%d unreadable images skipped, first '%s'", len(skipped), printable(str(skipped[0]))
        )
    return skipped


def filled(index: FolderIndex) -> FolderIndex:
    """The same index; raises `FulaError` where a class has no file."""
    counts = np.bincount(index.labels, minlength=len(index.classes))
    if counts.min() == 0:
        name = index.classes[int(counts.argmin())]
        raise FulaError(
            f"class '{name}' of '{index.tree.root}' has no readable image; repair or remove it"
        )
    return index
