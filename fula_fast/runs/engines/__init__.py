"""What runs the waves of a run: processes of this machine, Slurm, or Ray.

Each starts workers (`fula-fast work RUN`), which take waves that nobody works on from the run's
folder until none is left: no scheduler of ours, and the same folder whichever engine it was.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from .launch import Launch

if TYPE_CHECKING:
    from ...progress import Progress

__all__ = ["Launch", "engine_of"]


def engine_of(kind: str) -> Callable[[Launch, Progress], None]:
    """What runs a launch to its end (or, without `wait`, hands it over); loaded late, as its
    package may not be installed."""
    return import_module(f".{kind}", __name__).run
