"""Class folders `<split>/<class>/<image>`: index, checks, and decoding once into the cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FulaError
from .cache import build_once, content_digest, load_array, save_arrays
from .decode import EXTENSIONS, decode_file, decode_files
from .images import ImageSet, check_classes

_log = logging.getLogger(__name__)
_CHUNK = 1024
TEST_SPLITS = ("test", "val")


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The image files of one split, by class then name: `files`, `labels` int64, `classes`."""

    root: Path
    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


def has_splits(folder: Path) -> bool:
    """Whether `folder` holds class folders under train/ and under test/ or val/."""
    return (folder / "train").is_dir() and any((folder / t).is_dir() for t in TEST_SPLITS)


def index_splits(
    folder: Path, classes: Sequence[str] | None = None
) -> tuple[FolderIndex, FolderIndex]:
    """The training and test files of `folder`; both splits must hold the same classes."""
    if not has_splits(folder):
        raise FulaError(
            f"folder '{folder}' has no train/<class>/ beside test/<class>/ or val/<class>/; point "
            "data_dir at a folder that has"
        )
    test = next(t for t in TEST_SPLITS if (folder / t).is_dir())
    train_index = index_folder(folder / "train", classes)
    test_index = index_folder(folder / test, classes)
    check_classes(train_index.classes, test_index.classes, "train/", f"{test}/")
    return train_index, test_index


def index_folder(root: Path, classes: Sequence[str] | None = None) -> FolderIndex:
    """Index `root/<class>/<image>`; labels follow `classes`, or the sorted folder names."""
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise FulaError(f"folder '{root}' has no class folders; it needs {root.name}/<class>/")
    order = tuple(found if classes is None else classes)
    if sorted(order) != found:
        check_classes(order, found, "classes", f"folder '{root}'")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(order):
        members = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in EXTENSIONS)
        if not members:
            raise FulaError(f"class folder '{root / name}' has no images; fill or remove it")
        files += members
        labels += [label] * len(members)
    return FolderIndex(root, tuple(files), np.array(labels, dtype=np.int64), order)


def decoded(
    index: FolderIndex, size: int | None, channels: int, on_error: str = "raise"
) -> ImageSet:
    """All images of `index`, square at `size`, decoded once and kept in the cache.

    `size` None takes the first image's own size, which must then be every image's. With
    `on_error="skip"` unreadable files are left out, logged, and named in `skipped`.
    """
    if on_error not in ("raise", "skip"):
        raise FulaError(f"on_error = '{on_error}' must be 'raise' or 'skip'")
    shape = _image_shape(index, size, channels)
    key = content_digest(index.files, index.root)
    kind = f"decoded/pillow-{shape[0]}x{shape[1]}x{channels}-{on_error}"
    entry = build_once(kind, key, lambda folder: _decode_into(folder, index, size, shape, on_error))
    kept = load_array(entry, "kept")
    skipped = tuple(str(index.files[i]) for i in np.flatnonzero(~kept))
    if skipped:
        _log.warning("%d unreadable images skipped, first '%s'", len(skipped), skipped[0])
    labels = index.labels[kept]
    _check_filled(labels, index)
    return ImageSet(load_array(entry, "images"), labels, index.classes, skipped)


def _image_shape(index: FolderIndex, size: int | None, channels: int) -> tuple[int, int, int]:
    if size is not None:
        return size, size, channels
    return decode_file(index.files[0], None, channels).shape


def _decode_into(
    folder: Path, index: FolderIndex, size: int | None, shape: tuple[int, int, int], on_error: str
) -> None:
    """Fill the cache entry chunk by chunk, through a memory map."""
    total = len(index.files)
    target = np.lib.format.open_memmap(
        folder / "all.npy", mode="w+", dtype=np.uint8, shape=(total, *shape)
    )
    kept = np.zeros(total, dtype=bool)
    done = 0
    for start in range(0, total, _CHUNK):
        paths = index.files[start : start + _CHUNK]
        for i, pixels in enumerate(decode_files(paths, size, shape[2], on_error)):
            if pixels is None:
                continue
            if pixels.shape != shape:
                raise FulaError(
                    f"image '{paths[i]}' is {pixels.shape[1]}x{pixels.shape[0]}, the first one "
                    f"{shape[1]}x{shape[0]}; give one size = N for all"
                )
            target[done] = pixels
            kept[start + i] = True
            done += 1
    _finish(folder, target, kept, done)


def _finish(folder: Path, target: np.memmap, kept: np.ndarray, done: int) -> None:
    target.flush()
    if done == len(kept):
        (folder / "all.npy").rename(folder / "images.npy")
    else:
        save_arrays(folder, images=target[:done])
        (folder / "all.npy").unlink()
    save_arrays(folder, kept=kept)


def _check_filled(labels: np.ndarray, index: FolderIndex) -> None:
    counts = np.bincount(labels, minlength=len(index.classes))
    if counts.min() == 0:
        name = index.classes[int(counts.argmin())]
        raise FulaError(
            f"class '{name}' of '{index.root}' has no readable image; repair or remove it"
        )
