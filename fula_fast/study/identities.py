"""Ids of many cells at once: the same digests as `cell_id`, hashed in parts that cells share.

The canonical JSON of a cell's identity is cut where cells of a block differ: behind its data seed,
behind its seed, and at its sites. What stands before is hashed once for all that share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .cell import Cell, Context, identity
from .cells import Words
from .grid_blocks import Axes, GridBlock, SitePairs

_BEFORE, _SHARED, _AFTER = (
    ("alpha", "classes", "data"),
    ("like", "objective", "protocol"),
    ("shortcut", "sites", "subset"),
)
"""Names in the order of canonical JSON; `data_seed`, `end` and `front` stand between the first two,
`seed` between the last two."""


@dataclass(frozen=True)
class _Start:
    """The text of an identity before its data seed and before its seed; whether that acts."""

    before: str
    shared: str
    seeded: bool


class Identities:
    """Digests of the cells of blocks. `recipes`: digests of the donors' recipes; `data`: of the
    data's identity; `classes`: of the data."""

    def __init__(
        self, words: Words, axes: Axes, recipes: Sequence[str], data: str, classes: int
    ) -> None:
        self.words, self.axes = words, axes
        self.recipes, self.data, self.classes = recipes, data, classes
        self._start = cache(self._started)
        self._classes = cache(self._classed)

    def of(self, block: GridBlock) -> np.ndarray:
        """The first 8 bytes of each cell's digest (uint64), in the block's order."""
        axes, variants = self.axes, len(block.treatments[0])
        outer = len(block.layout.sites), len(axes.alpha), len(axes.marks)
        found = np.empty((*outer, variants, len(axes.seeds)), np.uint64)
        same = tuple(map(block.treatments.index, block.treatments))
        for row, like, places, tails in self._classes(block.layout, same):
            for v, treatment in enumerate(block.treatments[row]):
                for a, alpha in enumerate(axes.alpha):
                    part = self._digests(block, self._start(treatment, alpha, like), tails)
                    part = part.reshape(len(axes.seeds), len(places), len(axes.marks))
                    found[places, a, :, v] = part.transpose(1, 2, 0)
        return found.ravel()

    def _classed(
        self, layout: SitePairs, same: tuple[int, ...]
    ) -> list[tuple[int, bool, np.ndarray, list[bytes]]]:
        """The pairs of sites by what else than their numbers is in their cells' identities: row of
        treatments and likeness; with their places, and what follows the seed in the text."""
        codes = 2 * np.array(same)[layout.depth] + layout.like
        found = []
        for code in np.unique(codes):
            (places,) = np.nonzero(codes == code)
            sites = layout.sites[places].tolist()
            tails = [self._tail(*pair, *mark) for pair in sites for mark in self.axes.marks]
            found.append((int(code) // 2, bool(code % 2), places, tails))
        return found

    def _digests(self, block: GridBlock, start: _Start, tails: Sequence[bytes]) -> np.ndarray:
        digests: list[bytes] = []
        donors = f'"end":"{self.recipes[block.end]}","front":"{self.recipes[block.front]}"'
        for seed, data_seed in self.axes.seeds:
            own = seed if start.seeded else "null"
            text = f'{{{start.before},"data_seed":{data_seed},{donors},{start.shared},"seed":{own},'
            _hash(hashlib.sha256(text.encode()), tails, digests)
        return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 4)[:, 0]

    def _started(self, treatment: int, alpha: int, like: bool) -> _Start:
        how = self.words.treatments[treatment]
        share = self.words.alpha[alpha]
        cell = Cell("", "", 1, 1, how.method, how.objective, how.protocol, share,
                    stages=how.stages, combine=how.combine)  # fmt: skip
        found = identity(cell, Context("", "", self.data, self.classes, like))
        return _Start(_text(found, _BEFORE), _text(found, _SHARED), found["seed"] is not None)

    def _tail(self, front_site: int, end_site: int, shortcut: int, subset: int) -> bytes:
        mark, classes = self.words.shortcut[shortcut], self.words.subset[subset]
        cell = Cell("", "", front_site, end_site, "", {}, self.words.treatments[0].protocol,
                    shortcut=mark, subset=classes)  # fmt: skip
        found = identity(cell, Context("", "", self.data, self.classes, like=True))
        return (_text(found, _AFTER) + "}").encode()


def _hash(start: Any, tails: Iterable[bytes], digests: list[bytes]) -> None:
    for tail in tails:
        found = start.copy()
        found.update(tail)
        digests.append(found.digest())


def _text(found: dict[str, Any], names: Sequence[str]) -> str:
    """A part of canonical JSON, without braces."""
    part = {name: found[name] for name in names}
    return json.dumps(part, sort_keys=True, separators=(",", ":"))[1:-1]
