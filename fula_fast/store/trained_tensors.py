"""Stitches and running statistics of a run's finished cells, verified as they are read."""

from __future__ import annotations

from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import sealed
from ..files.sealed import STITCHES
from .finished import FinishedCells
from .shards import Shard

if TYPE_CHECKING:
    from torch import Tensor


class TrainedTensors:
    """The tensors beside the shards, found by the cells that are `ok` in them."""

    def __init__(self, finished: FinishedCells) -> None:
        self._finished = finished
        self._verified: dict[Path, dict[str, Tensor]] = {}  # those read last
        self._by_cell: dict[str, list[Shard]] = {}
        self._indexed = 0  # shards that the index knows

    def of(self, cell: str, owner: str) -> dict[str, Tensor]:
        """Those named "owner/…" in the shards of a cell, by the rest of their names."""
        prefix = f"{owner}/"
        if cell not in self._by_cell:  # without listing the folder for each
            self._index()
        for shard in self._by_cell.get(cell, ()):
            if shard.stitches:
                named = self.read(shard)
                found = {
                    n.removeprefix(prefix): t for n, t in named.items() if n.startswith(prefix)
                }
                if found:
                    return found
        return {}

    def read(self, shard: Shard) -> dict[str, Tensor]:
        """All tensors of a shard; those of the last one are kept at hand.

        Raises `Damaged` or `FileNotFoundError`.
        """
        if shard.path not in self._verified:
            tensors, _ = sealed.read_tensors(shard.stitches, STITCHES, digest=shard.digest)
            self._verified = {shard.path: tensors}
        return self._verified[shard.path]

    def forget(self) -> None:
        """A shard was found damaged and dropped: which cells are where is looked up again."""
        self._by_cell, self._indexed = {}, 0

    def _index(self) -> None:
        shards = self._finished.shards()
        if len(shards) != self._indexed:
            self._by_cell, self._indexed = {}, len(shards)
            for shard in shards:
                for cell in compress(shard.cells, shard.ok):
                    self._by_cell.setdefault(cell, []).append(shard)
