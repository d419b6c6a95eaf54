"""How workers share a plan's waves, predicted: each takes the next one when it is free."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


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
