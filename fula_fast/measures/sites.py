"""Measures of stitched models on a test set, for all lanes of a wave or for one cell.

Which there are, and their columns, stand in the registry: those of a stitched model's sites and of
its stitch, and every measure of second moments, from the stitch on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from .moments import Moments
from .pair import Pair
from .registry import Measure, Needs, measure

_END = "end"


@dataclass(frozen=True)
class SiteDistances:
    """Of one stitched model, from its own end site to the last one, k values each, over a test set.

    `residual`: sum of (h - g)^2. `squares`: of g^2. `around_mean`, `around_channels`: of g's
    squared distances to its one mean, and to the mean of each channel (feature).
    """

    residual: Tensor
    squares: Tensor
    around_mean: Tensor
    around_channels: Tensor


def terms(found: SiteDistances) -> tuple[list[float]]:
    """||h - g|| / ||g|| at every site."""
    return ((found.residual / found.squares).sqrt().tolist(),)


def penultimate(found: SiteDistances) -> tuple[float]:
    """The term at the last site."""
    return (terms(found)[0][-1],)


def r_squared(found: SiteDistances) -> tuple[list[float], list[float]]:
    """1 - residual / sum of squares around the one mean, and around each channel's mean."""
    around = found.around_mean, found.around_channels
    return tuple((1 - found.residual / sums).tolist() for sums in around)


class SiteTable:
    """Distances of lanes to their end donor at every site, gathered over batches in eval mode.

    `end_sites`: site at which each lane joins. `sites`: of the end. `names`: measures of the
    registry; `term_stitch` is always there.
    """

    def __init__(
        self, end_sites: Sequence[int], sites: int, device: torch.device, names: Sequence[str] = ()
    ) -> None:
        self.end_sites, self.sites, self._device = tuple(end_sites), sites, device
        chosen = [measure(name) for name in names]
        self._at_sites = [m for m in chosen if m.needs is Needs.SITES]
        self._of_moments = [m for m in chosen if m.needs is Needs.MOMENTS]
        self._distance = torch.zeros(len(end_sites), sites, dtype=torch.float64, device=device)
        self._squares = torch.zeros(sites, dtype=torch.float64, device=device)
        self._channels: dict[int, Tensor] = {}
        self._count = [0] * sites
        self._moments: dict[tuple[int, tuple[int, ...]], Moments] = {}

    def target(self, site: int, g: Tensor) -> None:
        """The end's own activation (B, ...) of one batch at a site; once per batch and site."""
        wide = g.double()
        self._squares[site - 1] += wide.square().sum()
        sums = wide.sum([d for d in range(g.dim()) if d != _feature_axis(g)])
        self._channels[site] = self._channels[site] + sums if site in self._channels else sums
        self._count[site - 1] += g.numel()

    def add(self, site: int, lanes: Sequence[int], h: Tensor, g: Tensor) -> None:
        """Activations h (n*B, ...) of `lanes` at a site, and the end's own g (B, ...)."""
        (found,) = kernels.hint_terms([h], [g])
        self._distance[list(lanes), site - 1] += found.double().sum(1)
        if self._of_moments:
            self._gather(site, lanes, h.unflatten(0, (len(lanes), -1)), pooled(g))

    def _gather(self, site: int, lanes: Sequence[int], h: Tensor, g: Tensor) -> None:
        """Moments of lanes that come together, h (n, B, ...), each against the end's own g."""
        sides = {_END: [g]} | {str(n): [pooled(own)] for n, own in zip(lanes, h, strict=True)}
        key = site, tuple(lanes)
        if key not in self._moments:
            widths = {name: [x.shape[1]] for name, (x,) in sides.items()}
            pairs = [(str(lane), _END) for lane in lanes]
            self._moments[key] = Moments(widths, pairs, None, self._device)
        self._moments[key].add(sides)

    def columns(self) -> list[dict[str, Any]]:
        """One dict per lane: `term_stitch`, and the columns of the measures asked for."""
        around_mean, around_channels = self._around()
        found = []
        for lane, site in enumerate(self.end_sites):
            part = slice(site - 1, None)
            distances = SiteDistances(
                self._distance[lane, part], self._squares[part], around_mean[part],
                around_channels[part],
            )  # fmt: skip
            values = {"term_stitch": terms(distances)[0][0]}
            for each in self._at_sites:
                values |= zip(each.columns, each.load()(distances), strict=True)
            for each in self._of_moments:
                values |= self._compared(each, lane)
            found.append(values)
        return found

    def _compared(self, chosen: Measure, lane: int) -> dict[str, list[float | None]]:
        """A measure of second moments from the lane's own site to the last one."""
        function, options = chosen.load(), chosen.bound({})
        (column,) = chosen.columns
        values = []
        for site in range(self.end_sites[lane], self.sites + 1):
            pair = self._pair(site, lane)
            known = pair.x.samples >= chosen.least
            values.append(float(function(pair, **options)) if known else None)
        return {column: values}

    def _pair(self, site: int, lane: int) -> Pair:
        (found,) = (m for (s, lanes), m in self._moments.items() if s == site and lane in lanes)
        return found.pair((str(lane), 0), (_END, 0))

    def _around(self) -> tuple[Tensor, Tensor]:
        """Sums of squares around the target's one mean, and around each channel's; (sites,)."""
        count = self._squares.new_tensor(self._count)
        sums = [self._channels[s] for s in range(1, self.sites + 1)]
        total = torch.stack([s.sum() for s in sums])
        means = [s.square().sum() * len(s) / n for s, n in zip(sums, self._count, strict=True)]
        return self._squares - total.square() / count, self._squares - torch.stack(means)


def _feature_axis(x: Tensor) -> int:
    """Of maps (B, C, H, W), tokens (B, T, D) and vectors (B, D)."""
    return 2 if x.dim() == 3 else 1


def pooled(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) and tokens (B, T, D) to their mean over positions; vectors as they are.

    A covariance of all T * D numbers of a transformer would not fit in memory.
    """
    if x.dim() == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.dim() == 3 else x


def stitch_columns(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
    """Columns of the measures among `names` that are of a trained map: `weight` (out, in)."""
    found: dict[str, Any] = {}
    for name in names:
        if (chosen := measure(name)).needs is Needs.STITCH:
            found |= zip(chosen.columns, chosen.load()(state), strict=True)
    return found
