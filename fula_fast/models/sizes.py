"""Tracing with sizes as numbers: arithmetic on shapes ties no stage of a model to another.

A model has one input shape, so every size but the batch's is fixed and becomes a number, which may
also decide a condition or count a loop. The batch's size is asked of whatever tensor is at hand; a
condition on it takes the way of a batch of some size, and what it decides is compared afterwards.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import FulaError

_BATCHES = (1, 2, 3)
_ANYWHERE = ("device", "dtype")
_NEW = ("new_zeros", "new_ones", "new_full")
_LIKE = dict(zip((torch.zeros_like, torch.ones_like, torch.full_like), _NEW, strict=True))
_FACTORIES = (torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye)
_USUAL_BATCH, _LARGEST_BATCH, _ROUNDING = 2, 4096, 1e-4
Shapes = tuple[tuple[int, ...], ...]


class Tracer(fx.Tracer):
    """Goes into a module only if a site lies inside it."""

    def __init__(self, sites: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._sites = sites

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the tracer stays outside; see `fx.Tracer`."""
        return not any(site.startswith(f"{module_qualified_name}.") for site in self._sites)


class SizedTracer(Tracer):
    """A tracer that knows the shapes of the nodes in `shapes`: by name, one per batch size.

    Conditions on the batch's size go the way of a batch of `batch` images; `turns` are the smallest
    batches that would have gone another way, one per condition that has two ways.
    """

    def __init__(self, sites: Sequence[str], shapes: Mapping[str, Shapes], batch: int) -> None:
        super().__init__(sites, autowrap_functions=_FACTORIES)
        self._autowrap_search.append(torch)  # also where they are called as torch.zeros
        self._shapes = shapes
        self._at = batch
        self.turns: set[int] = set()
        self._batch: fx.Proxy | None = None

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """See `fx.Tracer`."""
        graph = super().trace(root, concrete_args)
        for node in graph.nodes:  # else the code made of it wraps these functions for good
            node.meta.pop("is_wrapped", None)
        return graph

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stands for a value while tracing; see `fx.Tracer`."""
        return _Sized(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: tuple, kwargs: dict[str, Any], *more: Any, **named: Any
    ) -> fx.Proxy:
        """Records a call; see `fx.Tracer`. Of `torch.zeros_like(x)` only the shape of x matters."""
        if kind == "call_function" and target in _LIKE and not {*kwargs} - {*_ANYWHERE}:
            like, *rest = args
            kind, target, args = "call_method", _LIKE[target], (like, like.shape, *rest)
        return super().create_proxy(kind, target, args, kwargs, *more, **named)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition that is a number's, or the batch size's; see `fx.Tracer`."""
        image = next(iter(self.graph.nodes))
        if (same := self._of_type(obj.node, image)) is not None:
            return same
        answers = _by_batch(obj.node, image)
        if answers is None:
            return super().to_bool(obj)
        taken = bool(answers(self._at))
        batches = range(1, _LARGEST_BATCH + 1)
        if (turn := next((b for b in batches if bool(answers(b)) != taken), None)) is not None:
            self.turns.add(turn)
        return taken

    def _of_type(self, node: fx.Node, image: fx.Node) -> bool | None:
        """The answer where types are compared, the image's or a weight's: an image has that of the
        first weight. None for other conditions."""
        if node.target not in (operator.eq, operator.ne) or len(node.args) != 2:
            return None
        compare: Any = node.target
        types = [self._type(asked, image) for asked in node.args]
        return None if None in types else compare(*types)

    def _type(self, asked: Any, image: fx.Node) -> torch.dtype | None:
        if not isinstance(asked, fx.Node):
            return asked if isinstance(asked, torch.dtype) else None
        if asked.target is not getattr or asked.args[1] != "dtype":
            return None
        tensor: Any = asked.args[0]
        if tensor is image:
            return next(self.root.parameters(), torch.zeros(())).dtype
        weight = dict(self.root.named_parameters()).get(tensor.target)
        return None if weight is None else weight.dtype

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
        return reduce(operator.mul, self, 1)

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


def sized_trace(
    root: nn.Module, sites: Sequence[str], input_shape: Sequence[int], trace: Callable
) -> fx.Graph:
    """A graph with sizes as numbers, by `trace` of a tracer; the same for all batches.

    Raises `FulaError` where the model does not run on `input_shape`, and where its conditions on
    the batch's size change what it computes.
    """
    check_runs(root, root, (_USUAL_BATCH, *input_shape))
    ways: dict[int, fx.Graph] = {}
    ahead = [_USUAL_BATCH]
    while ahead:  # another way may have conditions of its own
        batch = ahead.pop()
        ways[batch], turns = _traced_at(root, sites, input_shape, trace, batch)
        ahead += turns - {*ways, *ahead}
    if len(ways) == 1:
        return ways[_USUAL_BATCH]
    differs = {
        batch: first_difference(root, fx.GraphModule(root, graph), input_shape, sorted(ways))
        for batch, graph in ways.items()
    }
    batch = next((batch for batch in ways if differs[batch] is None), None)
    if batch is None:
        raise FulaError(
            f"{type(root).__name__} gives an image of a batch of {differs[_USUAL_BATCH]} other "
            f"logits than one of a batch of {_USUAL_BATCH}: its forward has a condition on the "
            "batch's size; a stitch needs a model that sees each image by itself"
        )
    return ways[batch]


