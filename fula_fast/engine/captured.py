"""The whole step recorded: one recording for each phase, replayed with new batches in place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from .. import stops
from ..device.graphs import CaptureRefused, CudaRecorder, Recorder, Recording
from ..device.mode import CAPTURED, COMPILED
from ..errors import FulaError, not_none
from ..pipelines import ResidentStream
from ..pipelines.streams.base import Batch, into_buffers
from .phases import Phase
from .shares import ShareTable
from .task import WaveTask
from .wave import Wave


class Captured:
    """Steps of a wave as replays of a recorded step: on CUDA, of one graph.

    With a resident stream the batch's gather and augmentation are part of the graph: an epoch's
    random numbers are loaded outside it, and the step's number in the epoch is a device scalar. Any
    other stream fills static buffers. The attack of an attacked wave is part of the graph too.
    `replays` counts launches; `mode` is `captured`, or `compiled` where the device refused.
    """

    def __init__(self, task: WaveTask, wave: Wave, recorder: Recorder | None = None) -> None:
        self.task, self.wave = task, wave
        self.mode, self.replays = CAPTURED, 0
        self._recorder = recorder or CudaRecorder(task.device)
        self._resident = isinstance(task.stream, ResidentStream)
        self._position = torch.zeros((), dtype=torch.int64, device=task.device)
        self._buffers: Batch | None = None
        self._table: ShareTable | None = None
        self._recorded: Phase | None = None  # the phase that `_recording` is of
        self._recording: Recording | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[int]:
        """Take the steps of an epoch; yields each one's number within the training."""
        first = epoch * self.task.batches.steps
        for step in self._batches(epoch, start_step):
            if self.wave.attacked:
                self._draw(epoch, step, step == start_step)
            phase = self.wave.phase_at(first + step)
            if phase is not self._recorded:
                self._enter(phase)
            not_none(self._recording).replay()
            self.replays += 1
            yield first + step

    def _enter(self, phase: Phase) -> None:
        """Record a phase. The one before never comes back, and its graph holds as much memory as
        its step needs: the next one's warm-up could not have it."""
        if self._recording is not None:
            self._recording = None
            self._recorder.release()
        self._recording, self._recorded = self._record(phase), phase

    def _batches(self, epoch: int, start_step: int) -> Iterator[int]:
        """Put each batch (or its place in the epoch) where the graph reads it."""
        stream: Any = self.task.batches
        if self._resident:
            stream.load_epoch(epoch)
        places = range(start_step, stream.steps)
        batches = places if self._resident else self._filled(epoch, start_step)
        for step, _ in enumerate(batches, start_step):
            stops.check()
            self._position.fill_(step)
            yield step

    def _filled(self, epoch: int, start_step: int) -> Iterator[Batch]:
        batches = self.task.batches.epoch(epoch, start_step)
        if self._buffers is None:
            self._buffers = Batch(*(t.to(self.task.device, copy=True) for t in next(batches)))
            yield self._buffers
        yield from into_buffers(batches, self._buffers)

    def _batch(self) -> Batch:
        stream: Any = self.task.batches
        return stream.batch_at(self._position) if self._resident else not_none(self._buffers)

    def _draw(self, epoch: int, step: int, new: bool) -> None:
        if self._table is None:
            self._table = ShareTable(self.wave.shares, self.task.stream, self._batch().images)
        if new:
            self._table.load(epoch)
        self._table.aim(step)

    def _step(self, phase: Phase) -> None:
        batch, own = self._batch(), None
        if self.wave.attacked:
            drawn = not_none(self._table).draw_at(self._position)
            own = self.wave.attacked_batch(batch.images, batch.labels, drawn)
        self.wave.run(batch.images, batch.labels, phase, own)

    def _record(self, phase: Phase) -> Recording:
        step = partial(self._step, phase)
        try:
            return self._recorder.record(step, self.wave.snapshot)
        except CaptureRefused as refusal:
            if self.task.mode == CAPTURED:
                raise FulaError(
                    f"engine mode 'captured' is not possible: the device refused the step "
                    f"({refusal}); use 'compiled'"
                ) from None
            self.task.progress.note(f"CUDA graph capture refused ({refusal}): compiled steps")
        self.mode = COMPILED
        return Recording(step, None)
