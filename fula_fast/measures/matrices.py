"""Chosen measures over all pairs of sites: from moments, of samples in memory, under permutations.

A choice is `{measure name: its options}`. Preparations (kernels, neighbourhoods, spectra) are made
once per side and shared by the measures that compare the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FulaError
from .moment_memory import WORK_BYTES
from .moments import Moments
from .outputs import Outputs
from .pair import Ordered, Side, of_sides
from .registry import Measure, Needs, Option, measure

Choice = Mapping[str, Mapping[str, Option]]


def between(name: str, x: Any, y: Any, **options: Option) -> float:
    """One measure of two matrices (n, p), (n, q) of the same samples in the same order, or of two
    `Outputs`. Raises `FulaError` on unknown names and options and on too few samples."""
    found = Sides([x], {name: options}).against(Sides([y], {name: options}))[name]
    return float(found[0, 0])


def of_moments(
    moments: Moments, x: str, y: str, choice: Choice, y_sites: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Measures of second moments for all site pairs of two groups: name -> (sites x, sites y).

    `y_sites`: these sites of y alone, from 0, in this order. Raises `FulaError` for a measure that
    needs samples.
    """
    functions = {name: _comparison(name, options) for name, options in choice.items()}
    for name in choice:
        if measure(name).needs is not Needs.MOMENTS:
            raise FulaError(f"{name} needs {measure(name).needs}, not moments; use `Sides`")
    columns = range(moments.sites(y)) if y_sites is None else y_sites
    shape = moments.sites(x), len(columns)
    found = {name: torch.empty(shape, dtype=torch.float64) for name in choice}
    for i in range(shape[0]):
        for place, j in enumerate(columns):
            pair = moments.pair((x, i), (y, j))
            for name, function in functions.items():
                found[name][i, place] = function(pair)
    return found


@dataclass(frozen=True)
class _Group:
    """Measures that compare the same preparation: the prepared sides, each measure's function."""

    sides: list[Any]
    functions: dict[str, Callable[..., Tensor]]


def bundles(choice: Choice) -> list[dict[str, Mapping[str, Option]]]:
    """The choice in parts that compare the same preparation, to be made one after the other where
    all preparations at once would not fit in memory."""
    found: dict[Any, dict[str, Mapping[str, Option]]] = {}
    for name, options in choice.items():
        key, _ = _preparation(measure(name), options)
        found.setdefault(key, {})[name] = options
    return list(found.values())


class Sides:
    """Representations of one model, prepared for the chosen measures.

    `sides`: matrices (n, p) site by site, all of the same samples; for measures of outputs,
    `Outputs`.
    """

    def __init__(self, sides: Sequence[Any], choice: Choice) -> None:
        self.choice = {name: dict(options) for name, options in choice.items()}
        self.samples = _samples(sides, [measure(name) for name in choice])
        self._count = len(sides)
        self._groups: dict[Any, _Group] = {}
        for name, options in self.choice.items():
            key, prepare = _preparation(measure(name), options)
            if key not in self._groups:
                self._groups[key] = _Group([prepare(side) for side in sides], {})
            self._groups[key].functions[name] = _comparison(name, options)

    def __len__(self) -> int:
        return self._count

    def against(self, other: Sides, orders: Tensor | None = None) -> dict[str, Tensor]:
        """name -> (I, J), these sides first; (K, I, J) in `orders` (K, n) of the other's rows.

        Raises `FulaError` where the sides were made for other measures or of other samples.
        """
        if self.choice != other.choice:
            raise FulaError(f"{other.choice} was prepared for other measures than {self.choice}")
        if self.samples != other.samples:
            raise FulaError(
                f"{self.samples} and {other.samples} samples: both sides need the same images, in "
                "one order"
            )
        found: dict[str, Tensor] = {}
        for key, group in self._groups.items():
            found |= _scores(group, other._groups[key].sides, orders)
        return {name: found[name] for name in self.choice}


def _scores(group: _Group, others: list[Any], orders: Tensor | None) -> dict[str, Tensor]:
    """A group's measures of its sides (I) against others (J)."""
    lead = () if orders is None else (len(orders),)
    shape = (*lead, len(group.sides), len(others))
    found = {name: torch.empty(shape, dtype=torch.float64) for name in group.functions}
    for j, y in enumerate(others):
        for part, arranged in _arranged(y, orders, group):
            for i, x in enumerate(group.sides):
                compared = (of_sides(x, arranged),) if isinstance(x, Side) else (x, arranged)
                for name, function in group.functions.items():
                    found[name][(*part, i, j)] = function(*compared)
    return found


def _arranged(y: Any, orders: Tensor | None, group: _Group) -> Iterator[tuple[tuple, Any]]:
    """A side as it is, or in as many orders at a time as memory allows, with their place."""
    if orders is None:
        yield (), y
        return
    size = max(1, WORK_BYTES // max(_work(x, y) for x in group.sides))
    for start in range(0, len(orders), size):
        part = slice(start, start + size)
        yield (part,), _ordered(y, orders[part])


def _ordered(side: Any, orders: Tensor) -> Any:
    if isinstance(side, Side):
        return Ordered.of(side, orders)
    if isinstance(side, Outputs):
        return side.ordered(orders)
    if isinstance(side, tuple):
        return tuple(_ordered(part, orders) for part in side)
    orders = orders.to(side.device)
    rows = side[orders]  # (K, n, n)
    return rows.gather(2, orders[:, None, :].expand_as(rows))


def _work(x: Any, y: Any) -> int:
    """About the bytes that comparing two prepared sides in one order takes."""
    if isinstance(x, Side):
        d, e = x.rows.shape[1], y.rows.shape[1]
        return 8 * (y.samples * e + 6 * d * e)
    if isinstance(x, Outputs):
        return 8 * 8 * x.logits.numel()
    parts = y if isinstance(y, tuple) else (y,)
    return 8 * sum(4 * part.numel() for part in parts)


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


def _samples(sides: Sequence[Any], chosen: Sequence[Measure]) -> int:
    counts = {len(side.right) if isinstance(side, Outputs) else len(side) for side in sides}
    if len(counts) != 1:
        raise FulaError(f"{sorted(counts)} samples at the sites: all need the same images")
    (n,) = counts
    for record in chosen:
        if n < record.least:
            raise FulaError(
                f"{n} sample(s): {record.name} needs at least {record.least}; give more images"
            )
    return n
