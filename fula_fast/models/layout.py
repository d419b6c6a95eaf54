"""Layers of a model as plain data: one description from which torch modules are built and from
which shapes, parameters and FLOPs are counted without torch.

A layer maps one tensor to one tensor. `walk(shape)` gives its output shape (no batch axis), its
parameters and its FLOPs per image (2 per multiply-add; norms, ReLUs and pools count nothing, as
in `torch.utils.flop_counter`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from ..errors import FulaError

Shape = tuple[int, ...]


class Cost(NamedTuple):
    """What a layer, or a run of layers, makes of one image."""

    shape: Shape
    parameters: int
    flops: int


def _shrunk(size: int, kernel: int, stride: int, padding: int, layer: str) -> int:
    if size + 2 * padding < kernel:
        raise FulaError(
            f"the image is too small: layer '{layer}' gets {size} pixels a side and needs "
            f"{kernel - 2 * padding}; use larger images or a model with less down-sampling"
        )
    return (size + 2 * padding - kernel) // stride + 1


@dataclass(frozen=True)
class Conv:
    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = False

    def walk(self, shape: Shape) -> Cost:
        height, width = (
            _shrunk(size, self.kernel, self.stride, self.padding, self.name) for size in shape[1:]
        )
        weights = self.inputs * self.outputs * self.kernel**2
        return Cost(
            (self.outputs, height, width),
            weights + self.outputs * self.bias,
            2 * weights * height * width,
        )


@dataclass(frozen=True)
class Norm:
    """Batch norm over channels, with a ReLU fused behind it when `relu`."""

    name: str
    channels: int
    relu: bool = False

    def walk(self, shape: Shape) -> Cost:
        return Cost(shape, 2 * self.channels, 0)


@dataclass(frozen=True)
class Relu:
    name: str = "relu"

    def walk(self, shape: Shape) -> Cost:
        return Cost(shape, 0, 0)


@dataclass(frozen=True)
class Dropout:
    name: str

    def walk(self, shape: Shape) -> Cost:
        return Cost(shape, 0, 0)


@dataclass(frozen=True)
class MaxPool:
    name: str
    kernel: int
    stride: int
    padding: int = 0

    def walk(self, shape: Shape) -> Cost:
        sizes = (
            _shrunk(size, self.kernel, self.stride, self.padding, self.name) for size in shape[1:]
        )
        return Cost((shape[0], *sizes), 0, 0)


@dataclass(frozen=True)
class AveragePool:
    """Adaptive average pool to `size` x `size`."""

    name: str
    size: int

    def walk(self, shape: Shape) -> Cost:
        return Cost((shape[0], self.size, self.size), 0, 0)


@dataclass(frozen=True)
class Flatten:
    name: str = "flatten"

    def walk(self, shape: Shape) -> Cost:
        return Cost((prod(shape),), 0, 0)


@dataclass(frozen=True)
class Linear:
    name: str
    inputs: int
    outputs: int

    def walk(self, shape: Shape) -> Cost:
        weights = self.inputs * self.outputs
        return Cost((*shape[:-1], self.outputs), weights + self.outputs, 2 * weights)


@dataclass(frozen=True)
class Block:
    """A residual block: `convs` with a norm behind each, ReLU between them and (`relu`) at the end.

    `shortcut` is the 1x1 convolution on the skip connection, if there is one; with
    `residual = False` there is no skip connection at all.
    """

    name: str
    convs: tuple[Conv, ...]
    shortcut: Conv | None = None
    residual: bool = True
    relu: bool = True

    def walk(self, shape: Shape) -> Cost:
        cost = walk((*self.convs, *(Norm(c.name, c.outputs) for c in self.convs)), shape)
        if self.shortcut is None:
            return cost
        skip = walk((self.shortcut, Norm("", self.shortcut.outputs)), shape)
        return Cost(cost.shape, cost.parameters + skip.parameters, cost.flops + skip.flops)


@dataclass(frozen=True)
class Tokens:
    """(D, h, w) patches to (N, D) tokens: a class token in front, position embeddings added."""

    name: str
    tokens: int
    dim: int

    def walk(self, shape: Shape) -> Cost:
        return Cost((self.tokens, self.dim), (self.tokens + 1) * self.dim, 0)


@dataclass(frozen=True)
class Attention:
    """A pre-norm transformer block over (N, D) with biases and an MLP of 4 D."""

    name: str
    dim: int

    def walk(self, shape: Shape) -> Cost:
        tokens, dim = shape
        weights = 12 * dim**2
        products = 2 * tokens * weights + 4 * tokens**2 * dim
        return Cost(shape, weights + 13 * dim, products)


@dataclass(frozen=True)
class ClassToken:
    """Layer norm, then the class token alone: (N, D) to (D,)."""

    name: str
    dim: int

    def walk(self, shape: Shape) -> Cost:
        return Cost((self.dim,), 2 * self.dim, 0)


Layer = (
    Conv
    | Norm
    | Relu
    | Dropout
    | MaxPool
    | AveragePool
    | Flatten
    | Linear
    | Block
    | Tokens
    | Attention
    | ClassToken
)


def walk(layers: Iterable[Layer], shape: Shape) -> Cost:
    """Total cost of `layers` run in order on one image of `shape`."""
    parameters = flops = 0
    for layer in layers:
        shape, own, work = layer.walk(shape)
        parameters, flops = parameters + own, flops + work
    return Cost(shape, parameters, flops)


@dataclass(frozen=True)
class Stage:
    """The layers between one site and the next; `name` is that of the site at its end."""

    name: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Layout:
    """A whole model: stages in order, then the head that gives the logits."""

    stages: tuple[Stage, ...]
    head: tuple[Layer, ...]


def before_relu(layout: Layout) -> Layout:
    """Move each site before its last ReLU; what follows then starts with that ReLU.

    A max-pool behind the ReLU stays in its stage, because the two commute exactly.
    """
    stages, pending = [], False
    for stage in layout.stages:
        layers, opened = _without_last_relu(stage.layers)
        stages.append(Stage(stage.name, (Relu(),) * pending + layers))
        pending = opened
    return Layout(tuple(stages), (Relu(),) * pending + layout.head)


def _without_last_relu(layers: tuple[Layer, ...]) -> tuple[tuple[Layer, ...], bool]:
    at = len(layers) - 1
    while isinstance(layers[at], MaxPool):
        at -= 1
    last = layers[at]
    if isinstance(last, Relu):
        return layers[:at] + layers[at + 1 :], True
    if getattr(last, "relu", False):
        return (*layers[:at], replace(last, relu=False), *layers[at + 1 :]), True
    return layers, False
