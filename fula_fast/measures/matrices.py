"""Chosen measures over all pairs of sites: from moments, from samples in memory, under permutations.

A choice is `{measure name: its options}`. Preparations (kernels, neighbourhoods, spectra) are made
once per side and shared by the measures that compare the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import FulaError
from .moments import Moments
from .outputs import Outputs
from .pair import Side, of_sides
from .registry import Measure, Needs, Option, measure

Choice = Mapping[str, Mapping[str, Option]]
WORK_BYTES = 2**28
"""How much memory the orders that are compared at once may take."""


def between(name: str, x: Any, y: Any, **options: Option) -> float:
    """One measure of two matrices (n, p), (n, q) of the same samples in the same order, or of two
    `Outputs`. Raises `FulaError` on unknown names and options and on too few samples."""
    found = Sides([x], {name: options}).against(Sides([y], {name: options}))[name]
    return float(found[0, 0])


def of_moments(moments: Moments, x: str, y: str, choice: Choice) -> dict[str, Tensor]:
    """Measures of second moments for all site pairs of two groups: name -> (sites x, sites y)."""
    functions = {name: _comparison(name, options) for name, options in choice.items()}
    for name in choice:
        if measure(name).needs is not Needs.MOMENTS:
            raise FulaError(f"{name} needs {measure(name).needs}, not moments; use `Sides`")
    sites = [range(moments.sites(group)) for group in (x, y)]
    found = {name: torch.empty(*map(len, sites), dtype=torch.float64) for name in choice}
    for i in sites[0]:
        for j in sites[1]:
            pair = moments.pair((x, i), (y, j))
            for name, function in functions.items():
                found[name][i, j] = function(pair)
    return found


class Sides:
    """Representations of one model, prepared for the chosen measures.

    `sides`: matrices (n, p) site by site, all of the same samples; for measures of outputs, `Outputs`.
    """

    def __init__(self, sides: Sequence[Any], choice: Choice) -> None:
        self.choice = {name: dict(options) for name, options in choice.items()}
        self.samples = _samples(sides, [measure(name) for name in choice])
        prepared: dict[Any, list[Any]] = {}
        self._prepared = {}
        for name, options in self.choice.items():
            key, prepare = _preparation(measure(name), options)
            if key not in prepared:
                prepared[key] = [prepare(side) for side in sides]
            self._prepared[name] = prepared[key]
        self._of = sides

    def __len__(self) -> int:
        return len(self._of)

    def against(self, other: Sides, orders: Tensor | None = None) -> dict[str, Tensor]:
        """name -> (I, J), these sides first; with `orders` (K, n) of the other's samples, (K, I, J)."""
        if self.choice != other.choice:
            raise FulaError(f"{other.choice} was prepared for other measures than {self.choice}")
        if self.samples != other.samples:
            raise FulaError(
                f"{self.samples} and {other.samples} samples: both sides need the same images, in "
                "one order"
            )
        if orders is None:
            return self._scores(other, None)
        size = max(1, WORK_BYTES // self._bytes_per_order(other))
        parts = [self._scores(other, part) for part in orders.split(size)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.choice}

    def _scores(self, other: Sides, order: Tensor | None) -> dict[str, Tensor]:
        shape = ((len(order),) if order is not None else ()) + (len(self), len(other))
        found = {name: torch.empty(shape, dtype=torch.float64) for name in self.choice}
        for j in range(len(other)):
            seen: dict[int, Any] = {}
            for i in range(len(self)):
                for name, function in self._functions().items():
                    x, y = self._prepared[name][i], other._prepared[name][j]
                    found[name][..., i, j] = function(*_brought(x, y, order, seen))
        return found

    def _functions(self) -> dict[str, Callable[..., Tensor]]:
        return {name: _comparison(name, options) for name, options in self.choice.items()}

    def _bytes_per_order(self, other: Sides) -> int:
        """About what comparing one order of one pair of sides takes."""
        n, needs = self.samples, {measure(name).needs for name in self.choice}
        if Needs.PAIRS in needs:
            return 8 * n * n * 8
        wide = [s.rows.shape[1] for side in (self, other) for p in side._prepared.values()
                for s in p if isinstance(s, Side)]  # fmt: skip
        widest = max(wide, default=max((_width(s) for s in other._of), default=1))
        return 8 * (n * widest + 6 * widest * widest)


def _preparation(
    record: Measure, options: Mapping[str, Option]
) -> tuple[Any, Callable[[Any], Any]]:
    """A key that measures of equal preparation share, and the preparation of one side."""
    given = record.bound(options)
    if record.needs is Needs.OUTPUTS:
        return Needs.OUTPUTS, lambda side: side
    prepare = record.load_prepare()
    if record.needs is Needs.MOMENTS:
        return Needs.MOMENTS, prepare
    return (record.prepare, *sorted(given.items())), lambda side: prepare(side, **given)


def _comparison(name: str, options: Mapping[str, Option]) -> Callable[..., Tensor]:
    record = measure(name)
    given, function = record.bound(options), record.load()
    if record.needs is Needs.PAIRS:
        return function
    return lambda *sides: function(*sides, **given)


def _brought(x: Any, y: Any, order: Tensor | None, seen: dict[Any, Any]) -> tuple[Any, ...]:
    """What the comparison is given: a `Pair`, or both sides, the second in `order`. `seen` keeps what
    measures share: pairs of the same sides, and sides in their order."""
    if isinstance(x, Side):
        key = id(x), id(y)
        if key not in seen:
            seen.clear()  # a pair's singular values are needed by its own measures alone
            seen[key] = of_sides(x, y, order)
        return (seen[key],)
    if order is None:
        return x, y
    return x, _ordered(y, order)


def _ordered(side: Any, order: Tensor) -> Any:
    if isinstance(side, Outputs):
        return side.ordered(order)
    if isinstance(side, tuple):
        return tuple(_ordered(part, order) for part in side)
    return side[order[:, :, None], order[:, None, :]]


def _samples(sides: Sequence[Any], chosen: Sequence[Measure]) -> int:
    counts = {_count(side) for side in sides}
    if len(counts) != 1:
        raise FulaError(f"{sorted(counts)} samples at the sites: all need the same images")
    (n,) = counts
    for record in chosen:
        if n < record.least:
            raise FulaError(
                f"{n} sample(s): {record.name} needs at least {record.least}; give more images"
            )
    return n


def _count(side: Any) -> int:
    return len(side.right) if isinstance(side, Outputs) else len(side)


def _width(side: Any) -> int:
    return side.logits.shape[-1] if isinstance(side, Outputs) else side.shape[1]
