"""A run's progress in an experiment tracker, beside what a terminal shows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from ..errors import FulaError, nearest
from ..files.atomic import folder as made
from ..progress import LaneLoss, Progress
from ..study.spec import Spec

INTERVAL = 10.0
"""Seconds between two notes of a wave's speed and losses."""


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep named numbers; `step`: cells that are finished."""

    def close(self) -> None:
        """Write what is left."""


@contextmanager
def tracked(shown: Progress, name: str | None, spec: Spec, folder: Path) -> Iterator[Progress]:
    """`shown`, and beside it the tracker of that name, which writes in `folder`/tracking.

    Raises `FulaError` for an unknown name, and where its package is not installed.
    """
    if name is None:
        yield shown
        return
    _require(name)
    found = Tracked(shown, lambda: TRACKERS[name](spec, made(folder / "tracking")))
    try:
        yield found
    finally:
        found.close()


class Tracked(Progress):
    """Every event goes to `shown`; numbers go to a tracker too, which is opened for the first: a
    run that is refused has none."""

    def __init__(
        self,
        shown: Progress,
        opened: Callable[[], Tracker],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shown, self._opened, self._clock = shown, opened, clock
        self._tracker: Tracker | None = None
        self._finished, self._last = 0, -INTERVAL
        for name in ("donor_started", "donor_epoch", "donor_done", "wave_started", "note"):
            setattr(self, name, getattr(shown, name))

    def run_started(self, cells: int, done: int, work: float = 0.0) -> None:
        self._finished = done
        self._shown.run_started(cells, done, work)

    def step(self, done: int, images_per_s: float | None = None, memory: int | None = None) -> None:
        self._shown.step(done, images_per_s, memory)
        if self._clock() - self._last >= INTERVAL:
            self._last = self._clock()
            self._log({"wave/step": done, "wave/images_per_s": images_per_s, "wave/bytes": memory})

    def losses(self, worst: LaneLoss, best: LaneLoss) -> None:
        self._shown.losses(worst, best)
        self._log({"wave/worst_loss": worst.loss, "wave/best_loss": best.loss})

    def cell_done(self, row: Mapping[str, Any]) -> None:
        self._shown.cell_done(row)
        self._finished += 1
        place = f"{row.get('method')}/{row.get('front')}.{row.get('front_site')}"
        place += f"-{row.get('end')}.{row.get('end_site')}"
        self._log({f"{place}/{name}": row.get(name) for name in MEASURED})
        self._log({"cells/finished": self._finished})

    def _log(self, values: Mapping[str, Any]) -> None:
        known = {n: float(v) for n, v in values.items() if v is not None and isfinite(v)}
        if known:
            self._tracker = self._tracker or self._opened()
            self._tracker.log(known, self._finished)

    def close(self) -> None:
        """Have the tracker write what is left."""
        if self._tracker:
            self._tracker.close()


MEASURED = (
    "accuracy", "agreement_top1", "agreement_soft", "kappa", "robust_accuracy", "train_seconds",
)  # fmt: skip
"""Columns of a row that a tracker draws."""


class _Wandb:
    """Weights & Biases; without an account's key it writes to disk alone (`wandb sync`)."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        wandb = import_module("wandb")
        known = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self._run = wandb.init(
            project="fula-fast", name=spec.name, dir=str(folder), config=spec.dump(),
            mode=None if known else "offline",
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "cells": step})

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    """TensorBoard's event files: `tensorboard --logdir RUN/tracking`."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("spec", f"```\n{spec.model_dump_json(indent=1)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _require(package: str) -> None:
    if package not in TRACKERS:
        raise FulaError(f"unknown tracker '{package}'{nearest(package, TRACKERS)}")
    if find_spec(package) is None:
        raise FulaError(
            f"engine.track = '{package}' needs a package: pip install 'fula-fast[{package}]'"
        )


TRACKERS: Mapping[str, Callable[[Spec, Path], Tracker]] = {
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
}
"""By the name of their package, of the extra that brings it, and of `engine.track`."""
