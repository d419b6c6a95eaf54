"""Run a fixed sequence of tensor operations: eagerly, or captured once as a CUDA graph.

`Replay` serves the PGD loop and the APGD iteration alike. What runs is reported, never guessed: a
refused capture warns with its reason and leaves `mode = "eager"`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .graphs import CaptureRefused, CudaRecorder, Recorder, Recording, snapshot_of
from .mode import CAPTURED, EAGER


def recorder_on(device: torch.device) -> Recorder | None:
    """What records on this device; None where nothing can."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Replay:
    """`fn(*tensors)` with one recording per set of input shapes.

    fn: reads its arguments (and whatever fixed tensors it closes over) and returns a tensor or
    None; no host synchronisation, no host random numbers. `state()`: tensors that fn changes in
    place; they are put back after the warm-up. recorder: what records (recordings of one recorder
    share memory); None runs fn eagerly.

    `mode` says what the last call ran ("eager" or "captured"), `replays` how often a recording was
    replayed.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor | None],
        recorder: Recorder | None,
        *,
        state: Callable[[], Sequence[Tensor]] = tuple,
    ) -> None:
        self._fn, self._recorder, self._state = fn, recorder, state
        self._calls: dict[Any, _Call | None] = {}
        self.mode = EAGER
        self.replays = 0

    @property
    def records(self) -> bool:
        """Whether it is to be recorded, if nothing refuses that."""
        return self._recorder is not None

    def __call__(self, *tensors: Tensor) -> Tensor | None:
        call = None if self._recorder is None else self._call(tensors)
        if call is None:
            self.mode = EAGER
            return self._fn(*tensors)
        self.mode = CAPTURED
        self.replays += 1
        return call.replay(tensors)

    def _call(self, tensors: Sequence[Tensor]) -> _Call | None:
        key = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
        if key not in self._calls:
            self._calls[key] = self._recorded(tensors)
        return self._calls[key]

    def _recorded(self, tensors: Sequence[Tensor]) -> _Call | None:
        static = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
        try:
            recording = self._recorder.record(
                partial(self._fn, *static), lambda: snapshot_of(self._state())
            )
        except CaptureRefused as refusal:
            warnings.warn(f"CUDA graph capture refused, running eagerly: {refusal}", stacklevel=4)
            return None
        return _Call(static, recording)


class _Call:
    """One recorded call: its static inputs, and a copy of its output at every replay."""

    def __init__(self, static: Sequence[Tensor], recording: Recording) -> None:
        self._inputs, self._recording = static, recording

    def replay(self, tensors: Sequence[Tensor]) -> Tensor | None:
        for static, given in zip(self._inputs, tensors, strict=True):
            static.copy_(given)
        self._recording.replay()
        output = self._recording.output
        return None if output is None else output.clone()
