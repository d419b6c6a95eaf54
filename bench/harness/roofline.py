"""A roofline over what a step dispatches: kernels, bytes and seconds of every operator on one chip.

A step runs on the `meta` device, where nothing is computed: `Counter` sees each operator with its
shapes, and `cost` says what it takes on `H100`. Bytes are those that must cross the memory bus once
(reads and writes of distinct elements; what only part of a tensor is read from counts that part).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fula_fast.kernels.lane_conv.arguments import LaneConvArguments
from fula_fast.kernels.lane_norm.arguments import LaneNormArguments


@dataclass(frozen=True)
class Chip:
    """What a GPU does: `memory` and `cache` in bytes/s, `products` in FLOP/s of a matrix product,
    `launch` in seconds a kernel within a graph.

    `convolutions`: FLOP/s by the smaller of a convolution's channel counts, from that many channels
    on; `strided`: its share forward and backward where the stride is not one; `fused`: the share of
    those rates that `lane_conv` reaches. `stitch`: FLOP/s of the stitch kernels, forward and
    backward.
    """

    name: str
    memory: float
    cache: float
    products: float
    launch: float
    convolutions: Mapping[int, float]
    strided: tuple[float, float]
    fused: float
    stitch: tuple[float, float]


H100 = Chip(
    "H100 SXM, bf16",
    memory=2.6e12,
    cache=5.5e12,
    products=790e12,
    launch=1.2e-6,
    convolutions={0: 12e12, 64: 410e12, 128: 715e12, 256: 745e12, 512: 760e12},
    strided=(0.98, 0.66),
    fused=0.85,
    stitch=(400e12, 300e12),
)
"""Measured by `bench.suites.ceilings` on an H100 80GB HBM3 (a copy: 3.03e12 bytes/s; `memory` is
what the step's own kernels reach), but for `cache`, `stitch` and `fused`, which are assumed."""

FREE = frozenset(
    "view _unsafe_view expand slice select permute transpose t detach alias unsqueeze squeeze "
    "unbind split split_with_sizes as_strided narrow empty empty_like new_empty empty_strided "
    "new_empty_strided _reshape_alias is_same_size reshape unflatten movedim chunk lift_fresh "
    "sym_size sym_numel sym_stride".split()
)
"""Operators without a kernel."""
LARGE = 3e6
"""Bytes from which an operator is bound by memory rather than by its launch."""


@dataclass(frozen=True)
class Operator:
    """A dispatched operator: its name, tensors read and written, and FLOPs (convolution, matrix
    product)."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flops: float
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class KernelCost:
    """Of one operator on a chip."""

    part: str
    kernels: int
    bytes: float
    flops: float
    seconds: float


def size(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a tensor of any shape: an expanded axis counts once."""
    count = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else min(length, 1)
    return count


class Counter(TorchDispatchMode):
    """Gathers the `operators` with a kernel that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._inside = False

    def fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` counted as one operator, as if it were compiled; it returns nothing."""

        def call(*args: Any) -> None:
            given = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
            versions = [t._version for t in given]
            self._inside = True
            fn(*args)
            self._inside = False
            written = [t for t, v in zip(given, versions, strict=True) if t._version != v]
            self.operators.append(Operator("fused", tuple(given), tuple(written), 0, args))

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            out = _channels_last(out)
        elif name == "convolution_backward":
            out = (_channels_last(out[0]), *out[1:])
        if self._inside:
            return out
        if func.namespace != "prim" and name not in FREE:
            formula = flop_registry.get(func.overloadpacket)
            flops = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
            if name.startswith("lane_conv"):
                flops = _convolved(args)
            full = name if func.namespace == "aten" else f"{func.namespace}::{name}"
            written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            read = _read(func, args, kwargs or {})
            self.operators.append(Operator(full, tuple(read), tuple(written), flops, args))
        return out


def _convolved(arguments: Sequence) -> float:
    """FLOPs of `lane_conv`, and of its gradient."""
    a = LaneConvArguments(*arguments[: len(LaneConvArguments._fields)])
    count, _, height, width = a.output
    return 2.0 * count * height * width * a.weight.numel()


def _channels_last(x: Tensor) -> Tensor:
    """A convolution's output as a GPU lays it out for channels-last inputs; `meta` does not."""
    return torch.empty_like(x, memory_format=torch.channels_last)


def _read(func, args: Sequence, kwargs: Mapping) -> list[Tensor]:
    """The tensors that an operator reads: all but those that it only overwrites."""
    blind = func.overloadpacket.__name__ in ("copy_", "zero_", "fill_", "index_copy_", "index_put_")
    found = []
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if not (blind and argument.alias_info and argument.alias_info.is_write):
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


def cost(op: Operator, chip: Chip = H100) -> KernelCost:
    """What an operator takes."""
    rule = _RULES.get(op.name, _elementwise)
    part, kernels, moved, busy = rule(op, chip)
    seconds = max(busy, moved / chip.memory) + kernels * chip.launch
    return KernelCost(part, kernels, moved, op.flops, seconds)


Rule = Callable[[Operator, Chip], tuple[str, int, float, float]]
"""Operator -> (part of the step, kernels, bytes, seconds that it takes however fast memory is)."""


def _total(tensors: Sequence[Tensor]) -> float:
    return float(sum(size(t) for t in tensors))


def _elementwise(op: Operator, chip: Chip):
    moved = _total(op.inputs) + _total(op.outputs)
    if op.name in ("add", "add_") and moved > 1e8:
        return "large sums", 1, moved, 0.0
    return ("elementwise, large" if moved > LARGE else "one-block operators"), 1, moved, 0.0


def _fused(op: Operator, chip: Chip):
    """A compiled chain; its numbers without a size of their own take another kernel."""
    return "update", 2, _total(op.inputs) + _total(op.outputs), 0.0


def _part_read(op: Operator, chip: Chip):
    """Reads no more of its source than it gives."""
    moved = 2 * _total(op.outputs)
    return ("copies" if moved > LARGE else "one-block operators"), 1, moved, 0.0


def _part_written(op: Operator, chip: Chip):
    """Writes no more into its target than it reads."""
    moved = 2 * max(map(size, op.inputs), default=0)
    return ("copies" if moved > LARGE else "one-block operators"), 1, moved, 0.0


def _copy(op: Operator, chip: Chip):
    moved = _total(op.inputs) + _total(op.outputs)
    return ("copies" if moved > LARGE else "one-block operators"), 1, moved, 0.0


def _slice_backward(op: Operator, chip: Chip):
    """Zeros, and a copy into them."""
    moved = _total(op.outputs)
    return ("slice backward" if moved > LARGE else "one-block operators"), 2, moved, 0.0


def _convolution(op: Operator, chip: Chip):
    x, weight = op.inputs[:2]
    busy = op.flops / _rate(weight, x.shape[2] != op.outputs[0].shape[2], 0, chip)
    return "convolutions", 1, _total(op.inputs) + _total(op.outputs), busy


def _convolution_backward(op: Operator, chip: Chip):
    """Of the input alone: the weights are frozen."""
    dy, x, weight = op.inputs[:3]
    busy = op.flops / _rate(weight, dy.shape[2] != x.shape[2], 1, chip)
    return "convolutions", 1, float(size(dy) + size(x)), busy


def _rate(weight: Tensor, strided: bool, way: int, chip: Chip) -> float:
    channels = min(weight.shape[0], max(weight.shape[1], 16))
    rate = chip.convolutions[max(c for c in chip.convolutions if c <= channels)]
    return rate * (chip.strided[way] if strided else 1.0)


def _lane_conv(op: Operator, chip: Chip):
    """x and y once, and each tile's statistics; they are merged by a launch of their own."""
    a = LaneConvArguments(*op.arguments[: len(LaneConvArguments._fields)])
    y = op.outputs[0]
    moved = size(a.x) + size(a.weight) + size(y) + _TILE_SUMS * size(y)
    return "convolutions", 2, moved, op.flops / _fused_rate(a, y, 0, chip)


def _lane_conv_backward(op: Operator, chip: Chip):
    """dy, and y where its statistics have a gradient; dx, x where it was normalised, and what comes
    from another branch."""
    count = len(LaneConvArguments._fields)
    a, incoming = LaneConvArguments(*op.arguments[:count]), op.arguments[count:-1]
    dy, dmean, _, _, _, beside, _ = incoming
    dx = size(op.outputs[0])  # as large as x, of which the shape alone is kept where none reads it
    before = a.mean is not None
    maps = 1 + before + (beside is not None)
    moved = size(dy) * (1 + (dmean is not None)) + size(a.weight) + dx * maps
    moved += _TILE_SUMS * dx * before
    return "convolutions", 1 + before, moved, op.flops / _fused_rate(a, dy, 1, chip)


_TILE_SUMS = 2 * 2 * 4 / (128 * 2)
"""Two sums, float32, a channel of a tile of 128 rows of bfloat16, written and read."""


def _fused_rate(a: LaneConvArguments, y: Tensor, way: int, chip: Chip) -> float:
    """Of a kernel of our own; the library's slow path forward through strided 1x1 is not its."""
    return chip.fused * _rate(a.weight, a.x.shape[2] != y.shape[2], way, chip)


def _lane_norm(op: Operator, chip: Chip):
    """x twice (statistics, normalise), or once with given statistics; the merge and the distances'
    sums have a launch each."""
    a = LaneNormArguments(*op.arguments[:-1])
    maps = 2 + a.training + (a.residual is not None)
    return "lane_norm", 1 + 2 * a.training + (a.target is not None), float(maps * size(a.x)), 0.0


def _lane_norm_backward(op: Operator, chip: Chip):
    """dy and x, both twice in training, and dx; with a residual it and d, that twice as well."""
    a = LaneNormArguments(*op.arguments[: len(LaneNormArguments._fields)])
    maps = 3 + 2 * a.training + (2 if a.residual is not None else 0)
    sums = a.training or op.outputs[2].numel() > 0
    return "lane_norm", 1 + 2 * sums, float(maps * size(a.x)), 0.0


def _lane_norm_joined(op: Operator, chip: Chip):
    """x, the residual and y once; the distances' sums have a launch."""
    a = LaneNormArguments(*op.arguments[: len(LaneNormArguments._fields)])
    maps = 2 + (a.residual is not None)
    return "lane_norm", 1 + (a.target is not None), float(maps * size(a.x)), 0.0


def _lane_norm_joined_backward(op: Operator, chip: Chip):
    """dy, x and the residual, and d, once each; the sums have a launch."""
    a = LaneNormArguments(*op.arguments[: len(LaneNormArguments._fields)])
    maps = 3 + (a.residual is not None)
    return "lane_norm", 2, float(maps * size(a.x)), 0.0


def _stitch(op: Operator, chip: Chip):
    x, weight, _, _, target, *_ = op.arguments
    lanes, c2, _ = weight.shape
    shared = _front(x) + (0 if target is None else _front(target))
    work = lanes * (_front(x) / x.element_size()) * c2 * 2 / chip.stitch[0]
    moved = _total(op.outputs) + _total([x]) + (0 if target is None else size(target))
    written = _total(op.outputs) / chip.memory
    return (
        "stitches",
        2 + (target is not None),
        moved,
        max(lanes * shared / chip.cache + written, work),
    )


def _front(x: Tensor) -> float:
    """Bytes of one front of (S, B, ...)."""
    return size(x) / max(x.shape[0], 1)


def _stitch_backward(op: Operator, chip: Chip):
    """Up to 128 channels one kernel makes dW; beyond, e is written and read. Weights cast, and the
    splits of dW and db added up."""
    x, weight, _, _, target, _, _, dy, *_ = op.arguments
    lanes, c2, c1 = weight.shape
    shared = _front(x) + (0 if target is None else _front(target))
    fused = c1 <= 128 and target is not None
    given = 0.0 if dy is None else float(size(dy))
    residual = 0.0 if target is None or fused else 2 * lanes * _front(x) * c2 / c1
    moved = given + residual
    work = lanes * (_front(x) / x.element_size()) * c2 * 4 / chip.stitch[1]
    cached = lanes * shared / chip.cache * (1 if fused else 2)
    return "stitches", 4 + bool(residual), moved, max(cached + moved / chip.memory, work)


def _resize(op: Operator, chip: Chip):
    """Forward one kernel; backward two products."""
    return "resizes", 1, _total(op.inputs) + _total(op.outputs), 0.0


def _hint_terms(op: Operator, chip: Chip):
    return "hint_terms", 2, _total(op.inputs) + _total(op.outputs), 0.0


_RULES: dict[str, Rule] = {
    "fused": _fused,
    "index": _part_read,
    "index_select": _part_read,
    "gather": _part_read,
    "index_copy_": _part_written,
    "index_put_": _part_written,
    "index_add_": _part_written,
    "cat": _copy,
    "copy_": _copy,
    "clone": _copy,
    "slice_backward": _slice_backward,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "upsample_bilinear2d": _resize,
    "bmm": _resize,
    "fula::lane_conv": _lane_conv,
    "fula::lane_conv_backward": _lane_conv_backward,
    "fula::lane_norm": _lane_norm,
    "fula::lane_norm_backward": _lane_norm_backward,
    "fula::lane_norm_joined": _lane_norm_joined,
    "fula::lane_norm_joined_backward": _lane_norm_joined_backward,
    "fula::stitch_hint": _stitch,
    "fula::stitch_hint_backward": _stitch_backward,
    "fula::hint_terms": _hint_terms,
    "fula::hint_terms_backward": _hint_terms,
}


@dataclass(frozen=True)
class Total:
    """The costs of a step."""

    dispatches: int
    kernels: int
    bytes: float
    flops: float
    seconds: float

    def share(self, chip: Chip = H100) -> float:
        """Of the rate of a matrix product."""
        return self.flops / self.seconds / chip.products if self.seconds else 0.0


def total(costs: Sequence[KernelCost]) -> Total:
    """Their sum."""
    sums = (sum(getattr(c, n) for c in costs) for n in ("kernels", "bytes", "flops", "seconds"))
    return Total(len(costs), *sums)


def by_part(costs: Sequence[KernelCost]) -> dict[str, Total]:
    """Sums by part of the step, the longest first."""
    parts = {c.part: total([d for d in costs if d.part == c.part]) for c in costs}
    return dict(sorted(parts.items(), key=lambda item: -item[1].seconds))
