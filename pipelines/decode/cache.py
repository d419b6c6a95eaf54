"""The cache on disk: content digests, archives, decoded arrays.

It lives in `$FULA_CACHE`, else `$XDG_CACHE_HOME/fula-fast`, else `~/.cache/fula-fast`, and may be
deleted at any time. Entries are written under a temporary name and renamed, so that concurrent
processes and interrupted ones leave nothing half-written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ...errors import FulaError
from ...paths import user_path

_GRAIN_NS = 2_000_000_000


def cache_folder() -> Path:
    """Root of the cache; created on first use."""
    default = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fula-fast"
    folder = user_path(os.environ.get("FULA_CACHE") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FulaError(
            f"cache folder '{folder}' cannot be made ({error.strerror}); set FULA_CACHE to a "
            "writable folder"
        ) from error
    return folder


def build_once(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The cache entry `kind/key`: a folder that `fill` writes the first time it is asked for."""
    entry = cache_folder() / kind / key
    if entry.is_dir():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
    try:
        fill(scratch)
        _rename(scratch, entry)
    except OSError as error:
        raise FulaError(
            f"cache entry '{entry}' cannot be written ({error.strerror or error}); free space "
            "there, or set FULA_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return entry


def _rename(scratch: Path, entry: Path) -> None:
    try:
        scratch.rename(entry)
    except OSError:
        if not entry.is_dir():  # else another process was faster, with the same content
            raise


def content_digest(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over names (relative to `root`) and bytes of `files`.

    The digest is remembered under names, sizes and modification times, so that an unchanged folder
    is not read again; not while a file is so new that it could change within the clock's grain.
    """
    files = list(files)
    stats = [(str(f.relative_to(root)), *_stamp(f)) for f in files]
    known = hashlib.sha256(json.dumps([str(root.resolve()), stats]).encode()).hexdigest()
    memo = cache_folder() / "digests" / known
    if memo.is_file():
        return memo.read_text()
    digest = hashlib.sha256()
    for file, (name, size, _) in zip(files, stats, strict=True):
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    newest = max((changed for _, _, changed in stats), default=0)
    if newest < time.time_ns() - _GRAIN_NS:
        memo.parent.mkdir(exist_ok=True)
        _write_atomically(memo, digest.hexdigest())
    return digest.hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _write_atomically(path: Path, text: str) -> None:
    handle, scratch = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    os.replace(scratch, path)


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
