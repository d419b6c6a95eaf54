"""What `gram` is called with, and what it cannot mean."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..shared import checks

NOUN = "gram"


class GramArguments(NamedTuple):
    """The arguments of `gram`: x (rows, c1), y (rows, c2)."""

    x: Tensor
    y: Tensor


def checked(a: GramArguments) -> GramArguments:
    """`a`. Raises `FulaError` for tensors that are not (rows, c1) and (rows, c2)."""
    x, y = a
    checks.tensors(NOUN, {"x": x, "y": y})
    checks.floating(NOUN, "x", x)
    checks.like(NOUN, "y", y, "x", x, dtype=False)
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        rule = "must be (rows, c1) and (rows, c2)"
        checks.fail(NOUN, "x.shape, y.shape", f"{tuple(x.shape)}, {tuple(y.shape)}", rule)
    return a
