"""Class folders `<split>/<class>/<file>` in a tree: an index of files and labels, with checks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import FulaError, printable
from .images import check_classes
from .trees import IMAGES, FileTree

TEST_SPLITS = ("test", "val")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The files of one split, by class then name: no content, a few bytes a file.

    `samples` int64 (N,) are places in `tree`; `labels` int64 (N,); `classes`. `left_out`: places of
    the split's other files, for messages.
    """

    tree: FileTree
    samples: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, i: int) -> str:
        """The place of sample `i`'s file, for messages."""
        return self.tree.where(self.samples[i])

    def read(self, i: int) -> np.ndarray:
        """The bytes of sample `i`'s file, uint8 (length,). Raises `OSError`."""
        return self.tree.read(self.samples[i])

    def size(self, i: int) -> int:
        """The length of sample `i`'s file in bytes; 0 if it is gone."""
        try:
            return self.tree.size(self.samples[i])
        except OSError:
            return 0

    def key(self) -> str:
        """SHA-256 of the files' content."""
        return self.tree.key(self.samples)

    def only(self, kept: np.ndarray) -> FolderIndex:
        """The samples where `kept` (bool (N,)) says so."""
        return replace(self, samples=self.samples[kept], labels=self.labels[kept])


def splits_of(tree: FileTree) -> tuple[str, str] | None:
    """The folders of the training and the test split, at the root or one level down."""
    tops = ["", *sorted(f"{folder}/" for folder in tree.folders if "/" not in folder)]
    for top in tops:
        tests = [t for t in TEST_SPLITS if f"{top}{t}" in tree.folders]
        if f"{top}train" in tree.folders and tests:
            return f"{top}train", f"{top}{tests[0]}"
    return None


def index_splits(
    tree: FileTree, classes: Sequence[str] | None = None, extensions: tuple[str, ...] = IMAGES
) -> tuple[FolderIndex, FolderIndex]:
    """The training and test files of `tree`; both splits must hold the same classes.

    Raises `FulaError` where they do not, and where a split is missing.
    """
    splits = splits_of(tree)
    if splits is None:
        raise FulaError(
            f"'{tree.root}' has no train/<class>/ beside test/<class>/ or val/<class>/; point at "
            "data that has"
        )
    train, test = (index_classes(tree, split, classes, extensions) for split in splits)
    check_classes(train.classes, test.classes, f"{splits[0]}/", f"{splits[1]}/")
    return train, test


def index_classes(
    tree: FileTree,
    split: str,
    classes: Sequence[str] | None = None,
    extensions: tuple[str, ...] = IMAGES,
) -> FolderIndex:
    """Index `split/<class>/<file>`; labels follow `classes`, or the sorted folder names.

    What else lies in the split is left out, with a logged warning that counts it.
    """
    order = _class_order(tree, split, classes)
    parts = [files_in(tree, f"{split}/{name}", extensions) for name in order]
    labels = np.repeat(np.arange(len(order)), [len(part) for part in parts])
    samples = np.concatenate(parts)
    return FolderIndex(tree, samples, labels, order, _left_out(tree, split, samples, extensions))


def _left_out(
    tree: FileTree, split: str, samples: np.ndarray, extensions: tuple[str, ...]
) -> tuple[str, ...]:
    """The split's files that are not among `samples`, counted by their reason in a warning."""
    start, stop = _span(tree, split)
    rest = np.setdiff1d(np.arange(start, stop), samples)
    kinds: dict[str, list[str]] = {"in deeper folders": [], "of other endings": []}
    endings = _encoded(extensions)
    for i in rest:
        known = tree.names[i].lower().endswith(endings)
        kinds["in deeper folders" if known else "of other endings"].append(tree.where(i))
    kinds["that are links to nothing or in a circle, pipes or devices"] = links = []
    for name in tree.left_out:
        if name.startswith(f"{split}/"):
            known = name.lower().endswith(extensions) or "." not in name.rsplit("/", 1)[-1]
            (links if known else kinds["of other endings"]).append(f"{tree.root}/{name}")
    for kind, places in kinds.items():
        if places:
            _log.warning(
                "%d files %s are left out of '%s/%s' (%s/<class>/<file> with %s are read), first "
                "'%s'", len(places), kind, tree.root, split, split, " ".join(extensions),
                printable(places[0]),
            )  # fmt: skip
    return tuple(place for places in kinds.values() for place in places)


def _span(tree: FileTree, folder: str) -> tuple[int, int]:
    """Where the names in `folder` start and stop; names are sorted, so they are neighbours."""
    prefix = f"{folder}/".encode(errors="surrogateescape")
    start, stop = np.searchsorted(tree.names, [prefix, prefix[:-1] + b"0"])  # "0" follows "/"
    return int(start), int(stop)


def _class_order(tree: FileTree, split: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    prefix = f"{split}/"
    inside = (f[len(prefix) :] for f in tree.folders if f.startswith(prefix))
    found = sorted(f for f in inside if "/" not in f)
    if not found:
        raise FulaError(f"'{tree.root}/{split}' has no class folders; it needs {split}/<class>/")
    order = tuple(found if classes is None else classes)
    if sorted(order) != found:
        check_classes(sorted(order), found, "classes = [...]", f"'{tree.root}/{split}'")
    return order


def files_in(tree: FileTree, folder: str, extensions: tuple[str, ...]) -> np.ndarray:
    """Places of the files directly in `folder`. Raises `FulaError` where there is none."""
    prefix = f"{folder}/".encode(errors="surrogateescape")
    start, stop = _span(tree, folder)
    names = tree.names[start:stop].tolist()
    depth, endings = prefix.count(b"/"), _encoded(extensions)
    wanted = [
        start + i
        for i, name in enumerate(names)
        if name.lower().endswith(endings) and name.count(b"/") == depth
    ]
    if not wanted:
        raise FulaError(
            f"class folder '{tree.root}/{folder}' has no {extensions[0]} or like file; fill or "
            "remove it"
        )
    return np.array(wanted, dtype=np.int64)


def _encoded(extensions: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(e.encode() for e in extensions)
