"""The grid in blocks: all cells of a pair of donors under a protocol are a product of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from .cells import COLUMNS


@dataclass(frozen=True)
class Axes:
    """What every block varies: positions in `Words`, and (seed, data seed) pairs."""

    alpha: tuple[int, ...]
    shortcut: tuple[int, ...]
    subset: tuple[int, ...]
    seeds: tuple[tuple[int, int], ...]

    @property
    def marks(self) -> tuple[tuple[int, int], ...]:
        """Every shortcut with every subset."""
        return tuple(product(self.shortcut, self.subset))


@dataclass(frozen=True, eq=False)
class SitePairs:
    """The pairs of sites between two donors. `sites`: (N, 2). `like`: (N,), whether both have the
    same form. `depths`: numbers of terms behind an end site, each once. `depth`: (N,), which."""

    sites: np.ndarray
    like: np.ndarray
    depths: tuple[int, ...]
    depth: np.ndarray


@dataclass(frozen=True, eq=False)
class GridBlock:
    """All cells of a pair of donors under a protocol, in this order of axes: sites, alpha,
    shortcut, subset, treatments, seeds.

    `front`, `end`: donors by position. `treatments`: for each depth of the layout the same number
    of them, as positions in `Words.treatments`.
    """

    front: int
    end: int
    layout: SitePairs
    treatments: tuple[tuple[int, ...], ...]


def columns_of(blocks: Sequence[GridBlock], axes: Axes) -> dict[str, np.ndarray]:
    """The columns of all cells of the blocks."""

    @cache
    def shared(layout: SitePairs, variants: int) -> dict[str, np.ndarray]:
        return _shared(layout, variants, axes)

    parts = [
        _own(block, len(axes.alpha) * len(axes.marks), len(axes.seeds))
        | shared(block.layout, len(block.treatments[0]))
        for block in blocks
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _own(block: GridBlock, outer: int, inner: int) -> dict[str, np.ndarray]:
    """Columns that differ from block to block: between sites and treatments lie `outer` values,
    behind them `inner`."""
    rows = np.asarray(block.treatments, np.int32)[block.layout.depth]
    treatment = np.repeat(np.repeat(rows[:, None], outer, 1).ravel(), inner)
    donors = {"front": block.front, "end": block.end}
    found = {name: np.full(len(treatment), code, np.int32) for name, code in donors.items()}
    return found | {"treatment": treatment}


def _shared(layout: SitePairs, variants: int, axes: Axes) -> dict[str, np.ndarray]:
    """The other columns."""
    counts = len(axes.alpha), len(axes.shortcut), len(axes.subset), variants, len(axes.seeds)
    shape, seeds = (len(layout.sites), *counts), np.array(axes.seeds, np.int64)
    along = {
        "front_site": (layout.sites[:, 0], 0), "end_site": (layout.sites[:, 1], 0),
        "alpha": (axes.alpha, 1), "shortcut": (axes.shortcut, 2), "subset": (axes.subset, 3),
        "seed": (seeds[:, 0], 5), "data_seed": (seeds[:, 1], 5),
    }  # fmt: skip
    return {n: _spread(COLUMNS[n], v, shape, axis) for n, (v, axis) in along.items()}


def _spread(kind: str, values: Any, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """A column whose values change along one axis of the block."""
    own = [1] * len(shape)
    own[axis] = -1
    return np.broadcast_to(np.reshape(np.asarray(values, kind), own), shape).ravel()
