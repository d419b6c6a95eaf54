"""What runs the waves of a run: processes of this machine, Slurm, or Ray.

Each starts workers (`fula-fast work RUN`), which take waves that nobody works on from the run's
folder until none is left: no scheduler of ours, and the same folder whichever engine it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .launch import Launch, Training

if TYPE_CHECKING:
    from ...progress import Progress
    from ...study.resources import Resources
    from ...study.spec import Spec

__all__ = ["Launch", "Training", "engine_of", "train_apart"]


def engine_of(kind: str) -> Callable[[Launch, Progress], None]:
    """What runs a launch to its end (or, without `wait`, hands it over); loaded late, as its
    package may not be installed."""
    return import_module(f".{kind}", __name__).run


def train_apart(
    spec: Spec, names: Sequence[str], folder: Path, resources: Resources, progress: Progress
) -> None:
    """Train donors into `folder` by workers, where there are several or a cluster has them, and
    wait for it; what is left (one donor, one worker) this process trains when it needs it.

    Raises `FulaError` for a donor that cannot be trained.
    """
    kind = spec.engine.kind
    several = min(len(names), resources.workers) > 1
    if several or (names and kind != "local"):
        module = import_module(f".{kind}", __name__)
        module.train(Training(spec, names, folder, resources), progress)
