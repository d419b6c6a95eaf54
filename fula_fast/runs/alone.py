"""A process that does not outlive the one that started it."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

LOOK_SECONDS = 1.0


def end_with(parent: int) -> None:
    """Stop this process, as SIGTERM does, when its parent is `parent` no more: the system gives
    the child of a killed process another."""
    Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
