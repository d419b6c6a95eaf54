"""WebDataset shards: tar files whose images are read where they lie.

Headers are read once; names, places and labels stay in the cache and are memory-mapped, so that a
million images cost tens of megabytes, and shards are neither copied nor unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from ...errors import FulaError, not_none, printable
from .cache import build_once, content_digest, load_array, save_arrays
from .folders import FolderIndex
from .images import check_classes
from .trees import IMAGES, Bounded, FileTree

LABEL = ".cls"
_LONGEST_LABEL = 16  # bytes
_UNLABELLED = -1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ShardTree(FileTree):
    """Images in the tar files `shards` under `root`: image i is the bytes `places[i]` (start, stop)
    of shard `of[i]`, and is called `<shard>/<name within>`."""

    shards: tuple[str, ...] = ()
    of: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def read(self, i: int) -> np.ndarray:
        """The image's bytes, uint8 (length,). Raises `OSError`."""
        start, stop = self._span(i)
        with (self.root / self.shards[self.of[i]]).open("rb", buffering=0) as shard:
            shard.seek(start)
            found = shard.read(stop - start)
        if len(found) < stop - start:
            raise OSError(errno.EIO, "the shard ends within it")
        return np.frombuffer(found, dtype=np.uint8)

    def size(self, i: int) -> int:
        """The image's length in bytes."""
        start, stop = self._span(i)
        return stop - start

    def _span(self, i: int) -> tuple[int, int]:
        start, stop = not_none(self.places)[i].tolist()
        return start, stop

    def key(self, samples: np.ndarray) -> str:
        """SHA-256 of the shards' content and the names of the images `samples` (n,)."""
        shards = content_digest((self.root / shard for shard in self.shards), self.root)
        digest = hashlib.sha256(shards.encode())
        digest.update(np.ascontiguousarray(self.names[samples]).data)
        return digest.hexdigest()


class _Sample(NamedTuple):
    """An image in a shard: its name there, the first and past the last byte, its label."""

    name: str
    start: int
    stop: int
    label: int


def index_shards(
    root: Path, train: Sequence[str], test: Sequence[str], classes: Sequence[str] | None = None
) -> tuple[FolderIndex, FolderIndex]:
    """The images of training and test shards, whose names follow the first pattern (as of
    `Path.glob`) that finds any.

    A sample is what shares a name up to its first dot: an image, and its label in `.cls` (a whole
    number from 0). `classes` names the labels; by default they are called by their number. Where no
    sample has a label the images are unlabelled. Raises `FulaError` for shards that are missing,
    broken or compressed, for samples of several images, and for labels that some samples lack or
    that have no class.
    """
    trees = [_tree(root, _found(root, patterns)) for patterns in (train, test)]
    both = set(trees[0][0].shards) & set(trees[1][0].shards)
    if both:
        raise FulaError(
            f"shard '{root}/{min(both)}' is found for both training and test; give patterns: "
            'options.train = "…", options.test = "…"'
        )
    names = _classes(root, [labels for _, labels in trees], classes)
    return cast(
        tuple[FolderIndex, FolderIndex],
        tuple(
            FolderIndex(
                tree, np.arange(len(labels)), labels if names else np.zeros_like(labels), names
            )
            for tree, labels in trees
        ),
    )


