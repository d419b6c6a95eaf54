"""Measures of stitched models on a test set, for all lanes of a wave or for one cell.

Which there are, and their columns, stand in the registry: those of a stitched model's sites and of
its stitch, here; those of any two representations, in `pooled`; of outputs, in `outputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from .pooled import PooledTable
from .registry import Needs, measure


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
    registry; `term_stitch` is always there. `samples`: numbers of the images whose pairs are
    compared.
    """

    def __init__(
        self,
        end_sites: Sequence[int],
        sites: int,
        device: torch.device,
        names: Sequence[str] = (),
        samples: Sequence[int] = (),
    ) -> None:
        self.end_sites, self.sites, self._device = tuple(end_sites), sites, device
        chosen = [measure(name) for name in names]
        self._at_sites = [m for m in chosen if m.needs is Needs.SITES]
        self._pooled = PooledTable(end_sites, sites, device, chosen, samples)
        self._distance = torch.zeros(len(end_sites), sites, dtype=torch.float64, device=device)
        self._squares = torch.zeros(sites, dtype=torch.float64, device=device)
        self._channels: dict[int, Tensor] = {}
        self._count = [0] * sites

    def target(self, site: int, g: Tensor) -> None:
        """The end's own activation (B, ...) of one batch at a site; once per batch and site."""
        wide = g.double()
        self._squares[site - 1] += wide.square().sum()
        sums = wide.sum([d for d in range(g.dim()) if d != _feature_axis(g)])
        self._channels[site] = self._channels[site] + sums if site in self._channels else sums
        self._count[site - 1] += g.numel()

    def add(self, site: int, lanes: Sequence[int], h: Tensor, g: Tensor, index: Tensor) -> None:
        """Activations h (n*B, ...) of `lanes` at a site, the end's own g (B, ...), and the numbers
        of the images, `index` (B,)."""
        (found,) = kernels.hint_terms([h], [g])
        self._distance[list(lanes), site - 1] += found.double().sum(1)
        if not self._pooled.empty:
            self._pooled.add(site, lanes, h, g, index)

    def columns(self) -> list[dict[str, Any]]:
        """One dict per lane: `term_stitch`, and the columns of the measures asked for."""
        around_mean, around_channels = self._around()
        found = []
        for lane, (site, compared) in enumerate(
            zip(self.end_sites, self._pooled.columns(), strict=True)
        ):
            part = slice(site - 1, None)
            distances = SiteDistances(
                self._distance[lane, part], self._squares[part], around_mean[part],
                around_channels[part],
            )  # fmt: skip
            values = {"term_stitch": terms(distances)[0][0]}
            for each in self._at_sites:
                values |= zip(each.columns, each.load()(distances), strict=True)
            found.append(values | compared)
        return found

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


def stitch_columns(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
    """Columns of the measures among `names` that are of a trained map: `weight` (out, in)."""
    found: dict[str, Any] = {}
    for name in names:
        if (chosen := measure(name)).needs is Needs.STITCH:
            found |= zip(chosen.columns, chosen.load()(state), strict=True)
    return found
