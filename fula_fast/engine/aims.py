"""What lanes are compared with at the end's sites in one step, and how far from it they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from .. import kernels
from .lanes import Lane, take_lanes

Targets = Mapping[int, tuple[tuple[int, ...], Tensor]]
"""{site: (lanes, native activation (n*B, ...))}; without lanes the activation (B, ...) serves all."""


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
        """Distances (n, B) of `lanes` to the shared target; those that nobody wants are dropped."""
        wanted = self._wanted(site, lanes)
        chosen = tuple(lanes[p] for p in wanted)
        self._found.append((site, chosen, take_lanes(dist2, len(lanes), wanted)))

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

    def found(self) -> Iterator[tuple[int, tuple[int, ...], Tensor, Tensor]]:
        """(site, lanes, squared distances (n, B), squared norms of the targets (n, B) or (B,))."""
        norms: dict[tuple, Tensor] = {}
        for site, lanes, dist2 in self._found:
            key = (site, lanes if self.targets[site][0] else ())
            if key not in norms:
                norm2 = kernels.squared_norm(self._target(site, lanes))
                norms[key] = norm2.view(len(lanes), -1) if key[1] else norm2
            yield site, lanes, dist2, norms[key]
