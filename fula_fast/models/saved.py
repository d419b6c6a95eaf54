"""Elements that layers save for their backward pass, counted without torch.

Frozen weights need no saved input, so a convolution saves nothing. Each batch norm saves its input
and each ReLU its output: a ResNet basic block saves four maps, five with a down-sampling shortcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .layout import Attention, Block, Layer, MaxPool, Norm, Relu, walk

Shape = tuple[int, ...]
_TOKEN_MAPS, _OTHER_MAPS = 20, 8


def saved_elements(layers: Sequence[Layer], shape: Shape) -> tuple[int, Shape]:
    """Elements per image that `layers` save for their backward pass, and their output shape."""
    saved = 0
    for layer in layers:
        after = walk((layer,), shape).shape
        saved += _layer_saves(layer, shape, after)
        shape = after
    return saved, shape


def _layer_saves(layer: Layer, before: Shape, after: Shape) -> int:
    match layer:
        case Norm(relu=relu):
            return prod(before) + relu * prod(after)
        case Relu():
            return prod(after)
        case MaxPool():  # its input, and int64 indices
            return prod(before) + 4 * prod(after)
        case Block():
            return _block_saves(layer, before)
        case Attention(dim=dim):  # also two attention maps per head of 64 features
            return usual_saved(before) + 2 * max(dim // 64, 1) * before[0] ** 2
    return 0


def _block_saves(block: Block, shape: Shape) -> int:
    """Input and output of each norm and ReLU; the shortcut's norm saves its input."""
    saved, current = 0, shape
    for conv in block.convs:
        current = walk((conv,), current).shape
        saved += 2 * prod(current)
    shortcut = prod(current) if block.shortcut else 0
    return saved + shortcut - (0 if block.relu else prod(current))


def usual_saved(shape: Shape) -> int:
    """Elements saved by a stage of unknown make that ends in `shape`: a transformer block, or a
    residual bottleneck."""
    return (_TOKEN_MAPS if len(shape) == 2 else _OTHER_MAPS) * prod(shape)
