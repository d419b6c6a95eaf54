"""Atomic, durable files: whole under their name, or not there at all."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from ..errors import FulaError

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What file systems answer that cannot flush a folder (some network shares)."""

STALE_SECONDS = 24 * 3600
"""A temporary file older than this belongs to a writer that died."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place, flushed, when the block succeeds.

    A full disk, a read-only folder or any other `OSError` becomes a `FulaError`; then, as after
    any exception, `path` is as it was and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        with writing(path):
            _make_folder(path.parent)
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush_folder(path.parent)
    finally:
        with suppress(OSError):  # the folder itself may be what is broken
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to change `path` into a `FulaError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FulaError(
            f"cannot write '{path}' ({_reason(error)}): nothing was left half-written; "
            "free space or make the folder writable, then do the same again (a sweep with --resume)"
        ) from error


def folder(path: Path) -> Path:
    """The folder `path`, made with its parents if absent."""
    with writing(path):
        _make_folder(path)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", "utf-8")


def remove_stale(path: Path) -> None:
    """Delete temporary files under `path` whose writer died long ago (`STALE_SECONDS`)."""
    for temporary in path.rglob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process tidies too
            if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
                temporary.unlink()


def _make_folder(path: Path) -> None:
    """Make each missing folder, and flush its name into the folder that holds it."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _flush_folder(path.parent)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    try:
        _flush(path)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
