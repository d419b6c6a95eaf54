"""What lanes are compared with at the end's sites in one step, and how far from it they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from .lanes import Lane, take_lanes, take_rows

Targets = Mapping[int, tuple[tuple[int, ...], Tensor]]
"""{site: (lanes, native activation (n*B, ...))}; without lanes the activation (B, ...) serves all.
"""


class Distances(NamedTuple):
    """Of a step, all terms together: the (site, lane) of each row, squared distances `dist2` (n,
    B), and squared norms of the targets `norm2` (n, B)."""

    places: tuple[tuple[int, int], ...]
    dist2: Tensor
    norm2: Tensor


class Aims:
    """Squared distances of a step's lanes to their targets, gathered while the lanes travel.

    Where one target serves all lanes, the operator that makes an activation measures it as well
    (`shared` says with what to compare); elsewhere `compare` takes the activation.
    """

    def __init__(self, lanes: Sequence[Lane], targets: Targets) -> None:
        self.lanes, self.targets = lanes, targets
        self._found: list[tuple[int, tuple[int, ...], Tensor]] = []

    def _wanted(self, site: int, lanes: Sequence[int]) -> list[int]:
        """Places among `lanes` of those whose loss has a term at this site."""
        return [p for p, n in enumerate(lanes) if self.lanes[n].site_weights[site - 1]]

    def shared(self, site: int, lanes: Sequence[int]) -> Tensor | None:
        """The target (B, ...) that some of `lanes` need here, where it is one for all."""
        if not self._wanted(site, lanes) or self.targets[site][0]:
            return None
        return self.targets[site][1]

    def add(self, site: int, lanes: Sequence[int], dist2: Tensor) -> None:
        """Distances (n, B) of `lanes` to the shared target; those that nobody wants are dropped in
        the end."""
        self._found.append((site, tuple(lanes), dist2))

    def compare(self, site: int, lanes: Sequence[int], activation: Tensor) -> None:
        """Measure the activation (n*B, ...) of `lanes`."""
        wanted = self._wanted(site, lanes)
        if not wanted:
            return
        chosen = tuple(lanes[p] for p in wanted)
        picked = take_lanes(activation, len(lanes), wanted)
        dist2 = kernels.hint_terms([picked], [self._target(site, chosen)])[0]
        self._found.append((site, chosen, dist2.view(len(chosen), -1)))

    def _target(self, site: int, lanes: Sequence[int]) -> Tensor:
        """The target (B, ...) of all, or those (n*B, ...) of `lanes`."""
        served, g = self.targets[site]
        return take_lanes(g, len(served), [served.index(n) for n in lanes]) if served else g

    def distances(self) -> Distances | None:
        """Everything that was measured."""
        if not self._found:
            return None
        rows, places, seen = [], [], 0
        for site, lanes, _ in self._found:
            wanted = self._wanted(site, lanes)
            rows += [seen + p for p in wanted]
            places += [(site, lanes[p]) for p in wanted]
            seen += len(lanes)
        dist2 = take_rows(torch.cat([d for *_, d in self._found]), tuple(rows))
        return Distances(tuple(places), dist2, self._norms(places))

    def _norms(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """Squared norms (n, B) of the targets of those lanes at those sites, each taken once."""
        tables, rows, seen = [], {}, 0
        for site in dict.fromkeys(site for site, _ in places):
            served, g = self.targets[site]
            table = kernels.squared_norm(g).view(max(len(served), 1), -1)
            rows |= {(site, n): seen + at for at, n in enumerate(served)} or {site: seen}
            tables.append(table)
            seen += len(table)
        chosen = tuple(rows[place if place in rows else place[0]] for place in places)
        return take_rows(torch.cat(tables), chosen)
