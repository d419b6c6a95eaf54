"""Run a fixed sequence of tensor operations: eagerly, or captured once as a CUDA graph.

`Replay` serves the PGD loop and the APGD iteration alike. What runs is reported, never guessed: a
refused capture warns with its reason and leaves `mode = "eager"`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import FulaError, nearest

MODES = ("auto", "eager", "compiled", "captured")
_WARM_UP = 3
_MOST_SHAPES = 64


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` through torch.compile, for fixed shapes, without CUDA graphs of its own.

    Dynamo gives up on a function after eight shapes and goes on in eager mode with only a log line:
    the limit is raised, and reaching it is an error.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_SHAPES)
    config.fail_on_recompile_limit_hit = True
    return torch.compile(fn, dynamic=False)


def check_mode(mode: str) -> None:
    """Raise `FulaError` unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise FulaError(f"unknown mode '{mode}'{nearest(mode, MODES)}")


class Replay:
    """`fn(*tensors)` with one captured graph per set of input shapes.

    fn: reads its arguments (and whatever fixed tensors it closes over) and returns a tensor or
    None; no host synchronisation, no host random numbers. `state()`: tensors that fn changes in
    place; they are put back after the warm-up. captured: capture calls whose inputs are all on a
    CUDA device (fn without arguments: whose fixed tensors are).

    `mode` says what the last call ran ("eager" or "captured"), `replays` how often a graph was
    replayed.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor | None],
        *,
        captured: bool,
        state: Callable[[], Sequence[Tensor]] = tuple,
    ) -> None:
        self._fn = fn
        self._captured = captured
        self._state = state
        self._graphs: dict[Any, _Graph | None] = {}
        self.mode = "eager"
        self.replays = 0

    def __call__(self, *tensors: Tensor) -> Tensor | None:
        wanted = self._captured and all(t.is_cuda for t in tensors)
        graph = self._graph(tensors) if wanted else None
        if graph is None:
            self.mode = "eager"
            return self._fn(*tensors)
        self.mode = "captured"
        self.replays += 1
        return graph.replay(tensors)

    def _graph(self, tensors: Sequence[Tensor]) -> _Graph | None:
        key = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
        if key not in self._graphs:
            self._graphs[key] = self._capture(tensors)
        return self._graphs[key]

    def _capture(self, tensors: Sequence[Tensor]) -> _Graph | None:
        static = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
        saved = [t.clone() for t in self._state()]
        self._warm_up(static)
        for tensor, value in zip(self._state(), saved, strict=True):
            tensor.copy_(value)
        reason = ""
        try:
            return _Graph(self._fn, static)
        except torch.OutOfMemoryError:
            raise  # a subclass of RuntimeError, but no reason to go on eagerly
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        warnings.warn(f"CUDA graph capture refused, running eagerly: {reason}", stacklevel=4)
        return None

    def _warm_up(self, static: Sequence[Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._fn(*static)
        torch.cuda.current_stream().wait_stream(side)


class _Graph:
    """One captured call: static inputs, the graph, the static output."""

    def __init__(self, fn: Callable[..., Tensor | None], static: Sequence[Tensor]) -> None:
        self._inputs = static
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the data pipeline's threads call CUDA meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = fn(*static)

    def replay(self, tensors: Sequence[Tensor]) -> Tensor | None:
        for static, given in zip(self._inputs, tensors, strict=True):
            static.copy_(given)
        self._graph.replay()
        return None if self._output is None else self._output.clone()
