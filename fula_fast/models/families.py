"""The project's own architectures, as layouts: ResNet-18/34/50, VGG-16/19, ViT-Tiny/Base.

Layer names, shapes and order are torchvision's (ViT: timm's), so its state dicts load. Pure data,
no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from ..errors import FulaError, nearest
from .layout import (
    Attention,
    AveragePool,
    Block,
    ClassToken,
    Conv,
    Dropout,
    Flatten,
    Layer,
    Layout,
    Linear,
    MaxPool,
    Norm,
    Relu,
    Shape,
    Stage,
    Tokens,
    before_relu,
    walk,
)
from .libraries import LIBRARIES, library_of

LEAST_CLASSES = 2
HOOKS = ("post_relu", "pre_relu")
STEMS = ("lowres", "stock")


class _ResNet(NamedTuple):
    depths: tuple[int, ...]
    bottleneck: bool


RESNETS = {
    "resnet18": _ResNet((2, 2, 2, 2), False),
    "resnet34": _ResNet((3, 4, 6, 3), False),
    "resnet50": _ResNet((3, 4, 6, 3), True),
}


class _VGG(NamedTuple):
    depths: tuple[int, ...]
    sites: tuple[int, ...]


VGGS = {
    "vgg16": _VGG((2, 2, 3, 3, 3), (1, 2, 4, 7, 10, 13)),
    "vgg19": _VGG((2, 2, 4, 4, 4), (1, 4, 10, 13, 16)),
}
"""Convolutions per resolution, and the convolutions (from 1) behind whose ReLU a site lies."""


class _ViT(NamedTuple):
    patch: int
    dim: int
    depth: int
    heads: int


VITS = {"vit_tiny": _ViT(4, 192, 12, 3), "vit_base": _ViT(16, 768, 12, 12)}

DEFAULTS: dict[str, dict[str, Any]] = {
    **{name: {"stem": "lowres", "width": 64, "residuals": True} for name in RESNETS},
    **{name: {"stem": "lowres", "width": 64, "batch_norm": True} for name in VGGS},
    **{name: {"every": 1} for name in VITS},
}


def check_name(name: str) -> None:
    """Raise `FulaError` unless `name` is one of ours, or `LIBRARY:NAME` as `timm:NAME`."""
    library, colon, rest = name.partition(":")
    if name not in DEFAULTS and not (colon and rest and library in LIBRARIES):
        known = [*DEFAULTS, *(f"{library}:NAME" for library in LIBRARIES)]
        raise FulaError(f"unknown model '{name}'{nearest(name, known)}")


_SAID_ELSEWHERE = {
    "name": "model decides",
    "num_classes": "the classes of the data decide",
    "input_shape": "size and channels of the data decide",
    "hook": "hook in [protocol], or --hook, decides",
}


def free_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, if none of them is what the rest of a request decides; else `FulaError`."""
    for key, place in _SAID_ELSEWHERE.items():
        if key in options:
            raise FulaError(f"{key} = {options[key]!r} is no option of a model; {place} it")
    return dict(options)


