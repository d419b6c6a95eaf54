"""Class folders `<split>/<class>/<image>`: an index of files, labels and classes, with checks.

The index holds names, not images, so a folder of any size is a few bytes a file; a very long one is
memory-mapped from the cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FulaError
from .cache import build_once, load_array, save_arrays
from .images import check_classes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TEST_SPLITS = ("test", "val")
_MAPPED_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The files of one split, by class then name.

    `names` (N,) fixed-width bytes, relative to `root`; `labels` int64 (N,); `classes`.
    """

    root: Path
    names: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> Path:
        """The file of sample `i`."""
        return self.root / os.fsdecode(self.names[i])

    def only(self, kept: np.ndarray) -> FolderIndex:
        """The samples where `kept` (bool (N,) or indices) says so."""
        return FolderIndex(self.root, self.names[kept], self.labels[kept], self.classes)


def has_splits(folder: Path) -> bool:
    """Whether `folder` holds class folders under train/ and under test/ or val/."""
    return (folder / "train").is_dir() and any((folder / t).is_dir() for t in TEST_SPLITS)


def index_splits(
    folder: Path,
    classes: Sequence[str] | None = None,
    extensions: tuple[str, ...] = EXTENSIONS,
) -> tuple[FolderIndex, FolderIndex]:
    """The training and test files of `folder`; both splits must hold the same classes."""
    if not has_splits(folder):
        raise FulaError(
            f"folder '{folder}' has no train/<class>/ beside test/<class>/ or val/<class>/; point "
            "data_dir at a folder that has"
        )
    test = next(t for t in TEST_SPLITS if (folder / t).is_dir())
    train_index = index_folder(folder / "train", classes, extensions)
    test_index = index_folder(folder / test, classes, extensions)
    check_classes(train_index.classes, test_index.classes, "train/", f"{test}/")
    return train_index, test_index


def index_folder(
    root: Path,
    classes: Sequence[str] | None = None,
    extensions: tuple[str, ...] = EXTENSIONS,
) -> FolderIndex:
    """Index `root/<class>/<file>`; labels follow `classes`, or the sorted folder names."""
    order = _class_order(root, classes)
    names: list[bytes] = []
    counts: list[int] = []
    for name in order:
        members = sorted(e.name for e in os.scandir(root / name) if _wanted(e, extensions))
        if not members:
            raise FulaError(
                f"class folder '{root / name}' has no {extensions[0]} or like file; fill or "
                "remove it"
            )
        names += [os.fsencode(f"{name}/{member}") for member in members]
        counts.append(len(members))
    labels = np.repeat(np.arange(len(order)), counts)
    return FolderIndex(root, _mapped(np.array(names)), labels, order)


def _class_order(root: Path, classes: Sequence[str] | None) -> tuple[str, ...]:
    found = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    if not found:
        raise FulaError(f"folder '{root}' has no class folders; it needs {root.name}/<class>/")
    order = tuple(found if classes is None else classes)
    if sorted(order) != found:
        check_classes(sorted(order), found, "classes = [...]", f"folder '{root}'")
    return order


def _wanted(entry: os.DirEntry, extensions: tuple[str, ...]) -> bool:
    return entry.name.lower().endswith(extensions) and not entry.name.startswith(".")


def _mapped(names: np.ndarray) -> np.ndarray:
    """`names`, through a memory map in the cache when they are many."""
    if names.nbytes < _MAPPED_BYTES:
        return names
    key = hashlib.sha256(names).hexdigest()
    return load_array(build_once("indexes", key, lambda f: save_arrays(f, names=names)), "names")
