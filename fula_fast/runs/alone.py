"""A process that does not outlive the one that started it."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
"""How long this process may take to write what it has after SIGTERM."""


def end_with(parent: int, patience: float = PATIENCE_SECONDS) -> None:
    """Stop this process, as SIGTERM does, when its parent is `parent` no more: the system gives
    the child of a killed process another. What SIGTERM has not ended after `patience` seconds (an
    exception that a destructor raises is dropped) SIGKILL ends: a run loses nothing by it."""
    Thread(target=_watch, args=(parent, patience), daemon=True).start()


def _watch(parent: int, patience: float) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience)
    os.kill(os.getpid(), signal.SIGKILL)
