"""Record a fixed sequence of tensor operations, and run it again and again: as a CUDA graph.

What is recorded is a function without arguments that reads and writes tensors which are there
before it, and keep their places. A recorder runs it a few times first: kernels are compiled and
caches filled, which a capture may not do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

WARM_UP = 3

Step = Callable[[], Tensor | None]
Snapshot = Callable[[], Callable[[], None]]
"""Copies, now, all that a step changes; what it returns puts that back bit for bit."""


class CaptureRefused(RuntimeError):
    """The device cannot record this function; it says why. Nothing of the function has run."""


@dataclass(frozen=True)
class Recording:
    """`replay()` runs what was recorded; `output` holds its result until the next replay of any
    recording of the same recorder."""

    replay: Callable[[], None]
    output: Tensor | None


class Recorder(Protocol):
    """Makes recordings."""

    def record(self, step: Step, snapshot: Snapshot) -> Recording:
        """`step` recorded; its state is that of before."""
        ...

    def release(self) -> None:
        """Give back the memory of earlier recordings; none of them may be in use any more."""
        ...


class CudaRecorder:
    """Recordings as CUDA graphs on one device. They share one pool of memory, as only one replays
    at a time: what a step leaves for later must lie in tensors made before.

    The graphs' memory is free again when the recordings are gone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._renew()

    def _renew(self) -> None:
        """A stream to capture on, and a pool for what graphs hold."""
        with torch.cuda.device(self._device):
            self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Step, snapshot: Snapshot) -> Recording:
        """Warm up, put the state back, capture. Raises `CaptureRefused`, and `OutOfMemoryError`."""
        restore = snapshot()
        with torch.cuda.device(self._device), self._aside():
            for _ in range(WARM_UP):
                step()
        restore()
        with torch.cuda.device(self._device):
            return self._captured(step)

    def release(self) -> None:
        """A pool whose graphs are gone is not used again: the next recording has a new one."""
        torch.cuda.synchronize(self._device)
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of the captures: autograd runs backward where it ran forward."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def _captured(self, step: Step) -> Recording:
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # thread_local: the data pipeline's threads call CUDA meanwhile
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = step()
        except RuntimeError as error:
            # A capture that cannot be ended leaves its stream capturing, and its pool in use.
            torch.cuda.set_stream(before)
            self._renew()
            raise _refusal(error) from None
        return Recording(graph.replay, output)


def _refusal(error: BaseException) -> RuntimeError:
    """What broke a capture: ending a broken one raises an error of its own, on top of the first."""
    while error.__context__ is not None:
        error = error.__context__
    if isinstance(error, torch.OutOfMemoryError):
        return error
    return CaptureRefused(str(error).splitlines()[0] if str(error) else type(error).__name__)


class Rerun:
    """Recordings that call the step anew, on any device: what surrounds a graph, without one.

    Like a graph, it warms up, puts the state back, and fills one static output.
    """

    def record(self, step: Step, snapshot: Snapshot) -> Recording:
        """As `CudaRecorder.record`; refuses nothing."""
        restore = snapshot()
        for _ in range(WARM_UP):
            result = step()
        restore()
        output = None if result is None else torch.empty_like(result)

        def replay() -> None:
            found = step()
            if output is not None:
                output.copy_(found)

        return Recording(replay, output)

    def release(self) -> None:
        """Nothing is held."""


def snapshot_of(tensors: Sequence[Tensor]) -> Callable[[], None]:
    """A snapshot of these tensors, of any shape."""
    kept = [t.clone() for t in tensors]

    def restore() -> None:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.copy_(value)

    return restore
