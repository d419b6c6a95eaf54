"""Measures of any two representations, of stitched models and their end donor at every site.

Activations count as their mean over positions: a covariance of all T * D numbers of a transformer
would not fit in memory. Second moments are of all images; pairs of samples of those that are named
in advance, whose rows are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .features import as_matrix
from .matrices import Choice, Sides, bundles, of_moments
from .moments import Moments
from .registry import Features, Measure, Needs

_END = "end"
Column = dict[str, list[float | None]]


@dataclass
class _Together:
    """Lanes that came together at a site: their moments with the end's, and the rows that were
    kept of the lanes, (n, b, p) a batch, and of the end, (b, p)."""

    moments: Moments | None = None
    own: list[Tensor] = field(default_factory=list)
    end: list[Tensor] = field(default_factory=list)


class PooledTable:
    """Gathers lanes and their end donor over batches, then compares them.

    `end_sites`: where each lane joins; `sites`: of the end. `chosen`: of these measures, those of
    second moments and of pairs of samples count. `samples` (n,): numbers of the images whose pairs
    are compared.
    """

    def __init__(
        self,
        end_sites: Sequence[int],
        sites: int,
        device: torch.device,
        chosen: Sequence[Measure],
        samples: Sequence[int] = (),
    ) -> None:
        self.end_sites, self.sites, self._device = tuple(end_sites), sites, device
        self._of_moments = [m for m in chosen if m.needs is Needs.MOMENTS]
        self._of_pairs = [m for m in chosen if m.needs is Needs.PAIRS]
        self._samples = torch.as_tensor(samples, dtype=torch.int64, device=device)
        self._together: dict[tuple[int, tuple[int, ...]], _Together] = {}
        self._dead = torch.zeros(len(end_sites), sites, dtype=torch.bool, device=device)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to gather."""
        return not self._of_moments and not self._of_pairs

    def add(self, site: int, lanes: Sequence[int], h: Tensor, g: Tensor, index: Tensor) -> None:
        """One batch at a site: `lanes`, h (n*B, ...), the end's own g (B, ...), and the numbers of
        the images, `index` (B,)."""
        rows, end = (as_matrix(x, Features.MEAN) for x in (h, g))
        rows = self._finite(site, lanes, rows.unflatten(0, (len(lanes), -1)))
        found = self._together.setdefault((site, tuple(lanes)), _Together())
        if self._of_moments:
            sides = {_END: [end]} | {str(n): [own] for n, own in zip(lanes, rows, strict=True)}
            if found.moments is None:
                widths = {name: [x.shape[1]] for name, (x,) in sides.items()}
                pairs = [(str(lane), _END) for lane in lanes]
                found.moments = Moments(widths, pairs, None, self._device)
            found.moments.add(sides)
        if self._of_pairs:
            taken = torch.isin(index.to(self._device), self._samples).nonzero()[:, 0]
            found.own.append(rows[:, taken])
            found.end.append(end[taken])

    def _finite(self, site: int, lanes: Sequence[int], rows: Tensor) -> Tensor:
        """Rows (n, B, p) of lanes, zeros for one that is not finite: it has no measures, and takes
        none from those beside it."""
        alive = rows.isfinite().flatten(1).all(1)
        self._dead[list(lanes), site - 1] |= ~alive
        return torch.where(alive[:, None, None], rows, 0)

    def columns(self) -> list[Column]:
        """By lane, and by measure: a value for each site from the lane's own to the last; None
        where the lane was not finite, or there were too few images."""
        names = [m.name for m in (*self._of_moments, *self._of_pairs)]
        found: list[Column] = [
            {name: [None] * (self.sites - own + 1) for name in names} for own in self.end_sites
        ]
        dead = self._dead.tolist()
        for (site, lanes), together in self._together.items():
            for lane, values in self._compared(lanes, together):
                place = site - self.end_sites[lane]
                for name, value in values.items() if not dead[lane][site - 1] else ():
                    found[lane][name][place] = value
        return found

    def _compared(
        self, lanes: Sequence[int], together: _Together
    ) -> Iterator[tuple[int, dict[str, float]]]:
        if (moments := together.moments) is not None:
            choice = _defined(self._of_moments, moments.count)
            for lane in lanes:
                yield lane, _numbers(of_moments(moments, str(lane), _END, choice))
        if not self._of_pairs:
            return
        rows, end = torch.cat(together.own, 1), torch.cat(together.end)
        for part in bundles(_defined(self._of_pairs, len(end))):
            prepared = Sides([end], part)
            for lane, own in zip(lanes, rows, strict=True):
                yield lane, _numbers(Sides([own], part).against(prepared))


def _defined(chosen: Sequence[Measure], samples: int) -> Choice:
    """Those that so many samples define, with their own options."""
    return {m.name: {} for m in chosen if samples >= m.least}


def _numbers(found: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}
