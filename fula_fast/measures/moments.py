"""Second moments of all site pairs of any number of models, in float64, in one pass over batches.

In features' space the sites of a group lie side by side, so a pair of groups costs one matrix
product a batch. Sums are of x - x_1, with x_1 the first sample: measures do not see the shift,
small numbers cancel less, and a constant feature is exactly 0. Notation: a, b rows of two groups
less their shifts; k, m their squared norms at each site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import FulaError
from .moment_memory import GroupPairs, Widths, gathered_bytes, offsets, smaller_space
from .pair import Pair, Side, as_rows, of_sides

Place = tuple[str, int]
"""A group's name and the index of one of its sites, from 0."""


class Moments:
    """Gathers batches, then gives a `Pair` for each site pair of the chosen pairs of groups.

    `widths`: features of each site of each group. `pairs`: the pairs of groups that are compared; a
    group may be paired with itself. `samples`: how many will come in all; None: as many as come, in
    features' space. `space`: `features` or `samples`; the one that takes fewer bytes when None.
    """

    def __init__(
        self,
        widths: Widths,
        pairs: GroupPairs,
        samples: int | None,
        device: torch.device | str = "cpu",
        space: str | None = None,
    ) -> None:
        self.samples = samples
        if samples is None:
            space = "features"
        self.space = space or smaller_space(widths, pairs, samples)
        kind = _FeatureSums if self.space == "features" else _KeptRows
        self._gathered = kind(widths, pairs, samples, torch.device(device))
        self._widths, self._sides, self._count = widths, {}, 0
        self.bytes = gathered_bytes(widths, pairs, samples or 0, self.space)

    def add(self, batch: Mapping[str, Sequence[Tensor]]) -> None:
        """One batch: each group's activations (B, ...) site by site, of the same B samples.

        Raises `FulaError` for unequal batches and for more samples than announced.
        """
        rows = {name: self._rows(name, batch) for name in self._widths}
        sizes = {name: len(r[0]) for name, r in rows.items()}
        if len(set(sizes.values())) > 1:
            raise FulaError(f"a batch of {sizes} samples: all groups must see the same images")
        (size,) = set(sizes.values())
        if self.samples is not None and self._count + size > self.samples:
            raise FulaError(f"{self._count + size} samples came, {self.samples} were announced")
        self._gathered.add(rows, self._count)
        self._count += size

    def _rows(self, name: str, batch: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        rows = [as_rows(x) for x in batch[name]]
        found = [x.shape[1] for x in rows]
        if found != list(self._widths[name]):
            raise FulaError(
                f"{name} has {found} features, {list(self._widths[name])} were announced"
            )
        return rows

    @property
    def count(self) -> int:
        """How many samples came."""
        return self._count

    def sites(self, group: str) -> int:
        """How many sites a group has."""
        return len(self._widths[group])

    def side(self, place: Place) -> Side:
        """One site's own moments. Raises `FulaError` before all announced samples came."""
        if self.samples not in (None, self._count):
            raise FulaError(f"{self._count} samples came, {self.samples} were announced")
        if place not in self._sides:
            self._sides[place] = self._gathered.side(place, self._count)
        return self._sides[place]

    def pair(self, x: Place, y: Place) -> Pair:
        """Two sites, x of the first group of a chosen pair and y of the second."""
        return self._gathered.pair(x, y, self.side(x), self.side(y))


class _KeptRows:
    """Samples' space: all activations, (n, p) a site."""

    def __init__(
        self, widths: Widths, pairs: GroupPairs, samples: int, device: torch.device
    ) -> None:
        self._kept = {
            (name, i): torch.empty(samples, p, dtype=torch.float64, device=device)
            for name, ps in widths.items()
            for i, p in enumerate(ps)
        }

    def add(self, rows: Mapping[str, Sequence[Tensor]], start: int) -> None:
        for (name, i), kept in self._kept.items():
            kept[start : start + len(rows[name][i])] = rows[name][i]

    def side(self, place: Place, samples: int) -> Side:
        return Side.of(self._kept.pop(place))  # `Moments` keeps the side, which holds them centred

    def pair(self, x: Place, y: Place, first: Side, second: Side) -> Pair:
        return of_sides(first, second)


class _FeatureSums:
    """Features' space: sums over samples of a (a group's features less the shift), and of k (S,),
    the squared norms at its sites."""

    def __init__(
        self, widths: Widths, pairs: GroupPairs, samples: int | None, device: torch.device
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._pairs = tuple(dict.fromkeys(pairs))
        self._at = {name: offsets(ps) for name, ps in widths.items()}
        self._shift: dict[str, Tensor] = {}
        self._sum = {name: zeros(sum(ps)) for name, ps in widths.items()}  # of a
        self._norms = {name: zeros(len(ps)) for name, ps in widths.items()}  # of k
        self._squares = {name: zeros(len(ps)) for name, ps in widths.items()}  # of k^2
        self._weighted = {name: zeros(sum(ps)) for name, ps in widths.items()}  # of k a, own k
        self._moments = {name: [zeros(p, p) for p in ps] for name, ps in widths.items()}
        total = {name: (sum(ps), len(ps)) for name, ps in widths.items()}
        self._cross = {pair: _Crossed(zeros, *(total[g] for g in pair)) for pair in self._pairs}

    def add(self, rows: Mapping[str, Sequence[Tensor]], start: int) -> None:
        a, k = {}, {}
        for name, sites in rows.items():
            wide = torch.cat(list(sites), 1)
            a[name] = wide - self._shift.setdefault(name, wide[0].clone())
            k[name] = torch.stack([a[name][:, at].square().sum(1) for at in self._at[name]], 1)
            self._add_own(name, a[name], k[name])
        for (first, second), crossed in self._cross.items():
            crossed.add(a[first], k[first], a[second], k[second])

    def _add_own(self, name: str, a: Tensor, k: Tensor) -> None:
        self._sum[name] += a.sum(0)
        self._norms[name] += k.sum(0)
        self._squares[name] += k.square().sum(0)
        for i, at in enumerate(self._at[name]):
            self._weighted[name][at] += k[:, i] @ a[:, at]
            self._moments[name][i].addmm_(a[:, at].T, a[:, at])

    def side(self, place: Place, samples: int) -> Side:
        name, i = place
        at, n = self._at[name][i], samples
        raw, mean = self._moments[name][i], self._sum[name][at] / n
        weighted, k = self._weighted[name][at], self._norms[name][i]
        norms = _norms(self._squares[name][i], weighted, weighted, raw, mean, mean, k, k, n)
        return Side(n, raw - n * torch.outer(mean, mean), norms)

    def pair(self, x: Place, y: Place, first: Side, second: Side) -> Pair:
        (a, i), (b, j) = x, y
        if (a, b) not in self._cross:
            raise FulaError(f"{a} with {b} was not chosen; chosen: {list(self._cross)}")
        at, to, n, sums = self._at[a][i], self._at[b][j], first.samples, self._cross[a, b]
        raw, d, e = sums.cross[at, to], self._sum[a][at] / n, self._sum[b][to] / n
        norms = _norms(
            sums.norms[i, j], sums.first[j, at], sums.second[i, to], raw, d, e,
            self._norms[a][i], self._norms[b][j], n,
        )  # fmt: skip
        return Pair(first, second, raw - n * torch.outer(d, e), norms)


class _Crossed:
    """Sums of one pair of groups: a b^T, k m^T, m a^T and k b^T."""

    def __init__(self, zeros, first: tuple[int, int], second: tuple[int, int]) -> None:
        (p, s), (q, t) = first, second
        self.cross, self.norms = zeros(p, q), zeros(s, t)
        self.first, self.second = zeros(t, p), zeros(s, q)

    def add(self, a: Tensor, k: Tensor, b: Tensor, m: Tensor) -> None:
        self.cross.addmm_(a.T, b)
        self.norms.addmm_(k.T, m)
        self.first.addmm_(m.T, a)
        self.second.addmm_(k.T, b)


def _norms(
    km: Tensor,
    ma: Tensor,
    kb: Tensor,
    ab: Tensor,
    d: Tensor,
    e: Tensor,
    k: Tensor,
    m: Tensor,
    n: int,
) -> Tensor:
    """sum |a_i - d|^2 |b_i - e|^2 from the sums of k m, m a, k b, a b^T, k, m; d, e the means."""
    c, f = d @ d, e @ e
    return km - 2 * (d @ ma) - 2 * (e @ kb) + 4 * (d @ ab @ e) + f * k + c * m - 3 * n * c * f
