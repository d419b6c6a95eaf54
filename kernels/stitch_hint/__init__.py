"""`stitch_hint`: the affine stitches of many lanes, and the distances to their targets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..shared import backend
from . import operator, reference
from .arguments import StitchHintArguments, checked


def stitch_hint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None = None,
    target_index: Sequence[int] | None = None,
    write: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Each lane's affine stitch, and its distance to its target.

        y_l = weight_l . x[x_index_l] + bias_l

    x: front activations (S, B, C1, H, W), or tokens (S, B, T, C1), or vectors (S, B, C1), shared by
    the lanes through x_index (L,); weight (L, C2, C1), used in x's dtype; bias (L, C2); target
    (T, B, C2, H, W) (or tokens, or vectors) and target_index (L,). Indices are host numbers: a
    sequence, or a tensor on the CPU.
    Returns y (L*B, C2, H, W), channels-last (or tokens (L*B, T, C2), or vectors), None when
    not `write`; and dist2 (L, B) = sum over a sample of (y - target)**2, None without a target.
    Raises `FulaError` for arguments that do not fit together, or an index out of range.
    """
    a = checked(StitchHintArguments(x, weight, bias, x_index, target, target_index, write))
    chosen = backend.choose("stitch_hint", x)
    if chosen == "reference":
        return reference.forward(a)
    y, dist2 = operator.stitch_hint(*a, chosen)
    return y if write else None, None if target is None else dist2
