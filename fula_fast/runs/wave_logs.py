"""A log of each wave, `RUN/logs/wave-ID.log`: whoever works on it, wherever, goes on with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FulaError
from ..files.atomic import host_name, writing
from ..progress import LineProgress, Progress
from ..store import Store

_EVENTS = ("wave_started", "step", "losses", "cell_done", "note")


@contextmanager
def logged(shown: Progress, store: Store, wave: str, cells: int, done: int) -> Iterator[Progress]:
    """A display for the block that works on a wave of `cells` cells, of which `done` were finished
    before: what is told to it goes to `shown` and into the wave's log."""
    write, began = partial(_write, store.logs / _name(wave)), time.monotonic()
    lines = LineProgress(write)
    lines.run_started(cells, done)
    try:
        yield _Both(shown, lines)
    except BaseException as error:
        with suppress(FulaError):  # of two errors the first is told
            write(f"left after {time.monotonic() - began:.0f} s: {error or type(error).__name__}")
        raise
    write(f"done after {time.monotonic() - began:.0f} s")


def wave_log(store: Store, wave: str) -> str:
    """The log of the wave whose id begins with `wave`.

    Raises `FulaError` where that is none or several, and where nobody has begun it.
    """
    found = [name for name in store.plan["waves"]["id"] if name.startswith(wave)]
    if len(found) != 1:
        raise FulaError(
            f"'{wave}' is the beginning of {len(found)} waves' ids of '{store.folder}'; give one "
            "that fula-fast status or a dry run shows"
        )
    path = store.folder / "logs" / _name(found[0])
    if not path.exists():
        raise FulaError(f"nobody has begun wave '{found[0]}' of '{store.folder}' yet")
    return path.read_text("utf-8", errors="replace")


class _Both(Progress):
    """Tells two displays."""

    def __init__(self, *displays: Progress) -> None:
        for name in _EVENTS:
            setattr(self, name, partial(_tell, [getattr(each, name) for each in displays]))


def _tell(calls: list[Callable[..., None]], *args: Any, **values: Any) -> None:
    for call in calls:
        call(*args, **values)


def _name(wave: str) -> str:
    return f"wave-{wave}.log"


def _write(path: Path, text: str) -> None:
    line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {host_name()}, {os.getpid()}: {text}\n"
    with writing(path), path.open("a", encoding="utf-8") as log:
        log.write(line)
