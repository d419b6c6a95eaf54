"""Atomic, durable files: whole under their name, or not there at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape as glob_escape
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from ..errors import FulaError

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What file systems answer that cannot flush a folder (some network shares)."""
if os.name == "nt":
    _NO_FOLDER_SYNC.add(errno.EACCES)  # it opens none

STALE_SECONDS = 24 * 3600
"""A temporary file of another host, older than this, belongs to a writer that died."""

_TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]*)_(?P<pid>\d+)_[0-9a-f]{12}\.tmp")


class CannotWrite(FulaError):
    """The system refused to change a file; `reason` is its own word."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"cannot write '{path}' ({reason}): nothing was left half-written; free space or make "
            "the folder writable, then do the same again (a sweep with --resume)"
        )
        self.reason = reason


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place, flushed, when the block succeeds.

    A full disk, a read-only folder or any other `OSError` becomes a `FulaError`; then, as after
    any exception, `path` is as it was and the temporary file is gone. What a writer of `path` left
    behind when it was killed is removed.
    """
    temporary = temporary_beside(path)
    try:
        with writing(path):
            _make_folder(path.parent)
            remove_stale(path.parent, f".{glob_escape(path.name)}.*.tmp")
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush_folder(path.parent)
    finally:
        with suppress(OSError):  # the folder itself may be what is broken
            temporary.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder beside `path`, which takes its place, flushed, when the block
    succeeds; an entry that another process put there meanwhile is kept instead.

    Errors are those of `replacing`.
    """
    temporary = temporary_beside(path)
    try:
        with writing(path):
            _make_folder(path.parent)
            remove_stale(path.parent, f".{glob_escape(path.name)}.*.tmp")
            temporary.mkdir()
            yield temporary
            for entry in (*sorted(temporary.rglob("*")), temporary):
                (_flush_folder if entry.is_dir() else _flush)(entry)
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
            _flush_folder(path.parent)
    finally:
        _discard(temporary)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder beside `path`, gone after the block; one that a killed writer of
    `path` left is removed as its temporary files are."""
    scratch = temporary_beside(path)
    try:
        scratch.mkdir()
        yield scratch
    finally:
        _discard(scratch)


def _discard(folder: Path) -> None:
    """Delete a temporary folder, if it can be. Asked again where the system refused once: what is
    whole has its name by then, so that no later write of it would look for leftovers."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """A new hidden name in the folder of `path`, which tells who writes there (host and
    process)."""
    name = path.name[:100]  # a file name ends at 255 bytes
    return path.with_name(f".{name}.{host_name()}_{os.getpid()}_{uuid4().hex[:12]}.tmp")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to change `path` into a `FulaError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CannotWrite(path, _reason(error)) from error


def folder(path: Path) -> Path:
    """The folder `path`, made with its parents if absent."""
    with writing(path):
        _make_folder(path)
    return path


def remove(path: Path) -> None:
    """Delete a file or a folder with what is in it, if it is there."""
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_stale(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Delete temporary files and folders in `folder` whose writer died."""
    for temporary in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process tidies too
            if _abandoned(temporary):
                remove(temporary)


def _abandoned(temporary: Path) -> bool:
    """Whether the process that a temporary name tells is dead: on this host that is certain."""
    found = _TEMPORARY.fullmatch(temporary.name)
    if found and found["host"] == host_name():
        return not is_alive(int(found["pid"]))
    return time.time() - temporary.stat().st_mtime > STALE_SECONDS


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number that has not ended.

    One that has, and whose exit code nobody asked for, keeps its number: for ever in a container
    whose first process asks for none. Linux tells it from the others.
    """
    if os.name == "nt":  # where `os.kill` ends it, whatever the signal
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return not _has_ended(pid)


def _has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:  # another system, or it is gone since
        return False
    return stat.rpartition(")")[2].split()[0] in "ZX"  # behind its name, which may hold anything


def host_name() -> str:
    """This machine's name, fit for a file name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]


def _make_folder(path: Path) -> None:
    """Make each missing folder, and flush its name into the folder that holds it."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _flush_folder(path.parent)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _flush(path: Path, access: int = os.O_RDWR) -> None:
    descriptor = os.open(path, access)  # Windows flushes nothing that is open to read alone
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    try:
        _flush(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