def _traced_at(
    root: nn.Module, sites: Sequence[str], input_shape: Sequence[int], trace: Callable, batch: int
) -> tuple[fx.Graph, set[int]]:
    """Sizes are found by running what is traced so far, which cannot be done while tracing."""
    shapes: dict[str, Shapes] = {}
    while True:
        tracer = SizedTracer(sites, shapes, batch)
        try:
            with _lengths_of_proxies():
                return trace(root, sites, tracer), tracer.turns
        except UnknownSizeError:
            shapes |= shapes_of(root, tracer.graph, input_shape)


@contextmanager
def _lengths_of_proxies() -> Iterator[None]:
    """`len` of a traced tensor is its first size, which Python takes from no `__len__`: that must
    give a number."""
    plain = builtins.len
    builtins.len = lambda thing: thing.shape[0] if isinstance(thing, _Sized) else plain(thing)
    try:
        yield
    finally:
        builtins.len = plain


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


@torch.no_grad()
def first_difference(
    module: nn.Module, other: Callable[[Tensor], Any], shape: Sequence[int], sizes: Sequence[int]
) -> int | None:
    """The first of these sizes B whose batches (B, *shape) of random images get other logits from
    `other` than from `module`, beyond rounding. None where there is none, and where `module` draws
    numbers."""
    weight = next(module.parameters(), torch.zeros(()))
    draw = torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.rand(size, *shape, generator=draw).to(weight)
        with running(type(module).__name__, (size, *shape), f" (a batch of {size})"):
            wanted, again = (module(images.clone()) for _ in range(2))
        if _alike(wanted, again) and not _alike(wanted, _answer(other, images.clone())):
            return size
    return None


def _answer(model: Callable[[Tensor], Any], images: Tensor) -> Any:
    try:
        return model(images)
    except (RuntimeError, ValueError, IndexError):  # a way that is not for batches of this size
        return None


def _alike(wanted: Any, found: Any) -> bool:
    """Equal but for rounding; what is no tensor is refused later."""
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return type(wanted) is type(found)
    if wanted.shape != found.shape:
        return False
    scale = wanted.abs().nan_to_num().max().item() if wanted.numel() else 0.0
    return torch.allclose(wanted, found, rtol=0, atol=_ROUNDING * scale, equal_nan=True)


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


def asked_anywhere(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that any tensor of the pass answers in the image's place: its batch's size, where
    it lies, its type; and what depends on nothing but such answers and weights."""
    image = next(iter(graph.nodes))
    found: set[fx.Node] = set()
    for node in graph.nodes:
        given = {n for n in node.all_input_nodes if n.op != "get_attr" and n not in found}
        if not given and _is_plain(node) or given == {image} and _asks(node, image):
            found.add(node)
    return found


def _asks(node: fx.Node, image: fx.Node) -> bool:
    """Whether `node` asks the image for what any tensor of the pass knows."""
    if not node.args or node.args[0] is not image:
        return False
    if node.op == "call_method":
        return node.args == (image, 0) if node.target == "size" else node.target in _NEW
    return node.target is getattr and node.args[1] in _ANYWHERE


def _is_plain(node: fx.Node) -> bool:
    """Whether a call gives the same whenever it is made: it draws no numbers, changes nothing."""
    name = str(getattr(node.target, "__name__", node.target))
    drawing = any(part in name for part in _DRAWING)
    return node.op in ("call_function", "call_method") and not (drawing or name.endswith("_"))


_DRAWING = ("rand", "dropout", "bernoulli", "normal", "multinomial", "poisson")


def _is_operator(target: Any) -> bool:
    return getattr(operator, getattr(target, "__name__", ""), None) is target


def _by_batch(node: fx.Node, image: fx.Node) -> Callable[[int], Any] | None:
    """A number that follows from the batch's size alone, as a function of it; None for others."""
    if node.op == "call_method" and node.target == "size" and node.args == (image, 0):
        return lambda batch: batch
    if node.op != "call_function" or not _is_operator(node.target) or node.kwargs:
        return None
    parts = {n: _by_batch(n, image) for n in node.all_input_nodes}
    if not parts or None in parts.values():
        return None
    return lambda batch: node.target(*fx.map_arg(node.args, lambda n: parts[n](batch)))
