"""A process that does not outlive the one that started it."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

from ..files.atomic import is_alive

LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
"""How long this process may take to write what it has after SIGTERM."""
_KILLED = 137
"""Exit code of what did not end by itself, as a shell has it."""


def end_with(parent: int, patience: float = PATIENCE_SECONDS) -> None:
    """Stop this process, as SIGTERM does, when its parent is `parent` no more: the system gives
    the child of a killed process another. What SIGTERM has not ended after `patience` seconds (an
    exception that a destructor raises is dropped) is ended at once: a run loses nothing by it."""
    Thread(target=_watch, args=(parent, patience), daemon=True).start()


def _watch(parent: int, patience: float) -> None:
    while _starts(parent):
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience)
    os._exit(_KILLED)


def _starts(parent: int) -> bool:
    """Whether this process still has that parent. On Windows a process keeps the number of a dead
    one, and the launcher of a virtual environment stands between the two."""
    return is_alive(parent) if os.name == "nt" else os.getppid() == parent
