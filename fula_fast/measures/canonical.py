"""Canonical correlations of two representations, and what is made of them.

rho_1 >= rho_2 >= ... are the singular values of U_x^T U_y, with U the left singular vectors of the
centred matrices (Björck & Golub 1973): the correlations that linear maps of both sides can reach.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import FulaError
from .pair import Pair, Side, ratio, singular_values


def mean_cca(pair: Pair) -> Tensor:
    """Mean of the canonical correlations rho_i, i = 1 ... min(rank X, rank Y), in [0, 1].

    Symmetric; invariant to every invertible affine map. 0 where a side is constant (Raghu et al.
    2017; Kornblith et al. 2019, Eq. 7).
    """
    return _mean(pair.canonical[0])


def r2_cca(pair: Pair) -> Tensor:
    """Mean of rho_i^2, in [0, 1]; invariances as `mean_cca` (Kornblith et al. 2019, Eq. 6)."""
    m = min(pair.overlap.shape[-2:])
    return ratio(pair.overlap.square().sum((-2, -1)), pair.overlap.new_tensor(m)).clamp(max=1)


def svcca(pair: Pair, *, variance: float = 0.99) -> Tensor:
    """`mean_cca` of both sides cut to the principal components that hold `variance` of each.

    In [0, 1]. Symmetric; invariant to shift, scale and rotation (Raghu et al. 2017). Raises
    `FulaError` for a variance outside (0, 1].
    """
    if not 0 < variance <= 1:
        raise FulaError(f"variance {variance} must lie in (0, 1], the share that is kept")
    kept = [_leading(side, variance) for side in (pair.x, pair.y)]
    rho = singular_values(pair.overlap[..., : kept[0], : kept[1]])
    return _mean(rho.clamp(max=1))


def pwcca(pair: Pair) -> Tensor:
    """Mean of the rho_i, each weighted by sum_j |<h_i, x_j>|, in [0, 1] (Morcos et al. 2018).

    h_i: the canonical variables of the side named first, of norm 1; x_j: its features, centred.
    Not symmetric. Invariant to shift and scale of the first side, and to every invertible affine
    map of the second.
    """
    rho, combinations = pair.canonical
    weights = (combinations.mT @ pair.x.loadings).abs().sum(-1)
    return ratio((weights * rho).sum(-1), weights.sum(-1)).clamp(max=1)


def _leading(side: Side, variance: float) -> int:
    """The fewest components whose variance reaches the share; all if rounding hides it."""
    shares = side.spectrum[0].square().cumsum(0)
    if not len(shares):
        return 0
    return min(int((shares < variance * shares[-1] * (1 - 1e-12)).sum()) + 1, len(shares))


def _mean(rho: Tensor) -> Tensor:
    return ratio(rho.sum(-1), rho.new_tensor(rho.shape[-1]))
