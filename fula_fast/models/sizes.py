"""Tracing with sizes as numbers: arithmetic on shapes ties no stage of a model to another.

A model has one input shape, so every size but the batch's is fixed and becomes a number, which may
also decide a condition or count a loop. The batch's size is asked of whatever tensor is at hand.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import FulaError

_BATCHES = (1, 2, 3)
_ANYWHERE = ("device", "dtype")
Shapes = tuple[tuple[int, ...], ...]
Ask = Callable[[fx.Graph, fx.Node], fx.Node]
"""Adds to a graph the question to one of its tensors."""


class Tracer(fx.Tracer):
    """Goes into a module only if a site lies inside it."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self._sites = sites

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the tracer stays outside; see `fx.Tracer`."""
        return not any(site.startswith(f"{module_qualified_name}.") for site in self._sites)


class SizedTracer(Tracer):
    """A tracer that knows the shapes of the nodes in `shapes`: by name, one per batch size."""

    def __init__(self, sites: Sequence[str], shapes: Mapping[str, Shapes]) -> None:
        super().__init__(sites)
        self._shapes = shapes
        self._batch: fx.Proxy | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stands for a value while tracing; see `fx.Tracer`."""
        return _Sized(node, self)

    def sizes(self, node: fx.Node) -> tuple[Any, ...]:
        """Its shape: numbers, the batch's size, and what is left as it is.

        Raises `UnknownSizeError` for a node that has to be run first.
        """
        if node.name not in self._shapes:
            raise UnknownSizeError(node)
        found = zip(*self._shapes[node.name], strict=True)
        return _Shape(self._size(node, axis, sizes) for axis, sizes in enumerate(found))

    def _size(self, node: fx.Node, axis: int, sizes: tuple[int, ...]) -> Any:
        share, rest = divmod(sizes[0], _BATCHES[0])
        if len(set(sizes)) == 1:
            return sizes[0]
        if rest == 0 and all(size == share * n for size, n in zip(sizes, _BATCHES, strict=True)):
            return self._batch_size() if share == 1 else self._batch_size() * share
        return self.create_proxy("call_method", "size", (self.proxy(node), axis), {})

    def _batch_size(self) -> fx.Proxy:
        if self._batch is None:
            image = self.proxy(next(iter(self.graph.nodes)))
            self._batch = self.create_proxy("call_method", "size", (image, 0), {})
        return self._batch


class UnknownSizeError(Exception):
    """The shape of a node is asked for that has not been run."""


class _Shape(tuple):
    """As `torch.Size`, which takes no proxies."""

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Shape(found) if isinstance(index, slice) else found


class _Sized(fx.Proxy):
    """A proxy that answers for its shape as a tensor does."""

    @property
    def shape(self) -> Any:
        return self.tracer.sizes(self.node)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    ndimension = dim

    def numel(self) -> Any:
        return self.shape.numel()


@torch.no_grad()
def shapes_of(root: nn.Module, graph: fx.Graph, input_shape: Sequence[int]) -> dict[str, Shapes]:
    """The shapes of all tensors in a graph, which may be unfinished, for black batches.

    Raises `FulaError` where the model does not run on them.
    """
    runs = []
    for batch in _BATCHES:
        run = _Recorder(root, graph=graph)
        check_runs(run.run, root, (batch, *input_shape))
        runs.append(run.shapes)
    return {name: tuple(run[name] for run in runs) for name in runs[0]}


class _Recorder(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


@torch.no_grad()
def check_runs(run: Callable[[Tensor], Any], root: nn.Module, shape: Sequence[int]) -> None:
    """Raise `FulaError` where `run`, a pass of the model `root`, refuses black images (B, C, H, W)
    of that shape."""
    weight = next(root.parameters(), torch.zeros(()))
    with running(type(root).__name__, shape):
        run(weight.new_zeros(tuple(shape)))


@contextmanager
def running(label: str, shape: Sequence[int], place: str = "") -> Iterator[None]:
    """Tell what a model refuses of images (B, C, H, W), or whatever reaches a `place`, as one
    `FulaError`."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0][:160]
        raise FulaError(
            f"model '{label}' does not run on an input of shape {list(shape[1:])}: "
            f"{reason}{place}; check input_shape and the model's options"
        ) from error


def asked_anywhere(graph: fx.Graph) -> dict[fx.Node, Ask | None]:
    """The nodes that any tensor of the pass answers: its batch's size, where it lies, its type.

    With how to ask one; None for arithmetic on such answers, which is copied.
    """
    image = next(iter(graph.nodes))
    found: dict[fx.Node, Ask | None] = {}
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "size" and node.args == (image, 0):
            found[node] = lambda part, x: part.call_method("size", (x, 0))
        elif node.target is getattr and node.args[0] is image and node.args[1] in _ANYWHERE:
            found[node] = lambda part, x, name=node.args[1]: part.call_function(getattr, (x, name))
        elif _is_arithmetic(node) and all(n in found for n in node.all_input_nodes):
            found[node] = None
    return found


def _is_arithmetic(node: fx.Node) -> bool:
    plain = getattr(operator, getattr(node.target, "__name__", ""), None) is node.target
    return node.op == "call_function" and plain and bool(node.all_input_nodes)
