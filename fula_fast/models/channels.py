"""Where a site's channels lie: what a stitch mixes, and what it must not.

A stitch reads maps as (B, C, H, W) and tokens as (B, N, C). Networks that keep maps as (B, H, W,
C), as Swin does, or sequences as (B, C, N), are moved into that form at the cut and back behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import FulaError

Channels = Literal["auto", "first", "last"]

TO_FORM = {4: (0, 3, 1, 2), 3: (0, 2, 1)}
"""By axes: the permutation that brings a site of the other layout into the form of a stitch."""

FROM_FORM = {4: (0, 2, 3, 1), 3: (0, 2, 1)}
"""The inverse."""

_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.BatchNorm1d, nn.BatchNorm2d,
    nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid,
    nn.Identity, nn.Dropout,
)  # fmt: skip
_USUAL = {4: "first", 3: "last"}


def moved_sites(
    label: str,
    parts: Sequence[nn.Module],
    sites: Sequence[str],
    input_shape: Sequence[int],
    channels: Channels = "auto",
) -> dict[int, int]:
    """The sites (from 0) whose channels do not lie where a stitch reads them, with their axes.

    `channels`: of all sites, or found out: by the layers that take or give a site's tensor, else by
    which axes grow with a larger image. Raises `FulaError` for maps where neither tells.
    """
    if channels not in ("auto", "first", "last"):
        raise FulaError(f"channels = '{channels}' is none of auto, first, last")
    shapes, layouts = _run(parts, input_shape)
    larger = None
    moved: dict[int, int] = {}
    for place, (site, shape) in enumerate(zip(sites, shapes, strict=True)):
        if len(shape) not in _USUAL:
            continue
        found = channels if channels != "auto" else layouts[place] or _by_shape(shape)
        if found is None:
            larger = larger or _larger_shapes(parts, input_shape)
            found = _by_growth(shape, larger[place] if place < len(larger) else None)
        if found is None and len(shape) == 4:
            raise FulaError(
                f"site '{site}' of model '{label}' gives maps of shape {tuple(shape[1:])}, and "
                "nothing tells where their channels lie; give channels = 'first' or 'last'"
            )
        if (found or _USUAL[len(shape)]) != _USUAL[len(shape)]:
            moved[place] = len(shape)
    return moved


class _Layouts:
    """Which layout each tensor of a run has, as the layers that meet it say."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []  # alive, so that no identity is used twice
        self._same: dict[int, int] = {}
        self._said: dict[int, set[str]] = {}

    def __call__(self, module: nn.Module, given: tuple, result: object) -> None:
        """A forward hook."""
        pair = [t for t in (*given[:1], result) if isinstance(t, Tensor)]
        self._kept += pair
        if isinstance(module, _ELEMENTWISE) and len(pair) == 2:
            self._same[id(pair[1])] = self._root(pair[0])
        elif layout := _layout_of(module):
            for tensor in pair:
                self._said.setdefault(self._root(tensor), set()).add(layout)

    def _root(self, tensor: Tensor) -> int:
        return self._same.get(id(tensor), id(tensor))

    def of(self, tensor: Tensor) -> str | None:
        """The one layout that was said, if one."""
        said = self._said.get(self._root(tensor), set())
        return next(iter(said)) if len(said) == 1 else None


def _layout_of(module: nn.Module) -> str | None:
    if isinstance(module, _FIRST) or type(module).__name__.endswith("2d"):
        return "first"  # also the layer norms over maps of torchvision and timm
    if type(module) is nn.LayerNorm:  # over several axes it says nothing
        return "last" if len(module.normalized_shape) == 1 else None
    return "last" if type(module) is nn.Linear else None


@torch.no_grad()
def _run(
    parts: Sequence[nn.Module], input_shape: Sequence[int]
) -> tuple[list[torch.Size], list[str | None]]:
    """Shape and layout of every site on a black image."""
    layouts, outputs = _Layouts(), []
    leaves = [m for part in parts for m in part.modules() if not any(True for _ in m.children())]
    hooks = [leaf.register_forward_hook(layouts) for leaf in leaves]
    x = _black(parts, input_shape)
    try:
        for part in parts:
            x = part(x)
            outputs.append(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [y.shape for y in outputs[:-1]], [layouts.of(y) for y in outputs[:-1]]


def _black(parts: Sequence[nn.Module], input_shape: Sequence[int]) -> Tensor:
    weight = next((p for part in parts for p in part.parameters()), torch.zeros(()))
    return weight.new_zeros((1, *input_shape))


@torch.no_grad()
def _larger_shapes(parts: Sequence[nn.Module], input_shape: Sequence[int]) -> list[torch.Size]:
    """Shapes of the sites on an image twice as high and wide, up to the first that cannot be."""
    channels, height, width = input_shape
    x, shapes = _black(parts, (channels, 2 * height, 2 * width)), []
    for part in copy.deepcopy(list(parts[:-1])):  # some modules remember the size of an image
        try:
            x = part(x)
        except (RuntimeError, AssertionError, ValueError):  # of a fixed size
            break
        shapes.append(x.shape)
    return shapes


def _by_shape(shape: torch.Size) -> str | None:
    """A map of one pixel has its channels on the only axis that is not 1."""
    if len(shape) == 4 and shape[2] == shape[3] == 1 != shape[1]:
        return "first"
    return "last" if len(shape) == 4 and shape[1] == shape[2] == 1 != shape[3] else None


def _by_growth(shape: torch.Size, larger: torch.Size | None) -> str | None:
    if larger is None or len(larger) != len(shape):
        return None
    fixed = [axis for axis in range(1, len(shape)) if shape[axis] == larger[axis]]
    return {(1,): "first", (len(shape) - 1,): "last"}.get(tuple(fixed))
