"""The cache on disk: content digests, archives, decoded arrays.

It lives in `$FULA_CACHE`, else `$XDG_CACHE_HOME/fula-fast`, else `~/.cache/fula-fast`, and may be
deleted at any time. Entries are written under a temporary name, sealed and renamed, so that
concurrent processes and interrupted ones leave nothing half-written; a damaged one is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FulaError
from ...files import sealed
from ...files.atomic import CannotWrite, remove, replacing_folder
from ...files.paths import cache_folder
from ...files.sealed import CACHE

_LOG = logging.getLogger(__name__)
_GRAIN_NS = 2_000_000_000


def build_once(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The cache entry `kind/key`: a folder that `fill` writes the first time it is asked for.

    Every byte of an entry is read once by each process; a damaged one is built again. Raises
    `FulaError` where it cannot be written.
    """
    entry, name = cache_folder() / kind / key, f"{kind}/{key}"
    if entry in _whole and entry.is_dir():
        return entry
    try:
        if os.path.lexists(entry) and not _is_whole(entry, name):
            remove(entry)
        if not os.path.lexists(entry):
            with replacing_folder(entry) as scratch:
                fill(scratch)
                sealed.seal_folder(scratch, CACHE, name)
    except (OSError, CannotWrite) as error:
        raise FulaError(
            f"cache entry '{entry}' cannot be written ({_reason(error)}); free space "
            "there, or set FULA_CACHE to another folder"
        ) from error
    _whole.add(entry)
    return entry


_whole: set[Path] = set()
"""Entries that this process has verified or made."""


def _is_whole(entry: Path, name: str) -> bool:
    try:
        sealed.check_folder(entry, CACHE, name)
    except sealed.Damaged as error:
        _LOG.warning("%s", error)
        return False
    return True


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)


def content_digest(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over names (relative to `root`) and bytes of `files`.

    The digest is remembered under names, sizes and modification times, so that an unchanged folder
    is not read again; not while a file is so new that it could change within the clock's grain. A
    file that cannot be read counts as such: whoever needs its content says what is wrong with it.
    """
    files = list(files)
    stats = [(str(f.relative_to(root)), *_stamp(f)) for f in files]
    known = hashlib.sha256(json.dumps([str(root.resolve()), stats]).encode()).hexdigest()
    memo = cache_folder() / "digests" / f"{known}.json"
    if (remembered := _remembered(memo, known)) is not None:
        return remembered
    digest = hashlib.sha256()
    whole = True
    for file, (name, size, _) in zip(files, stats, strict=True):
        digest.update(os.fsencode(f"{name}\0{size}\0"))
        whole &= _add_content(digest, file)
    newest = max((changed for _, _, changed in stats), default=0)
    if whole and newest < time.time_ns() - _GRAIN_NS:
        sealed.write_json(memo, CACHE, {"name": known, "digest": digest.hexdigest()})
    return digest.hexdigest()


def _add_content(digest: Any, file: Path) -> bool:
    """Add the file's bytes, or that it cannot be read; whether it could."""
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        digest.update(f"unreadable {error.errno}".encode())
        return False
    return True


def _remembered(memo: Path, known: str) -> str | None:
    try:
        found = sealed.read_json(memo, CACHE, dict[str, str])
        return found["digest"] if found.get("name") == known else None
    except FileNotFoundError:
        return None
    except sealed.Damaged as error:
        _LOG.warning("%s", error)
        remove(memo)
        return None


def _stamp(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def save_arrays(folder: Path, **arrays: np.ndarray) -> None:
    """Write each array as `<name>.npy`."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load_array(folder: Path, name: str) -> np.ndarray:
    """`<name>.npy` as a copy-on-write memory map."""
    return np.load(folder / f"{name}.npy", mmap_mode="c")


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