def _found(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The shards of the first pattern that finds any, sorted by name."""
    for pattern in patterns:
        if found := sorted(path for path in root.glob(pattern) if path.is_file()):
            return found
    tried = " or ".join(f"'{pattern}'" for pattern in patterns)
    raise FulaError(
        f"'{root}' has no shards {tried}; give their folder as path, and a pattern if they are "
        'called otherwise: options.train = "…", options.test = "…"'
    )


def _classes(
    root: Path, splits: Sequence[np.ndarray], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the classes by label; none where the images have no labels."""
    labelled = [bool((labels != _UNLABELLED).any()) for labels in splits]
    if not any(labelled):
        if classes is not None:
            raise FulaError(
                f"the shards of '{root}' have no labels ({LABEL}); leave out options.classes"
            )
        return ()
    if not all(labelled):
        raise FulaError(
            f"only the {'training' if labelled[0] else 'test'} shards of '{root}' have labels "
            f"({LABEL}); give them to both, or to none"
        )
    count = 1 + max(int(labels.max()) for labels in splits)
    if count > sum(map(len, splits)):
        raise FulaError(
            f"'{root}' has label {count - 1}, but {sum(map(len, splits))} images; number the "
            "classes from 0"
        )
    if classes is None:
        return tuple(map(str, range(count)))
    if len(classes) < count:
        raise FulaError(
            f"'{root}' has label {count - 1}, but options.classes names {len(classes)}; name all "
            f"{count}"
        )
    check_classes(sorted(set(classes)), sorted(classes), "each class once", "options.classes")
    return tuple(classes)


def _tree(root: Path, shards: Sequence[Path]) -> tuple[ShardTree, np.ndarray]:
    """The images of `shards` and their labels, int64 (N,); -1 without any."""
    names = tuple(str(shard.relative_to(root)) for shard in shards)
    stamps = [
        (name, s.st_size, s.st_mtime_ns)
        for name, s in zip(names, map(Path.stat, shards), strict=True)
    ]
    key = hashlib.sha256(repr((str(root.resolve()), stamps)).encode()).hexdigest()
    entry = build_once("shards-1", key, lambda folder: _index(shards, names, folder))
    tree = ShardTree(
        root, load_array(entry, "names"), frozenset(),
        places=load_array(entry, "places"), shards=names, of=load_array(entry, "of"),
    )  # fmt: skip
    return tree, load_array(entry, "labels")


def _index(shards: Sequence[Path], names: Sequence[str], folder: Path) -> None:
    """Write the index of all images: names, places, shards, labels."""
    _LOG.info("reading the headers of %d shards, once", len(shards))
    parts = [_samples(shard) for shard in shards]
    samples = [sample for part in parts for sample in part]
    full = [
        os.fsencode(f"{name}/{sample.name}")
        for name, part in zip(names, parts, strict=True)
        for sample in part
    ]
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    without = np.flatnonzero(labels == _UNLABELLED)
    if 0 < len(without) < len(labels):
        raise FulaError(
            f"{len(without)} of {len(labels)} samples have no label ({LABEL}), first "
            f"'{printable(os.fsdecode(full[without[0]]))}'; give all of them one, or none"
        )
    save_arrays(
        folder,
        names=np.array(full, dtype=f"S{max(map(len, full), default=1)}"),
        places=np.array([sample[1:3] for sample in samples], dtype=np.int64).reshape(-1, 2),
        of=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
        labels=labels,
    )


def _samples(shard: Path) -> list[_Sample]:
    """The images of one shard, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with shard.open("rb") as raw:
            for member in _members(raw):
                key, kind = _split(member.name)
                if kind in IMAGES and images.setdefault(key, member) is not member:
                    raise FulaError(
                        f"sample '{shard}/{printable(key)}' has two images "
                        f"('{printable(images[key].name)}', '{printable(member.name)}'); keep one"
                    )
                if kind == LABEL:
                    labels[key] = _label(shard, member, raw)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise FulaError(
            f"shard '{shard}' cannot be read ({error}); fetch it again, or unpack it if it is "
            "compressed"
        ) from error
    if not images:
        raise FulaError(f"shard '{shard}' holds no image ({' '.join(IMAGES)}); remove it")
    return [
        _Sample(one.name, at := one.offset_data, at + one.size, labels.get(key, _UNLABELLED))
        for key, one in images.items()
    ]


def _members(raw: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The files of a tar file that are not hidden, by their headers alone."""
    with tarfile.open(fileobj=cast(IO[bytes], stream := Bounded(raw)), mode="r:") as tar:
        for member in tar:
            stream.allow(0)
            if member.isreg() and not member.issparse() and not _hidden(member.name):
                yield member


def _hidden(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith((".", "__"))


def _split(name: str) -> tuple[str, str]:
    """What the files of a sample share, and what tells them apart: from the first dot on."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _label(shard: Path, member: tarfile.TarInfo, raw: IO[bytes]) -> int:
    """The whole number that a label's file holds."""
    raw.seek(member.offset_data)
    text = raw.read(min(member.size, _LONGEST_LABEL))
    if member.size > _LONGEST_LABEL or not text.strip().isdigit():
        held = printable(text.decode(errors="replace"))
        raise FulaError(
            f"'{shard}/{printable(member.name)}' holds '{held}'; a label is a whole number from 0"
        )
    return int(text)
