"""What the checks of arguments share: argument, value, rule, in one line.

Everything is decided from shapes, dtypes, devices and host numbers; nothing is read back from a
device, so checks are free inside a captured step. Lane indices are host numbers for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from reprlib import repr as shortened
from typing import NoReturn

import torch
from torch import Tensor

from ...errors import FulaError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def fail(noun: str, name: str, value: object, rule: str) -> NoReturn:
    """Raise `FulaError`: the argument, its value, the rule it breaks."""
    raise FulaError(f"{noun}: {name} = {value}: {rule}")


def short(value: object) -> str:
    """What a message shows of any value: one short line."""
    return " ".join(shortened(value).split())


def tensors(noun: str, given: Mapping[str, object]) -> None:
    """Each is a tensor of the ordinary kind: with strides, not sparse, not nested."""
    for name, x in given.items():
        if not isinstance(x, Tensor):
            fail(noun, name, short(x), "must be a tensor")
        if x.layout != torch.strided or x.is_nested:
            layout = "nested" if x.is_nested else x.layout
            fail(noun, f"{name}.layout", layout, "must be torch.strided")


def present(**optional: object) -> dict[str, object]:
    """Those that are given."""
    return {name: value for name, value in optional.items() if value is not None}


def integer(noun: str, name: str, value: object) -> None:
    """A whole number, or a symbol of one."""
    if not isinstance(value, (int, torch.SymInt, Integral)):
        fail(noun, name, short(value), "must be an integer")


def shape(noun: str, name: str, x: Tensor, *shapes: Sequence[int], meaning: str) -> None:
    """`x` has one of `shapes`, each like (N, C, H, W)."""
    if all(tuple(x.shape) != tuple(allowed) for allowed in shapes):
        wanted = " or ".join(str(tuple(allowed)) for allowed in shapes)
        fail(noun, f"{name}.shape", tuple(x.shape), f"must be {wanted}, {meaning}")


def like(noun: str, name: str, x: Tensor, main: str, other: Tensor, dtype: bool = True) -> None:
    """`x` lives where `other` does, and shares its dtype if `dtype`; any shapes."""
    if x.device != other.device:
        fail(noun, f"{name}.device", x.device, f"must be that of {main}, {other.device}")
    if dtype and x.dtype != other.dtype:
        fail(noun, f"{name}.dtype", x.dtype, f"must be that of {main}, {other.dtype}")
    if not dtype and x.dtype not in FLOATS:
        fail(noun, f"{name}.dtype", x.dtype, "must be a float")


def floating(noun: str, name: str, x: Tensor) -> None:
    """`x`, of any shape, is of a dtype that the kernels have."""
    if x.dtype not in FLOATS:
        fail(noun, f"{name}.dtype", x.dtype, "must be float32, bfloat16, float16 or float64")


def number(noun: str, name: str, value: float) -> None:
    """Finite and not negative."""
    if not isinstance(value, (int, float, Real)):
        fail(noun, name, short(value), "must be a number")
    if not 0 <= value < math.inf:  # `math.isfinite` breaks the graph where a number is a symbol
        fail(noun, name, value, "must be finite and at least 0")
