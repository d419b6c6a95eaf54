"""Measures taken site by site on a test set, for all lanes of a wave or for one cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from .cka import LinearCKA
from .rank import stitch_spectrum


class SiteTable:
    """Distances of lanes to their end donor at every site, gathered over batches in eval mode.

    `end_sites`: site at which each lane joins. `sites`: of the end. `names`: optional columns among
    terms, r2, penultimate, cka, cka_unbiased; `term_stitch` is always there.
    """

    def __init__(
        self, end_sites: Sequence[int], sites: int, device: torch.device, names: Sequence[str] = ()
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.end_sites, self.sites, self.names = tuple(end_sites), sites, tuple(names)
        self._distance = zeros(len(end_sites), sites)
        self._sums = zeros(sites, 2)  # of g and of g^2
        self._count = [0] * sites
        self._cka = {
            name: [LinearCKA(unbiased=name == "cka_unbiased") for _ in end_sites]
            for name in ("cka", "cka_unbiased")
            if name in names
        }

    def target(self, site: int, g: Tensor) -> None:
        """The end's own activation (B, ...) of one batch at a site; once per batch and site."""
        wide = g.double()
        self._sums[site - 1] += torch.stack((wide.sum(), wide.square().sum()))
        self._count[site - 1] += g.numel()

    def add(self, site: int, lanes: Sequence[int], h: Tensor, g: Tensor) -> None:
        """Activations h (n*B, ...) of `lanes` at a site, and the end's own g (B, ...)."""
        (found,) = kernels.hint_terms([h], [g])
        self._distance[list(lanes), site - 1] += found.double().sum(1)
        if self._cka and site == self.sites:
            self._add_cka(lanes, h.unflatten(0, (len(lanes), -1)), g)

    def _add_cka(self, lanes: Sequence[int], h: Tensor, g: Tensor) -> None:
        for measures in self._cka.values():
            for lane, own in zip(lanes, h, strict=True):
                measures[lane].add(pooled(own), pooled(g))

    def columns(self) -> list[dict[str, Any]]:
        """One dict per lane: `term_stitch`, and the optional columns asked for.

        `terms`, `r2`: lists from the lane's own site to the last. `penultimate`: term at the last
        site. `cka`: between stitched model and end donor there, features averaged over positions.
        """
        terms = (self._distance / self._sums[:, 1]).sqrt().tolist()
        r2 = self._r_squared().tolist()
        found = []
        for lane, site in enumerate(self.end_sites):
            every = {
                "terms": terms[lane][site - 1 :],
                "r2": r2[lane][site - 1 :],
                "penultimate": terms[lane][-1],
                **{name: measures[lane].result() for name, measures in self._cka.items()},
            }
            asked = {name: every[name] for name in self.names if name in every}
            found.append({"term_stitch": terms[lane][site - 1], **asked})
        return found

    def _r_squared(self) -> Tensor:
        """1 - residual mean square over the target's mean square around its one global mean."""
        count = self._sums.new_tensor(self._count)
        around = self._sums[:, 1] - self._sums[:, 0].square() / count
        return 1 - self._distance / around


def pooled(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) and tokens (B, T, D) to their mean over positions; vectors as they are.

    A covariance of all T * D numbers of a transformer would not fit in memory.
    """
    if x.dim() == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.dim() == 3 else x


def stitch_columns(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
    """`stitch_rank` and `stitch_condition` of a trained map, where `rank` is asked for."""
    if "rank" not in names:
        return {}
    rank, condition = stitch_spectrum(state["weight"])
    return {"stitch_rank": int(rank), "stitch_condition": float(condition)}
