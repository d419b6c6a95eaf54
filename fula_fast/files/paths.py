"""Text that becomes a path: `~` is the home folder, wherever the text came from."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import FulaError, check_text


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path, with a leading `~` or `~name` replaced by that user's home folder.

    A shell does this for a lone word only: not in a spec, an option `--out=~/x`, a variable, or
    Python. Raises `FulaError` where no such user is known, and for bytes that are no UTF-8.
    """
    check_text(os.fspath(text), "path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise FulaError(
            f"path '{text}' starts at a home folder that is not known; write the whole path"
        ) from None


def cache_folder() -> Path:
    """Root of the cache; created on first use. Raises `FulaError` where it cannot be made."""
    folder = user_path(os.environ.get("FULA_CACHE") or _default_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FulaError(
            f"cache folder '{folder}' cannot be made ({error.strerror}); set FULA_CACHE to a "
            "writable folder"
        ) from error
    return folder


def _default_folder() -> Path:
    try:
        home = user_path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise FulaError(
            "this user has no home folder to keep a cache in; set FULA_CACHE to a writable folder"
        ) from None
    return home / "fula-fast"
