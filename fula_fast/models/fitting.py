"""Sizes of images that a network takes, found by trying, without computing anything.

A fixed position embedding, a window or a stride refuses others; which ones, no library says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call

from ..errors import FulaError

_USUAL = (28, 32, 48, 56, 64, 84, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 336, 384,
          448, 512)  # fmt: skip
_NAMED = ("image_size", "img_size")
_SHOWN = 3


def fitting_sides(run: Callable[[int], object], asked: int, own: Sequence[int] = ()) -> str:
    """The sides nearest to the one `asked` for which `run` raises nothing, as text; empty where
    there is none. `own`: sides that are tried beside the usual ones."""
    found: list[int] = []
    for side in sorted({*_USUAL, *own} - {asked}, key=lambda side: abs(side - asked)):
        if len(found) < _SHOWN and _runs(run, side):
            found.append(side)
    return ", ".join(map(str, sorted(found)))


def _runs(run: Callable[[int], object], side: int) -> bool:
    try:
        run(side)
    except Exception:  # a library's own code, on a device that it was not written for
        return False
    return True


@contextmanager
def telling_sizes(label: str, module: nn.Module, input_shape: Sequence[int]) -> Iterator[None]:
    """Where what is inside raises a `FulaError`, and `module` takes images of other sizes than
    `input_shape`, (C, H, W), one that names those."""
    try:
        yield
    except FulaError as error:
        if len(input_shape) != 3 or input_shape[1] != input_shape[2]:
            raise
        channels, side = input_shape[0], input_shape[1]

        def run(side: int) -> None:
            _shapes_only(module, (channels, side, side))

        if _runs(run, side) or not (fits := fitting_sides(run, side, list(_sides(module)))):
            raise
        raise FulaError(
            f"model '{label}' does not take images of {side} pixels ({_said(error)}); sizes that "
            f"fit: {fits}: set size of the data, or in the donor's input"
        ) from error


def _said(error: FulaError) -> str:
    """The reason within a refusal, without its fix."""
    return str(error).split("; ")[0]


@torch.no_grad()
def _shapes_only(module: nn.Module, shape: Sequence[int]) -> None:
    """A forward pass on the meta device: shapes without numbers."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    kind = next((v.dtype for v in own.values() if v.is_floating_point()), torch.float32)
    image = torch.zeros((1, *shape), dtype=kind, device="meta")
    functional_call(module, {n: v.detach().to("meta") for n, v in own.items()}, (image,))


def _sides(module: nn.Module) -> Iterator[int]:
    """The sizes that modules keep of the images that they were made for."""
    for child in module.modules():
        for name in _NAMED:
            value = getattr(child, name, None)
            value = value[0] if isinstance(value, tuple | list) and value else value
            if type(value) is int and value > 0:
                yield value
