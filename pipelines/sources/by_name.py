"""Named sources: `load_source("cifar10", data_dir=..., size=32)`.

Data is looked for in `data_dir`, else `$FULA_DATA`, else `./data`; a data folder may hold the
unpacked form or the archive. Nothing is downloaded unless asked. A new source is a function and
its record in `catalogue`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import FulaError, nearest
from ...files.paths import user_path
from ..decode.images import Source, check_size
from .given import GIVEN, given
from .registry import named_source


def loader(name: str) -> Callable[..., Source]:
    """The function behind a source's name; its keyword-only arguments are the source's options.

    Raises `FulaError` for an unknown name.
    """
    return given if name == GIVEN else named_source(name).loader()


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Where data is looked for: `data_dir`, else `$FULA_DATA`, else `./data`."""
    return user_path(data_dir or os.environ.get("FULA_DATA") or "data")


def load_source(
    name: str,
    *,
    data_dir: str | Path | None = None,
    size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    **options: Any,
) -> Source:
    """The named source, decoded to uint8.

    `size` is the side of the square images (default: the source's own), `channels` 1 or 3 (default
    3; gray images are replicated). Raises `FulaError` for an unknown name or option, and for data
    that is missing or unreadable, each with the fix.
    """
    load = loader(name)
    known = load.__kwdefaults__ or {}
    for option in options:
        if option not in known:
            raise FulaError(
                f"source '{name}' has no option '{option}'"
                + (nearest(option, known) if known else "; it takes none")
            )
    channels = 3 if channels is None else channels
    check_size(size, channels)
    return load(data_folder(data_dir), size, channels, download, **options)
