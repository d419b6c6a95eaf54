"""File trees: a folder or an archive as sorted names and their bytes.

An archive is copied once into the cache as one file of contents with an index, and memory-mapped:
tens of thousands of small files cost neither extraction nor opening, and nothing is ever written
outside the cache, whatever names the archive holds.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import copyfileobj
from typing import IO, cast

import numpy as np

from ...errors import FulaError
from .cache import build_once, content_digest, load_array, save_arrays

ARCHIVES = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".tar.bz2")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
DATA_FILES = (*IMAGES, ".wav")
MOST_BYTES = 1 << 30
"""Of one file in an archive."""
_MAPPED_BYTES = 64 << 20
_BLOCK = 1 << 20
_MOST_HEADER, _MOST_ENDS = 16 << 20, 100


@dataclass(frozen=True, eq=False)
class FileTree:
    """The files under `root`: `names` (N,) fixed-width bytes, sorted; `folders` that exist.

    In an archive, file i is `packed[places[i, 0] : places[i, 1]]`. `left_out`: names of what is no
    file of the tree: links that lead nowhere or in a circle, pipes and devices, and in an archive
    huge files of other endings.
    """

    root: Path
    names: np.ndarray
    folders: frozenset[str]
    packed: np.ndarray | None = None
    places: np.ndarray | None = None
    left_out: tuple[str, ...] = ()

    def name(self, i: int) -> str:
        """The file's name, relative to the root."""
        return os.fsdecode(self.names[i])

    def where(self, i: int) -> str:
        """The file's place, for messages."""
        return f"{self.root}/{self.name(i)}"

    def read(self, i: int) -> np.ndarray:
        """The file's bytes, uint8 (length,). Raises `OSError`."""
        if self.packed is None:
            with open(self.where(i), "rb", buffering=0) as file:
                return np.frombuffer(file.read(), dtype=np.uint8)
        start, stop = self.places[i]
        return self.packed[start:stop]

    def size(self, i: int) -> int:
        """The file's length in bytes."""
        if self.packed is None:
            return os.stat(self.where(i)).st_size
        return int(self.places[i, 1] - self.places[i, 0])

    def key(self, samples: np.ndarray) -> str:
        """SHA-256 of the content of the files `samples` (n,), by which decoded data is cached."""
        if self.packed is None:
            return content_digest((self.root / self.name(i) for i in samples), self.root)
        digest = hashlib.sha256(self._archive_key.encode())
        digest.update(np.ascontiguousarray(self.names[samples]).data)
        return digest.hexdigest()

    @cached_property
    def _archive_key(self) -> str:
        return content_digest([self.root], self.root.parent)


def is_archive(path: Path) -> bool:
    return path.is_file() and path.name.endswith(ARCHIVES)


def open_tree(path: Path) -> FileTree:
    """The files of a folder or an archive. Raises `FulaError` where it is neither, or broken."""
    if path.is_dir():
        return _folder(path)
    if is_archive(path):
        return _archive(path)
    kind = f"is no folder and no archive ({', '.join(ARCHIVES)})" if path.exists() else "is missing"
    raise FulaError(f"'{path}' {kind}; give the folder or the archive that holds the data")


def _folder(root: Path) -> FileTree:
    names: list[bytes] = []
    folders: set[str] = set()
    left_out: list[str] = []
    whole = root.resolve()
    waiting = [("", frozenset(_identity(f.stat()) for f in (whole, *whole.parents)))]
    while waiting:
        prefix, above = waiting.pop()
        for entry in _entries(root, prefix):
            name = prefix + entry.name
            if entry.is_file(follow_symlinks=False):  # without asking the disk
                names.append(os.fsencode(name))
                continue
            status = _status(entry)
            if status is None or (inside := _identity(status)) in above:
                left_out.append(name)  # leads to nothing, or back to where it came from
            elif stat.S_ISDIR(status.st_mode):
                folders.add(name)
                waiting.append((f"{name}/", above | {inside}))
            elif stat.S_ISREG(status.st_mode):
                names.append(os.fsencode(name))
            else:
                left_out.append(name)
    found = _mapped(_sorted_names(names))
    return FileTree(root, found, frozenset(folders), left_out=tuple(sorted(left_out)))


