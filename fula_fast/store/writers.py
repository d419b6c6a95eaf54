"""Who works in a run's folder: a note per process, kept fresh while the process lives.

A note is no lock: it tells a second writer which wave to leave alone, and grows stale by itself.
What ends all writers, wherever they are, is a note too: `cancel` leaves it, and each looks for it.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from typing_extensions import TypedDict

from .. import stops
from ..errors import FulaError
from ..files import sealed
from ..files.atomic import host_name, is_alive, remove
from ..files.sealed import CANCEL, WRITER

BEAT_SECONDS = 20.0
LOOK_SECONDS = 4.0
"""Between two looks for a note that cancels the run."""
STALE_SECONDS = 600.0
"""A note that was not touched for so long is of a process that died; clocks of hosts differ."""


class Note(TypedDict):
    """Host and number of a process, when it began, and the wave that it works on."""

    host: str
    pid: int
    started: float
    wave: str


class Cancelled(TypedDict):
    """When a run was cancelled: UTC, ISO 8601; and from which host."""

    at: str
    host: str


@dataclass(frozen=True)
class Writers:
    """The notes in a run's folder."""

    folder: Path

    @contextmanager
    def present(self, since: str) -> Iterator[None]:
        """Keep a note of this process while the block runs.

        Raises `FulaError` where the run was cancelled after `since` (a time in UTC, ISO 8601), also
        while the block runs: the main thread is then interrupted, as by Ctrl-C or, where that is
        ignored, by a handler of SIGTERM, and without either before its next batch; another thread
        finds it itself.
        """
        self.check_wanted(since)
        self.claim("")
        ended = Event()
        asked = since if threading.current_thread() is threading.main_thread() else None
        beat = Thread(target=self._beat, args=(ended, asked), daemon=True)
        beat.start()
        try:
            try:
                yield
            finally:
                stops.check()
        except KeyboardInterrupt:
            self.check_wanted(since)
            raise
        finally:
            ended.set()
            beat.join()
            if asked:
                stops.forget()
            remove(self._own)

    def cancel(self, at: str) -> None:
        """Have all processes end that began to work here before `at` (UTC, ISO 8601)."""
        sealed.write_json(self._cancel, CANCEL, Cancelled(at=at, host=host_name()))

    def check_wanted(self, since: str) -> None:
        """Raise `FulaError` if the run was cancelled after `since` (UTC, ISO 8601)."""
        if found := self._cancelled(since):
            raise FulaError(
                f"the run was cancelled at {found['at'][:19]} UTC on {found['host']}; what is "
                "finished is kept, --resume goes on with it"
            )

    def _cancelled(self, since: str) -> Cancelled | None:
        with suppress(FileNotFoundError):
            found = sealed.read_json(self._cancel, CANCEL, Cancelled)
            return found if found["at"] > since else None
        return None

    def claim(self, wave_id: str) -> bool:
        """Say that this process works on a wave; False, and the wave is let go, where another said
        so before. (Where clocks or a stale listing hide that, both do it, with the same result.)"""
        note = {"host": host_name(), "pid": os.getpid(), "started": time.time(), "wave": wave_id}
        sealed.write_json(self._own, WRITER, note)
        mine = _order(note)
        if wave_id and any(n["wave"] == wave_id and _order(n) < mine for n in self.others()):
            sealed.write_json(self._own, WRITER, {**note, "wave": ""})
            return False
        return True

    def others(self) -> list[Note]:
        """The notes of other processes that are at work; those of dead ones are removed."""
        return self._read_all(removing=True)

    def alive(self) -> list[Note]:
        """The notes of all processes that are at work; changes nothing."""
        return self._read_all(removing=False)

    def _read_all(self, removing: bool) -> list[Note]:
        found = []
        for path in self.folder.glob("[!.]*.json"):
            if removing and path == self._own:
                continue
            with suppress(FileNotFoundError, sealed.Newer):
                if (note := _read(path)) is not None:
                    found.append(note)
                elif removing:
                    remove(path)
        return found

    def left_by(self, name: str) -> str:
        """The wave that the writer of a note worked on when it died, and the note is gone; empty
        where it says none."""
        path = self.folder / name
        try:
            return sealed.read_json(path, WRITER, Note)["wave"]
        except (FileNotFoundError, sealed.Damaged):
            return ""
        finally:
            remove(path)

    @property
    def _own(self) -> Path:
        return self.folder / f"{host_name()}-{os.getpid()}.json"

    @property
    def _cancel(self) -> Path:
        return self.folder.parent / "cancelled.json"

    def _beat(self, ended: Event, asked: str | None) -> None:
        """Keep the note fresh; `asked`: since when the main thread works here, None for others."""
        fresh = time.monotonic()
        while not ended.wait(LOOK_SECONDS):
            if time.monotonic() - fresh >= BEAT_SECONDS:
                fresh = time.monotonic()
                with suppress(OSError):  # a folder that was moved shows at the next write
                    os.utime(self._own)
            with suppress(sealed.Damaged):  # named by whoever looks between two waves
                if asked and self._cancelled(asked):
                    stops.remember(KeyboardInterrupt())
                    _interrupt_main()
                    return


def _interrupt_main() -> None:
    """By a signal, which ends a wait too; on Windows, which has none for a thread, after it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, number)
            else:
                _thread.interrupt_main(number)
            return


def _order(note: Mapping[str, Any]) -> tuple:
    """Who of two that claim a wave was first."""
    return note["started"], note["host"], note["pid"]


def _read(path: Path) -> Note | None:
    """The note of a living process; None for a dead one's, and for one that says nothing."""
    if time.time() - path.stat().st_mtime > STALE_SECONDS:
        return None
    try:
        note = sealed.read_json(path, WRITER, Note)
    except sealed.Damaged:
        return None
    alive = note["host"] != host_name() or is_alive(note["pid"])
    return note if alive else None
