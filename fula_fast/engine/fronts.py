"""What stitches read: the front's activations of one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..stitching.stitch import resize
from .bank import Group
from .lanes import take_lanes


class Fronts:
    """Front activations by site, as the groups of a bank take them: stacked and resized, each once.

    `order` None: one batch serves all lanes, {site: (B, ...)}. Else `order[site]` are the lanes
    behind {site: (n*B, ...)}, each with its own.
    """

    def __init__(
        self, found: Mapping[int, Tensor], order: Mapping[int, Sequence[int]] | None
    ) -> None:
        self._found, self._order = found, order
        self._made: dict[tuple, Tensor] = {}

    @property
    def own(self) -> bool:
        """Whether each lane has activations of its own."""
        return self._order is not None

    def of(self, group: Group) -> Tensor:
        """(S, B, ...) for `group.sources`; (lanes, B, ...) where each lane has its own."""
        if self._order is not None:
            return self._own(group)
        key = group.sites, group.entry_size
        if key not in self._made:
            self._made[key] = self._stacked(*key)
        return self._made[key]

    def forget(self) -> None:
        """Drop what was stacked and resized: lanes of the next turn have other sites."""
        self._made.clear()

    def _stacked(self, sites: Sequence[int], size: tuple[int, ...] | None) -> Tensor:
        parts = [self._found[site] for site in sites]
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (x if size is None else resize(x, size)).unflatten(0, (len(sites), -1))

    def _own(self, group: Group) -> Tensor:
        (site,) = group.sites
        order = self._order[site]
        x = take_lanes(self._found[site], len(order), [order.index(n) for n in group.lanes])
        x = x if group.entry_size is None else resize(x, group.entry_size)
        return x.unflatten(0, (group.count, -1))
