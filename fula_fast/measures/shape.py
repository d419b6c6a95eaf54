"""Distances between shapes, and how much of one side a linear map of the other explains."""

from __future__ import annotations

from torch import Tensor

from ..errors import FulaError
from .pair import Pair, Side, ratio


def procrustes(pair: Pair) -> Tensor:
    """||X||^2 + ||Y||^2 - 2 ||X^T Y||_* of sides scaled to norm 1: 2 - 2 nu, in [0, 2].

    The least squared distance under a rotation (Schönemann 1966; Ding et al. 2021). Symmetric;
    invariant to shift, scale and rotation. 2 where a side is constant: it shares nothing.
    """
    return 2 - 2 * pair.nuclear


def angular_shape(pair: Pair) -> Tensor:
    """arccos(||X^T Y||_* / (||X||_F ||Y||_F)), in [0, pi/2] (Williams et al. 2021).

    A metric: it keeps the triangle inequality. Symmetric; invariant to shift, scale and rotation.
    pi/2 where a side is constant.
    """
    return pair.nuclear.acos()


def linear_r2(pair: Pair, *, ridge: float = 0.0) -> Tensor:
    """Share of the second side's variance that the best linear map of the first explains: [0, 1].

    ||U_x^T Y||_F^2 / ||Y||_F^2; with a penalty lambda = `ridge` times the first side's largest
    squared singular value, each direction counts f (2 - f), f = s^2 / (s^2 + lambda) (Kornblith et
    al. 2019, Eq. 9; Hoerl & Kennard 1970). Not symmetric. Invariant to every invertible affine map
    of the first side (without a ridge), to shift, scale and rotation of the second.
    """
    values, directions = pair.x.spectrum
    explained = (directions / values).mT @ pair.cross
    return _share(explained.square().sum(-1), pair.x, pair.y, ridge)


def linear_r2_back(pair: Pair, *, ridge: float = 0.0) -> Tensor:
    """`linear_r2` with the sides exchanged: how much of the first side the second explains."""
    values, directions = pair.y.spectrum
    explained = pair.cross @ (directions / values)
    return _share(explained.square().sum(-2), pair.y, pair.x, ridge)


def _share(explained: Tensor, by: Side, of: Side, ridge: float) -> Tensor:
    if not ridge >= 0:
        raise FulaError(f"ridge {ridge} must be at least 0, a share of the largest squared value")
    squares = by.spectrum[0].square()
    kept = squares / (squares + ridge * squares[:1])
    return ratio((explained * kept * (2 - kept)).sum(-1), of.total).clamp(max=1)
