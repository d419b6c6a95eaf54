"""The whole step as CUDA graphs: one for each phase, replayed with new batches in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..pipelines import ResidentStream
from ..pipelines.streams import Batch, into_buffers
from ..task import WaveTask
from .wave import Wave

WARM_UP = 3


class Captured:
    """Steps of a wave as replays of a captured graph.

    With a resident stream the batch's gather and augmentation are part of the graph: an epoch's
    random numbers are loaded outside it, and the step number is a device counter. Any other stream
    fills static buffers. `replays` counts graph launches; `mode` is `captured`.
    """

    mode = "captured"

    def __init__(self, task: WaveTask, wave: Wave) -> None:
        self.task, self.wave = task, wave
        self.resident = isinstance(task.stream, ResidentStream)
        self.position = torch.zeros((), dtype=torch.int64, device=task.device)
        self.buffers: Batch | None = None
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self.replays = 0

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[int]:
        """Take the steps of an epoch; yields each one's number within the training."""
        first = epoch * self.task.stream.steps
        for step in self._batches(epoch, start_step):
            full = self.wave.full_at(first + step)
            if full not in self.graphs:
                self.graphs[full] = self._capture(full)
            self.graphs[full].replay()
            self.replays += 1
            yield first + step

    def _batches(self, epoch: int, start_step: int) -> Iterator[int]:
        """Put each batch (or its place in the epoch) where the graph reads it."""
        stream = self.task.stream
        if self.resident:
            stream.load_epoch(epoch)
            self.position.fill_(start_step)
            yield from range(start_step, stream.steps)
            return
        batches = stream.epoch(epoch, start_step)
        if self.buffers is None:
            first = next(batches)
            self.buffers = Batch(*(t.to(self.task.device, copy=True) for t in first))
            yield start_step
            start_step += 1
        for step, _ in enumerate(into_buffers(batches, self.buffers), start_step):
            yield step

    def _step(self, full: bool) -> None:
        batch = self.task.stream.batch_at(self.position) if self.resident else self.buffers
        self.wave.run(batch.images, batch.labels, full)
        self.position.add_(1)

    def _capture(self, full: bool) -> torch.cuda.CUDAGraph:
        """Warm up on a side stream (which moves statistics and moments: they are put back bit for
        bit), then record one step."""
        restore, position = self.wave.snapshot(), self.position.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._step(full)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The data pipeline's own threads call CUDA while we record.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step(full)
        restore()
        self.position.copy_(position)
        return graph
