"""`gram`: the normal equations of least squares, in float64."""

from __future__ import annotations

from torch import Tensor

from ..shared import backend
from . import reference
from .arguments import GramArguments, checked


def gram(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Normal equations of least squares with a bias, in float64.

    x (rows, c1), y (rows, c2), any float dtype; with X = [x, 1]: returns XᵀX (c1+1, c1+1) and
    Xᵀy (c1+1, c2). The last entry of XᵀX is the number of rows; results of chunks add up.
    Raises `FulaError` for tensors of other shapes.
    """
    a = checked(GramArguments(x, y))
    chosen = backend.choose("gram", x)
    if chosen == "reference":
        return reference.forward(a)
    return backend.implementation("gram", chosen).forward(a)