def resolved_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of `name`, defaults filled in; a bad name or value raises `FulaError`."""
    defaults = DEFAULTS[name]
    for key, value in options.items():
        if key not in defaults:
            raise FulaError(f"model '{name}' has no option '{key}'{nearest(key, defaults)}")
        if key == "stem" and value not in STEMS:
            raise FulaError(f"stem '{value}' of '{name}' is unknown{nearest(str(value), STEMS)}")
        if key in ("width", "every") and (type(value) is not int or value < 1):
            raise FulaError(f"{key} = {value!r} of '{name}' must be a whole number of at least 1")
        if key in ("residuals", "batch_norm") and type(value) is not bool:
            raise FulaError(f"{key} = {value!r} of '{name}' must be true or false")
    return {**defaults, **options}


def check_request(
    name: str, num_classes: int, input_shape: Sequence[int], hook: str
) -> tuple[int, ...]:
    """Validate what every model takes; returns the input shape as a tuple.

    Raises `FulaError` for an unknown hook, fewer than 2 classes, or another form of shape. For a
    library's models 0 classes are its own number.
    """
    if hook not in HOOKS:
        raise FulaError(f"hook '{hook}' is unknown{nearest(hook, HOOKS)}")
    as_library = num_classes == 0 and library_of(name) is not None
    if type(num_classes) is not int or num_classes < LEAST_CLASSES and not as_library:
        raise FulaError(f"model '{name}' needs num_classes of at least 2, not {num_classes!r}")
    shape = tuple(input_shape)
    if len(shape) != 3 or any(type(n) is not int or n < 1 for n in shape):
        raise FulaError(
            f"input_shape {list(shape)} of model '{name}' must be three positive whole numbers: "
            "channels, height, width"
        )
    return shape


def built_classes(name: str, classes: int) -> int:
    """What a network is built for where the data have so many classes. Of data without labels it is
    a library's own number (0), and of our own networks the least: nothing is asked of them."""
    return classes or (0 if library_of(name) else LEAST_CLASSES)


def layout_of(
    name: str, *, num_classes: int, input_shape: Shape, hook: str = "post_relu", **options: Any
) -> Layout:
    """Layout of one of our own architectures (a key of `DEFAULTS`).

    `stem`: `lowres` (ResNet: 3x3 stride-1 stem without max-pool, nine sites; VGG: one linear layer
    behind a global average) or `stock` (torchvision's model; ResNet: six sites). `width`: channels
    of the first layer, 64 in the published models. `residuals = False` removes skip connections
    and their convolutions. `batch_norm`: the VGG variant with batch norm. `every`: a ViT has a site
    behind each block, or behind each second one (2), counted so that the last block has one.
    Raises `FulaError` for a bad option and for images too small for the model.
    """
    options = resolved_options(name, options)
    if name in RESNETS:
        layout = _resnet(RESNETS[name], num_classes, input_shape[0], **options)
    elif name in VGGS:
        layout = _vgg(VGGS[name], num_classes, input_shape[0], **options)
    else:
        layout = _vit(name, num_classes, input_shape, **options)
    walk(chain(*(stage.layers for stage in layout.stages), layout.head), input_shape)
    return before_relu(layout) if hook == "pre_relu" else layout


def _resnet(
    kind: _ResNet, num_classes: int, channels: int, *, stem: str, width: int, residuals: bool
) -> Layout:
    lowres = stem == "lowres"
    blocks = list(_blocks(kind, width, residuals))
    first = _lowres_stem(channels, width) if lowres else _stock_stem(channels, width)
    pool: tuple[Layer, ...] = (AveragePool("avgpool", 1), Flatten())
    features = blocks[-1][-1].convs[-1].outputs
    head = (Linear("fc", features, num_classes),)
    if lowres:
        return Layout((first, *_first_and_last(blocks)), pool + head)
    layers = (Stage(f"layer{i}", tuple(layer)) for i, layer in enumerate(blocks, 1))
    return Layout((first, *layers, Stage("avgpool", pool)), head)


def _lowres_stem(channels: int, width: int) -> Stage:
    return Stage("stem", (Conv("conv1", channels, width, 3, 1, 1), Norm("bn1", width, relu=True)))


def _stock_stem(channels: int, width: int) -> Stage:
    layers = (
        Conv("conv1", channels, width, 7, 2, 3),
        Norm("bn1", width, relu=True),
        MaxPool("maxpool", 3, 2, 1),
    )
    return Stage("maxpool", layers)


def _first_and_last(layers: list[list[Block]]) -> Iterator[Stage]:
    """Two sites a layer: behind its first block, and behind its last."""
    for blocks in layers:
        yield Stage(blocks[0].name, (blocks[0],))
        yield Stage(blocks[-1].name, tuple(blocks[1:]))


