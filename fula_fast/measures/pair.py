"""Two representations of the same samples, as far as their second moments tell.

Rows are samples, columns features, both centred by column: X (n, p), Y (n, q). A `Side` holds one
of them in coordinates A (n, d) with A = X V, V (p, d) orthonormal and X = A V^T: its own features
where p <= n, its principal components where there are fewer samples than features. A `Pair` adds
A^T B. Every measure of second moments is a function of a `Pair`; what is dear (eigenvectors,
singular values) is computed on first use and shared between the measures. Leading dimensions of
`cross` are permutations of one side. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import FulaError, not_none

RANK = 1e-10
"""A direction counts if its variance exceeds this share of the largest: below it lies the rounding
of float32 activations, and what an eigenvalue in float64 can tell."""


@dataclass(frozen=True, eq=False)
class Side:
    """One representation: its second moments, and its rows where they were kept.

    `samples`: n. `moment` (d, d): A^T A. `norms`: sum of k_i^2, with k_i the squared norm of row i.
    `rows` (n, d): A, or None where only sums were gathered; `row_norms` (n,): k_i. `features`
    (n, p): X, where A is not X itself.
    """

    samples: int
    moment: Tensor
    norms: Tensor
    rows: Tensor | None = None
    row_norms: Tensor | None = None
    features: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, *, space: str | None = None) -> Side:
        """Of a matrix (n, p). `space`: `features` or `samples`; the smaller when None."""
        x = centred(x)
        norms = x.square().sum(1)
        if (space or ("samples" if len(x) < x.shape[1] else "features")) == "features":
            return cls(len(x), x.T @ x, norms.square().sum(), x, norms)
        values, vectors = _spectrum(x @ x.T)
        rows = vectors * values.sqrt()
        return cls(len(x), values.diag(), norms.square().sum(), rows, norms, x)

    @cached_property
    def total(self) -> Tensor:
        """||X||_F^2."""
        return self.moment.trace()

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Singular values (r,) of X in falling order, and their directions (d, r) in A."""
        values, vectors = _spectrum(self.moment)
        return values.sqrt(), vectors

    @cached_property
    def loadings(self) -> Tensor:
        """U^T X of X = U S V^T: (r, p)."""
        values, vectors = self.spectrum
        if self.features is None:
            return values[:, None] * vectors.T
        return (not_none(self.rows) @ (vectors / values)).T @ self.features


@dataclass(frozen=True, eq=False)
class Pair:
    """Sides x and y with `cross` (..., d_x, d_y) = A^T B, and `norms` (...): sum of k_i l_i."""

    x: Side
    y: Side
    cross: Tensor
    norms: Tensor

    @cached_property
    def overlap(self) -> Tensor:
        """U_x^T U_y: (..., r_x, r_y)."""
        (s, v), (t, w) = self.x.spectrum, self.y.spectrum
        return (v / s).T @ self.cross @ (w / t)

    @cached_property
    def canonical(self) -> tuple[Tensor, Tensor]:
        """Canonical correlations (..., m), and the combinations (..., r_x, m) of U_x with them."""
        u, values = decomposed(self.overlap)
        return values.clamp(max=1), u

    @cached_property
    def nuclear(self) -> Tensor:
        """||X^T Y||_* / (||X||_F ||Y||_F), in [0, 1]; 0 where a side is constant."""
        found = singular_values(self.cross).sum(-1)
        return ratio(found, (self.x.total * self.y.total).sqrt()).clamp(max=1)


@dataclass(frozen=True, eq=False)
class Ordered:
    """A side with its samples in other orders: its `rows` (..., n, d) and `norms` (..., n)."""

    side: Side
    rows: Tensor
    norms: Tensor

    @classmethod
    def of(cls, side: Side, orders: Tensor) -> Ordered:
        """`orders` (..., n): indices of samples."""
        return cls(side, not_none(side.rows)[orders], not_none(side.row_norms)[orders])


def of_sides(x: Side, y: Side | Ordered) -> Pair:
    """The pair of two sides that kept their rows, of the same samples in the same order."""
    if not isinstance(y, Ordered):
        y = Ordered(y, not_none(y.rows), not_none(y.row_norms))
    rows, norms = not_none(x.rows), not_none(x.row_norms)
    return Pair(x, y.side, rows.T @ y.rows, y.norms @ norms)


def as_rows(x: Tensor) -> Tensor:
    """(n, ...) as (n, p) in float64. Raises `FulaError` on NaN and infinity."""
    x = x.flatten(1).double()
    if not x.isfinite().all():
        raise FulaError("activations hold NaN or infinity; a measure needs finite numbers")
    return x


def centred(x: Tensor) -> Tensor:
    """`as_rows` of x (n, ...), less the columns' means; a constant column becomes exactly 0.

    Raises `FulaError` for fewer than 2 samples.
    """
    if len(x) < 2:
        raise FulaError(
            f"{len(x)} sample(s): a measure compares at least 2 samples; give more images"
        )
    x = as_rows(x)
    return torch.where((x == x[0]).all(0), 0, x - x.mean(0))


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, (...) each; 0 where below is not positive: a constant side shares nothing."""
    good = below > 0
    return torch.where(good, above / torch.where(good, below, 1), 0)


def effective_rank(side: Side) -> Tensor:
    """exp of the entropy of the singular values' shares s_i / sum s (Roy & Vetterli 2007).

    From 1 (one direction) to min(n - 1, p) (all alike); 0 of a constant representation. Invariant
    to shift, scale and rotation.
    """
    values, _ = side.spectrum
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.where(values.sum() > 0, torch.special.entr(shares).sum().exp(), 0)


def decomposed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (..., d, m) and singular values (..., m) of (..., d, e)."""
    try:
        u, values, _ = torch.linalg.svd(x, full_matrices=False)
    except torch.linalg.LinAlgError:
        u, values = _by_iteration(x)
    return u, values


def singular_values(x: Tensor) -> Tensor:
    """Of (..., d, e): (..., min(d, e)), in falling order."""
    try:
        return torch.linalg.svdvals(x)
    except torch.linalg.LinAlgError:
        return _by_iteration(x)[1]


def _by_iteration(x: Tensor) -> tuple[Tensor, Tensor]:
    """`decomposed` by QR iteration (LAPACK's gesvd): slower than divide and conquer, which on a CPU
    may fail to converge on a harmless matrix, one of tens of thousands."""
    from scipy import linalg  # the engine imports this module, and does without SciPy

    each = [
        linalg.svd(one, full_matrices=False, lapack_driver="gesvd")[:2]
        for one in x.reshape(-1, *x.shape[-2:]).cpu().numpy()
    ]
    u, values = (torch.from_numpy(np.stack(part)).to(x.device) for part in zip(*each, strict=True))
    return u.reshape(*x.shape[:-2], *u.shape[-2:]), values.reshape(*x.shape[:-2], -1)


def _spectrum(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in falling order and eigenvectors of a moment, of the directions that count."""
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0), vectors.flip(1)
    counts = values > RANK * values[:1].clamp(min=0)
    return values[counts], vectors[:, counts]
