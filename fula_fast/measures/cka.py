"""Linear CKA of two representations of the same samples, gathered batch by batch.

Kornblith et al. 2019: CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T, L = Y Y^T.
Activations are (B, ...) and count flattened, one row a sample; sums are kept in float64.
"""

from __future__ import annotations

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
    """Linear CKA from the means of the batches' unbiased HSIC (Nguyen et al. 2021).

    For activations with too many features for their covariance: needs B x B memory. It estimates
    the unbiased `LinearCKA`, more noisily the smaller the batches.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """One batch of at least four samples: activations (B, ...) of both."""
        if len(x) < 4:
            raise ValueError(f"a batch needs at least 4 samples, got {len(x)}")
        k, l = _hollow_gram(x), _hollow_gram(y)
        found = torch.stack([_hollow_hsic(k, l), _hollow_hsic(k, k), _hollow_hsic(l, l)])
        self._sums = found if self._sums is None else self._sums + found

    def result(self) -> float:
        """CKA over the batches so far."""
        if self._sums is None:
            raise ValueError("CKA needs at least one batch")
        xy, xx, yy = self._sums
        return float(xy / (xx * yy).sqrt())


def _hollow_gram(x: Tensor) -> Tensor:
    """(B, B) inner products of the centred rows, zero on the diagonal."""
    rows = x.flatten(1).double()
    rows = rows - rows.mean(0)
    gram = rows @ rows.T
    return gram - gram.diag().diag()


def _hollow_hsic(k: Tensor, l: Tensor) -> Tensor:
    """Song et al. 2012, Eq. 5, of kernels (B, B) with zero diagonals."""
    n = len(k)
    total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (k.sum(0) @ l.sum(0))) / (n * (n - 3))
