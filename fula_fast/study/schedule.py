"""How workers share a plan's waves, predicted: each takes the next one when it is free. What waves
cost is predicted by their FLOPs, and corrected by what finished ones took."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Schedule:
    """`busy`: work of each worker, in the unit of the waves' costs; `makespan`: until all have
    ended; `efficiency`: share of that time in which workers work, in (0, 1]."""

    busy: tuple[float, ...]

    @property
    def makespan(self) -> float:
        return max(self.busy)

    @property
    def efficiency(self) -> float:
        return sum(self.busy) / (len(self.busy) * self.makespan) if self.makespan else 1.0


def schedule(costs: Sequence[float], workers: int) -> Schedule:
    """The waves in their order, each to the worker that is free first (list scheduling: at most
    2 - 1/workers times the best; Graham 1966)."""
    free = [(0.0, number) for number in range(workers)]
    busy = [0.0] * workers
    for cost in costs:
        until, number = heapq.heappop(free)
        busy[number] = until + cost
        heapq.heappush(free, (busy[number], number))
    return Schedule(tuple(busy))


def corrected(
    costs: Sequence[float],
    kinds: Sequence[Hashable],
    shares: Sequence[float],
    seconds: Sequence[float],
) -> list[float] | None:
    """Seconds that each whole wave takes: its cost times the median of seconds / cost over waves of
    its kind that are finished, over all finished ones where none is of its kind.

    `shares`: how much of each wave is finished, 0 to 1; `seconds`: what that took. None where no
    wave has both: nothing is known yet. A median, as a worker that was disturbed, or that went on
    with another's wave, measures only what it did itself.
    """
    rates = defaultdict(list)
    for cost, kind, share, taken in zip(costs, kinds, shares, seconds, strict=True):
        if cost and share and taken:
            rates[kind].append(taken / (cost * share))
    if not rates:
        return None
    every = median([rate for found in rates.values() for rate in found])
    by_kind = {kind: median(found) for kind, found in rates.items()}
    return [cost * by_kind.get(kind, every) for cost, kind in zip(costs, kinds, strict=True)]
