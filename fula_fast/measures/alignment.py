"""Alignment of kernels between samples: linear CKA, biased and unbiased, and CKA of RBF kernels.

CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). With linear kernels it is the RV coefficient of the
centred matrices (Robert & Escoufier 1976), which is therefore no measure of its own here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FulaError
from .distances import above_diagonal, squared_distances
from .pair import Pair, ratio


def linear_cka(pair: Pair) -> Tensor:
    """||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F), in [0, 1] (Kornblith et al. 2019).

    Symmetric; invariant to shift, scale and rotation. 0 where a side is constant.
    """
    norms = [side.moment.square().sum() for side in (pair.x, pair.y)]
    cross = pair.cross.square().sum((-2, -1))
    return ratio(cross, (norms[0] * norms[1]).sqrt()).clamp(max=1)


def unbiased_linear_cka(pair: Pair) -> Tensor:
    """Linear CKA with the unbiased HSIC of Song et al. 2012, Eq. 5, in [-1, 1].

    Of centred rows it is, but for a factor, ||X^T Y||_F^2 - n/(n - 2) sum k_i l_i
    + sum k sum l / ((n - 1)(n - 2)), with k, l the rows' squared norms. Zero in the mean for
    independent sides. Symmetric; invariant to shift, scale and rotation. 0 where HSIC of a side
    with itself is not positive (constant). Raises `FulaError` below four samples.
    """
    x, y, n = pair.x, pair.y, pair.x.samples
    if n < 4:
        raise FulaError(f"{n} samples: unbiased CKA is defined from 4 on; give more images")

    def hsic(cross: Tensor, norms: Tensor, totals: Tensor) -> Tensor:
        raw = cross.square().sum((-2, -1))
        found = raw - n / (n - 2) * norms + totals / ((n - 1) * (n - 2))
        return torch.where(found.abs() > 1e-13 * raw, found, 0)  # else nothing but rounding

    own = [hsic(side.moment, side.norms, side.total.square()) for side in (x, y)]
    both = hsic(pair.cross, pair.norms, x.total * y.total)
    return ratio(both, own[0].clamp(min=0).sqrt() * own[1].clamp(min=0).sqrt()).clamp(-1, 1)


def rbf_kernel(x: Tensor, *, bandwidth: float = 0.5) -> Tensor:
    """The centred kernel exp(-d^2 / (2 sigma^2)) of the rows of x, scaled to norm 1: (n, n).

    sigma: `bandwidth` times the median distance of differing samples. Zero for constant x. Raises
    `FulaError` for a bandwidth that is not above 0.
    """
    if not bandwidth > 0:
        raise FulaError(f"bandwidth {bandwidth} must be above 0, a share of the median distance")
    squares = squared_distances(x)
    apart = above_diagonal(squares)
    apart = apart[apart > 0]
    if not len(apart):
        return torch.zeros_like(squares)
    kernel = torch.exp(-squares / (2 * bandwidth**2 * _median(apart.sqrt()) ** 2))
    kernel = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    return kernel / kernel.norm()


def kernel_cka(a: Tensor, b: Tensor) -> Tensor:
    """<A, B> of centred kernels (n, n) of norm 1 (`rbf_kernel`), in [0, 1] (Kornblith et al. 2019).

    With RBF kernels: symmetric; invariant to shift, scale and rotation. 0 where a side is constant.
    """
    return (a * b).sum((-2, -1)).clamp(0, 1)


def _median(values: Tensor) -> Tensor:
    ordered, n = values.sort().values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
