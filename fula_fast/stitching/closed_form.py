"""Direct matching (DM): the closed-form stitch, least squares from front to end activations.

Rows are all spatial positions of all samples; a column of ones carries the bias. Singular values
under rcond * sigma_max are dropped (protocol: `dm_rcond`), as a pseudo-inverse does.

Two paths agree wherever the spectrum has a gap around the cut-off: float64 normal equations, in
one streaming pass, valid for rcond >= 1e-7 (they square the condition number); and a QR
factorisation followed by an SVD of R, for anything smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..errors import FulaError
from .stitch import Geometry, resize, to_rows

GRAM_LIMIT = 1e-7
STREAMING_RCOND = 1e-4
FLOAT32_EPS = 2.0**-23


@dataclass(frozen=True)
class ClosedForm:
    """A solved stitch: `weight` (out, in), `bias` (out,), float64, and how many of the singular
    directions were kept."""

    weight: np.ndarray
    bias: np.ndarray
    kept: int
    directions: int


def cutoff(rcond: float | str, rows: int, streaming_all: bool) -> float:
    """The relative cut-off: a number as it is; `rows` means rows * 2**-23, the float32
    pseudo-inverse's rule, or 1e-4 for a pass over the whole training set (where the dtype rule
    would drop everything)."""
    if rcond != "rows":
        return float(rcond)
    return STREAMING_RCOND if streaming_all else rows * FLOAT32_EPS


def paired_rows(front: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """(B, *source), (B, *target) to (rows, c_in), (rows, c_out); the front is resized first.

    Raises `FulaError` for sites of unlike form.
    """
    geometry = Geometry(tuple(front.shape[1:]), tuple(end.shape[1:]))
    if not geometry.like:
        raise FulaError(
            f"DM needs sites of one form, not {geometry.source} and {geometry.target}; "
            "use init = 'random'"
        )
    if geometry.resizes:
        front = resize(front, geometry.target[1:])
    return to_rows(front).flatten(0, 1), to_rows(end).flatten(0, 1)


def least_squares(x: Tensor, y: Tensor, rcond: float) -> ClosedForm:
    """min ||[x 1] M - y|| with singular values under rcond * sigma_max dropped.

    x (rows, c_in), y (rows, c_out), any float dtype; solved in float64 by QR and SVD.
    """
    augmented = torch.cat([x, x.new_ones(len(x), 1)], 1).double()
    _check_finite(augmented, y)
    q, r = torch.linalg.qr(augmented)
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    keep = s > rcond * s[0]
    inverse = torch.where(keep, 1 / s.where(keep, torch.ones_like(s)), torch.zeros_like(s))
    solution = vh.T @ (inverse[:, None] * (u.T @ (q.T @ y.double())))
    return _closed_form(solution, int(keep.sum()), len(s))


class Gram:
    """Normal equations of [x 1] M = y, accumulated in float64 batch by batch.

    Valid for rcond >= 1e-7 alone: the eigenvalues are squared singular values.
    """

    def __init__(self) -> None:
        self.xx: Tensor | None = None
        self.xy: Tensor | None = None
        self.rows = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Accumulate x (rows, c_in) and y (rows, c_out)."""
        both = torch.promote_types(x.dtype, y.dtype)
        xx, xy = kernels.gram(x.to(both), y.to(both))
        self.xx = xx if self.xx is None else self.xx + xx
        self.xy = xy if self.xy is None else self.xy + xy
        self.rows += len(x)

    def solve(self, rcond: float) -> ClosedForm:
        """The least-squares map; `FulaError` for rcond under 1e-7, no rows, or non-finite ones."""
        if self.xx is None:
            raise FulaError("DM has no samples; give dm_samples >= 1 and a non-empty training set")
        if rcond < GRAM_LIMIT:
            raise FulaError(
                f"rcond = {rcond} is below {GRAM_LIMIT}, the limit of the Gram path; "
                "use a larger dm_rcond or a number of dm_samples instead of 'all'"
            )
        _check_finite(self.xx, self.xy)
        values, vectors = torch.linalg.eigh(self.xx)
        keep = values > (rcond**2) * values[-1]
        inverse = torch.where(keep, 1 / values.where(keep, torch.ones_like(values)), 0.0)
        solution = vectors @ (inverse[:, None] * (vectors.T @ self.xy))
        return _closed_form(solution, int(keep.sum()), len(values))


def solve(
    pairs: Iterable[tuple[Tensor, Tensor]], rcond: float | str, *, streaming_all: bool = False
) -> ClosedForm:
    """DM over batches of (front activation, end activation).

    `streaming_all`: the batches are the whole training set (protocol: `dm_samples = "all"`).
    Raises `FulaError` for sites of unlike form and for non-finite activations.
    """
    gram, kept_rows = Gram(), []
    numeric = cutoff(rcond, 0, streaming_all) if rcond != "rows" else None
    use_rows = numeric is not None and numeric < GRAM_LIMIT and not streaming_all
    for front, end in pairs:
        x, y = paired_rows(front, end)
        kept_rows.append((x, y)) if use_rows else gram.add(x, y)
    if use_rows:
        x, y = (torch.cat(part) for part in zip(*kept_rows, strict=True))
        return least_squares(x, y, numeric)
    relative = cutoff(rcond, gram.rows, streaming_all)
    return gram.solve(relative)


def _check_finite(x: Tensor, y: Tensor) -> None:
    for role, values in (("front", x), ("end", y)):
        if not torch.isfinite(values).all():
            raise FulaError(f"DM: the {role}'s activations are not finite; check that donor")


def _closed_form(solution: Tensor, kept: int, directions: int) -> ClosedForm:
    array = solution.cpu().numpy()
    return ClosedForm(array[:-1].T.copy(), array[-1].copy(), kept, directions)
