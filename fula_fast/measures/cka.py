"""Linear CKA of two representations of the same samples, gathered batch by batch.

Kornblith et al. 2019: CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T, L = Y Y^T.
Activations are (B, ...) and count flattened, one row a sample; sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


class LinearCKA:
    """Exact linear CKA of all samples; needs memory for the features' covariances, not samples.

    `unbiased`: HSIC of Song et al. 2012 (zero expectation for independent X and Y) in place of
    the biased one, which grows with the number of features.

    >>> x, cka = torch.tensor([[0.0, 1], [2, 0], [1, 4], [3, 3]]), LinearCKA()
    >>> cka.add(x, x @ torch.tensor([[0.0, 2], [-2, 0]]))  # turned, and twice as long
    >>> round(cka.result(), 6)
    1.0
    """

    def __init__(self, *, unbiased: bool = False) -> None:
        self._unbiased = unbiased
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """One batch: activations (B, ...) of both, of the same B samples."""
        x, y = x.flatten(1).double(), y.flatten(1).double()
        if self._shift is None:  # CKA ignores a shift, and small numbers cancel less
            self._shift = x.mean(0), y.mean(0)
        x, y = x - self._shift[0], y - self._shift[1]
        for name, value in _moments(x, y).items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += len(x)

    def result(self) -> float:
        """CKA in [0, 1] if biased; the unbiased one may be slightly below 0.

        NaN with fewer than four samples, for which it is not defined, and for constant activations.
        """
        if self._count < 4:
            return float("nan")
        hsic = _unbiased if self._unbiased else _biased
        xy, xx, yy = (hsic(_pair(self._sums, *pair), self._count) for pair in ("xy", "xx", "yy"))
        return float(xy / (xx * yy).sqrt())


@dataclass(frozen=True)
class _Pair:
    """Moments of two matrices A (n, p), B (n, q); a_i, b_i rows; k_i, l_i their squared norms."""

    cross: Tensor  # A^T B, (p, q)
    a: Tensor  # sum a_i, (p,)
    b: Tensor  # sum b_i, (q,)
    k: Tensor  # sum k_i
    l: Tensor  # sum l_i
    kl: Tensor  # sum k_i l_i
    la: Tensor  # sum l_i a_i, (p,)
    kb: Tensor  # sum k_i b_i, (q,)


def _moments(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    parts = {"x": (x, x.square().sum(1)), "y": (y, y.square().sum(1))}
    found = {}
    for name, (rows, norms) in parts.items():
        found |= {f"sum {name}": rows.sum(0), f"norms {name}": norms.sum()}
        found |= {f"{other}-weighted {name}": n @ rows for other, (_, n) in parts.items()}
    for first, second in ("xx", "xy", "yy"):
        (a, k), (b, l) = parts[first], parts[second]
        found |= {f"cross {first}{second}": a.T @ b, f"norms {first}{second}": k @ l}
    return found


def _pair(sums: dict[str, Tensor], a: str, b: str) -> _Pair:
    return _Pair(
        cross=sums[f"cross {a}{b}"],
        a=sums[f"sum {a}"],
        b=sums[f"sum {b}"],
        k=sums[f"norms {a}"],
        l=sums[f"norms {b}"],
        kl=sums[f"norms {a}{b}"],
        la=sums[f"{b}-weighted {a}"],
        kb=sums[f"{a}-weighted {b}"],
    )


def _biased(m: _Pair, n: int) -> Tensor:
    """|A^T H B|_F^2 with H the centring matrix."""
    return (m.cross - torch.outer(m.a, m.b) / n).square().sum()


def _unbiased(m: _Pair, n: int) -> Tensor:
    """n (n - 3) times Song et al. 2012, Eq. 5, with K, L the kernels less their diagonals."""
    trace = m.cross.square().sum() - m.kl  # sum K_ij L_ij
    total_k, total_l = m.a @ m.a - m.k, m.b @ m.b - m.l
    rows = m.a @ m.cross @ m.b - m.a @ m.la - m.kb @ m.b + m.kl  # 1^T K L 1
    return trace + total_k * total_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows


class MinibatchCKA:
    """Linear CKA of all site pairs from the means of the batches' unbiased HSIC (Nguyen et al.
    2021), as `pytorch-cka` computes it.

    For activations with too many features for their covariance: one batch needs a (B, B) matrix a
    site. It estimates the unbiased `LinearCKA`, more noisily the smaller the batches.
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, x: Iterable[Tensor], y: Iterable[Tensor]) -> None:
        """One batch: activations (B, ...) of both sides, site by site."""
        k, l = _grams(x), _grams(y)
        found = _hollow_hsic(k, l), _own_hsic(k), _own_hsic(l)
        before = self._sums or [torch.zeros_like(each) for each in found]
        self._sums = tuple(a + b for a, b in zip(before, found, strict=True))

    def result(self) -> Tensor:
        """(sites x, sites y): CKA over the batches so far. Raises `ValueError` without any."""
        if self._sums is None:
            raise ValueError("CKA needs at least one batch")
        xy, xx, yy = self._sums
        return xy / torch.outer(xx, yy).sqrt()


def _hollow_gram(x: Tensor) -> Tensor:
    """(B, B) inner products of the rows of (B, ...), centred, in float64; zero on the diagonal.

    The products are in x's own dtype, as they are dear; centred they are afterwards, which the
    unbiased HSIC does not see, so that the sums behind it cancel less.
    """
    if len(x) < 4:
        raise ValueError(f"a batch needs at least 4 samples, got {len(x)}")
    gram = _products(_as_rows(x)).double()
    gram = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    return gram - gram.diag().diag()


def _as_rows(x: Tensor) -> Tensor:
    """(B, ...) as (B, p), features in the order of memory: a product of rows does not see it."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.flatten(1)


def _grams(side: Iterable[Tensor]) -> Tensor:
    """(sites, B, B)."""
    return torch.stack([_hollow_gram(x) for x in side])


def _products(rows: Tensor) -> Tensor:
    """rows rows^T of (B, p). On a CPU, where the work is what counts, without the upper right
    quarter, which is the lower left one's transpose."""
    if rows.device.type != "cpu":
        return rows @ rows.T
    half = len(rows) // 2
    lower = rows[half:] @ rows.T
    upper = rows[:half] @ rows[:half].T
    return torch.cat([torch.cat([upper, lower[:, :half].T], 1), lower])


def _own_hsic(k: Tensor) -> Tensor:
    """HSIC of kernels (S, B, B) with themselves."""
    return torch.stack([_hollow_hsic(each[None], each[None])[0, 0] for each in k])


def _hollow_hsic(k: Tensor, l: Tensor) -> Tensor:
    """Song et al. 2012, Eq. 5, of kernels (S, B, B) and (T, B, B) with zero diagonals: (S, T)."""
    n, (rows, columns) = k.shape[-1], (k.sum(1), l.sum(1))
    total = k.flatten(1) @ l.flatten(1).T
    total = total + torch.outer(rows.sum(1), columns.sum(1)) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (rows @ columns.T)) / (n * (n - 3))
