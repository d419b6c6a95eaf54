"""Whether the system has asked this process to end.

A handler says so by an exception, which lands wherever Python code runs; a library that calls
Python from C may drop it there and report a failure of its own (`torch.asarray` does), or none
(nanobind, where it asks a tensor for its memory). So it is remembered, and asked for again behind a
failure and between two batches.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_asked: KeyboardInterrupt | None = None


@contextmanager
def heard() -> Iterator[None]:
    """What is asked inside the block is forgotten behind it."""
    forget()
    try:
        yield
    finally:
        forget()


def ask(stop: KeyboardInterrupt) -> NoReturn:
    """Raise `stop`, and remember that it was raised: for the handlers of signals."""
    remember(stop)
    raise stop


def remember(stop: KeyboardInterrupt) -> None:
    """`stop` is for the main thread, which a signal may not reach: for other threads."""
    global _asked
    _asked = stop


def forget() -> None:
    """It has arrived: what follows is an answer to it."""
    global _asked
    _asked = None


def check() -> None:
    """Raise what was asked once more, in the main thread, as handlers run there: for code that has
    seen an unexpected failure, or goes on for long."""
    if _asked is not None and threading.current_thread() is threading.main_thread():
        raise _asked