def _entries(root: Path, folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden."""
    try:
        with os.scandir(root / folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise FulaError(
            f"data folder '{root / folder}' cannot be listed ({error.strerror}); give yourself "
            "the right to, or move it out of the data"
        ) from error


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of what a link leads to; None where that is nothing, or the link itself."""
    try:
        return entry.stat()
    except OSError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _sorted_names(names: list[bytes]) -> np.ndarray:
    return np.array(sorted(names), dtype=f"S{max(map(len, names), default=1)}")


def _mapped(names: np.ndarray) -> np.ndarray:
    """`names`, through a memory map in the cache when they are many."""
    if names.nbytes < _MAPPED_BYTES:
        return names
    key = hashlib.sha256(names).hexdigest()
    return load_array(build_once("indexes", key, lambda f: save_arrays(f, names=names)), "names")


def _archive(path: Path) -> FileTree:
    key = content_digest([path], path.parent)
    entry = build_once("packed-3", key, lambda folder: _pack(path, folder))
    packed = entry / "content.bin"
    empty = packed.stat().st_size == 0
    return FileTree(
        path,
        load_array(entry, "names"),
        frozenset(json.loads((entry / "folders.json").read_text())),
        np.zeros(0, np.uint8) if empty else np.memmap(packed, mode="c"),
        load_array(entry, "places"),
        tuple(json.loads((entry / "left-out.json").read_text())),
    )


class Bounded:
    """What tarfile reads: headers up to 16 MiB beside the content that is allowed, and not for ever
    at its end, where tarfile goes on skipping whatever size a header claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._ends = file, 0
        self.seek, self.tell = file.seek, file.tell
        self.allow(0)

    def allow(self, content: int) -> None:
        """Reading the `content` bytes of a member, and the next header."""
        self._allowed = content + _MOST_HEADER

    def read(self, size: int) -> bytes:
        """Raises `ValueError` beyond what is allowed, `EOFError` at the file's end for long."""
        block = self._file.read(size)
        self._allowed -= len(block)
        self._ends += not block
        if self._allowed < 0:
            raise ValueError("a name or header in it is huge")
        if self._ends > _MOST_ENDS:
            raise EOFError("it ends within a file")
        return block


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    """The archive's content, whatever compresses it."""
    start = raw.read(6)
    raw.seek(0)
    opened = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opens(raw) for mark, opens in opened.items() if start.startswith(mark)), raw)


def _pack(archive: Path, folder: Path) -> None:
    """Write the archive's contents, one after the other, with their names and places.

    A link is the file, or the folder, that it leads to within the archive.
    """
    places: dict[bytes, tuple[int, int]] = {}
    folders: set[str] = set()
    links: dict[str, str] = {}
    left_out: list[str] = []
    try:
        with (
            archive.open("rb") as raw,
            _unpacked(raw) as plain,
            tarfile.open(fileobj=cast(IO[bytes], stream := Bounded(plain)), mode="r|") as tar,
            (folder / "content.bin").open("wb") as out,
        ):
            for member in tar:
                stream.allow(max(member.size, 0))
                name = os.path.normpath(member.name)
                folders.update(_parents(name) if not member.isdir() else [*_parents(name), name])
                if name.rsplit("/", 1)[-1].startswith(".") or member.isdir():
                    continue
                if member.issym() or member.islnk():
                    links[name] = _target(name, member)
                    continue
                if not member.isfile() or (member.size > MOST_BYTES and not _is_data(name)):
                    left_out.append(name)
                    continue
                if os.fsencode(name) in places:
                    raise FulaError(f"archive '{archive}' holds '{name}' twice; pack it again")
                if member.size > MOST_BYTES:
                    raise FulaError(
                        f"archive '{archive}' holds '{name}' of {member.size} bytes; an image or a "
                        f"clip has up to {MOST_BYTES}: pack the data alone"
                    )
                start = out.tell()
                copyfileobj(tar.extractfile(member), out, _BLOCK)
                places[os.fsencode(name)] = (start, out.tell())
    except (tarfile.TarError, EOFError, ValueError, OSError, lzma.LZMAError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise  # a full disk, not a broken archive
        raise FulaError(
            f"archive '{archive}' cannot be unpacked ({error}); fetch it again"
        ) from error
    left_out += _follow(links, places, folders)
    names = _sorted_names(list(places))
    spans = np.array([places[n] for n in names.tolist()], dtype=np.int64).reshape(-1, 2)
    save_arrays(folder, names=names, places=spans)
    (folder / "folders.json").write_text(json.dumps(sorted(folders - {"."})))
    (folder / "left-out.json").write_text(json.dumps(sorted(left_out)))


def _target(name: str, member: tarfile.TarInfo) -> str:
    """The name that a link leads to: hard links give it whole, symbolic ones from their folder."""
    start = os.path.dirname(name) if member.issym() else ""
    return os.path.normpath(os.path.join(start, member.linkname))  # noqa: PTH118


def _follow(
    links: dict[str, str], places: dict[bytes, tuple[int, int]], folders: set[str]
) -> list[str]:
    """Give each link the contents of its target; the names of those that lead to nothing.

    Links to links are followed by going on while anything is found, so that a circle ends; a folder
    is copied when the links to files, some of them within it, are done.
    """
    left, circles = dict(links), list[str]()

    def ready() -> list[str]:
        files = [name for name, target in left.items() if os.fsencode(target) in places]
        return files or [name for name, target in left.items() if target in folders]

    while found := ready():
        for name in found:
            target = left.pop(name)
            if os.fsencode(target) in places:
                places.setdefault(os.fsencode(name), places[os.fsencode(target)])
            elif f"{name}/".startswith(f"{target}/"):  # a folder within itself has no end
                circles.append(name)
            else:
                _copy_folder(name, target, places, folders)
    return [*left, *circles]


def _copy_folder(
    name: str, target: str, places: dict[bytes, tuple[int, int]], folders: set[str]
) -> None:
    old, new = os.fsencode(f"{target}/"), os.fsencode(f"{name}/")
    places.update({new + n[len(old) :]: at for n, at in places.items() if n.startswith(old)})
    inside = [name + f[len(target) :] for f in folders if f.startswith(f"{target}/")]
    folders.update([name, *inside])


def _is_data(name: str) -> bool:
    """Whether a name is that of an image or a clip."""
    return name.lower().endswith(DATA_FILES)


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: k + 1]) for k in range(len(parts))]