def _blocks(kind: _ResNet, width: int, residual: bool) -> Iterator[list[Block]]:
    inputs = width
    for level, depth in enumerate(kind.depths):
        planes = width * 2**level
        outputs = planes * (4 if kind.bottleneck else 1)
        layer = []
        for index in range(depth):
            stride = 2 if level and not index else 1
            name = f"layer{level + 1}.{index}"
            convs = (_bottleneck if kind.bottleneck else _basic)(inputs, planes, stride)
            projected = residual and (stride > 1 or inputs != outputs)
            shortcut = Conv("downsample.0", inputs, outputs, 1, stride) if projected else None
            layer.append(Block(name, convs, shortcut, residual))
            inputs = outputs
        yield layer


def _basic(inputs: int, planes: int, stride: int) -> tuple[Conv, ...]:
    return (Conv("conv1", inputs, planes, 3, stride, 1), Conv("conv2", planes, planes, 3, 1, 1))


def _bottleneck(inputs: int, planes: int, stride: int) -> tuple[Conv, ...]:
    return (
        Conv("conv1", inputs, planes, 1),
        Conv("conv2", planes, planes, 3, stride, 1),
        Conv("conv3", planes, 4 * planes, 1),
    )


def _vgg(
    kind: _VGG, num_classes: int, channels: int, *, stem: str, width: int, batch_norm: bool
) -> Layout:
    stages: list[Stage] = []
    layers: list[Layer] = []
    convolutions = child = 0
    for level, depth in enumerate(kind.depths):
        outputs = width * min(2**level, 8)
        for _ in range(depth):
            layers += _conv_block(child, channels, outputs, batch_norm)
            channels, child, convolutions = outputs, child + 2 + batch_norm, convolutions + 1
            if convolutions in kind.sites:
                stages.append(Stage(f"features.{child - 1}", tuple(layers)))
                layers = []
        layers.append(MaxPool(f"features.{child}", 2, 2))
        child += 1
    classifier = _classifier if stem == "stock" else _small_classifier
    return Layout(tuple(stages), (*layers, *classifier(channels, num_classes)))


def _conv_block(child: int, inputs: int, outputs: int, batch_norm: bool) -> tuple[Layer, ...]:
    conv = Conv(f"features.{child}", inputs, outputs, 3, 1, 1, bias=True)
    if batch_norm:
        return conv, Norm(f"features.{child + 1}", outputs, relu=True)
    return conv, Relu(f"features.{child + 1}")


def _small_classifier(channels: int, num_classes: int) -> tuple[Layer, ...]:
    return AveragePool("avgpool", 1), Flatten(), Linear("classifier", channels, num_classes)


def _classifier(channels: int, num_classes: int) -> tuple[Layer, ...]:
    return (
        AveragePool("avgpool", 7),
        Flatten(),
        Linear("classifier.0", channels * 49, 4096),
        Relu("classifier.1"),
        Dropout("classifier.2"),
        Linear("classifier.3", 4096, 4096),
        Relu("classifier.4"),
        Dropout("classifier.5"),
        Linear("classifier.6", 4096, num_classes),
    )


def _vit(name: str, num_classes: int, shape: Shape, *, every: int) -> Layout:
    kind = VITS[name]
    if shape[1] != shape[2] or shape[1] % kind.patch:
        raise FulaError(
            f"'{name}' needs square images of a multiple of {kind.patch} pixels, "
            f"not {shape[1]}x{shape[2]}; resize them"
        )
    tokens = (shape[1] // kind.patch) ** 2 + 1
    embedding = Conv("patch_embed.proj", shape[0], kind.dim, kind.patch, kind.patch, bias=True)
    stages: list[Stage] = []
    layers: list[Layer] = [embedding, Tokens("pos_embed", tokens, kind.dim)]
    for index in range(kind.depth):
        layers.append(Attention(f"blocks.{index}", kind.dim))
        if (kind.depth - 1 - index) % every == 0:
            stages.append(Stage(f"blocks.{index}", tuple(layers)))
            layers = []
    head = (ClassToken("norm", kind.dim), Linear("head", kind.dim, num_classes))
    return Layout(tuple(stages), head)
