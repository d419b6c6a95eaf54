"""Cells to waves: packed to a memory budget, and cut so that all workers end together.

Lanes whose wave is above the budget take turns in it, as long as they share anything: what they
share is then computed once a step all the same. Those that do not fit so are several waves.

What a lane costs depends on few of its cell's columns: its sites, its objective's reach and its
attack. Lanes are therefore counted by kind, and groups of equal kinds (the same grid under another
seed) are packed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from ..device.precision import precision_of
from ..errors import FulaError
from ..measures.moment_memory import CellMeasures
from . import wave_memory
from .cell import Cell
from .cells import Cells, combined
from .costs import lane_flops, shared_flops
from .facts import DonorFacts
from .schedule import schedule
from .wave_memory import LaneBytes

EVEN = 0.95
"""Share of workers' time at work from which waves are not cut further."""
_HALVINGS = 20


@dataclass(frozen=True)
class PairCosts:
    """What the waves of a group have in common: the facts of its donors, the images of a batch,
    all training steps, and what its cells are tested with."""

    front: DonorFacts
    end: DonorFacts
    batch: int
    steps: int
    measured: CellMeasures = wave_memory.UNMEASURED


@dataclass(frozen=True, eq=False)
class WaveLanes:
    """Cells of one group that run together: positions in the plan's cells, and their kinds; turn by
    turn, `turns` of each, where they take turns."""

    group: int
    places: np.ndarray
    kinds: np.ndarray
    turns: tuple[int, ...] = ()

    def at(self, own: np.ndarray) -> WaveLanes:
        """Those at places `own` (n,)."""
        return WaveLanes(self.group, self.places[own], self.kinds[own])


def turn_of(ids: Sequence[str], turns: Sequence[int]) -> dict[str, int]:
    """The turn by cell id, of cells that stand turn by turn, `turns` of each; empty if in one."""
    numbers = np.repeat(np.arange(len(turns)), turns).tolist()
    return dict(zip(ids, numbers, strict=True)) if turns else {}


def kinds_of(cells: Cells) -> tuple[np.ndarray, list[Cell]]:
    """Numbers of cells that cost alike between the same donors, and a cell of each."""
    columns, words = cells.columns, cells.words
    works: dict[Hashable, int] = {}
    work = np.empty((len(words.treatments), len(words.alpha)), np.int32)
    for t, how in enumerate(words.treatments):
        parts = [(s.epochs, *sorted(s.objective)) for s in how.stages]
        named = how.combine, *(parts or sorted(how.objective))
        reach = named, how.protocol.attack.steps
        for a, alpha in enumerate(words.alpha):
            work[t, a] = works.setdefault((*reach, alpha) if alpha else reach[:1], len(works))
    own = work[columns["treatment"], columns["alpha"]]
    kinds = combined(columns["front_site"], columns["end_site"], own).astype(np.int32)
    _, first = np.unique(kinds, return_index=True)
    return kinds, list(cells.take(first))


class Packer:
    """Makes waves of groups of cells. `pairs`: of each group. `budget`: bytes of a wave (None: no
    limit) on the `device`; `fused`: compiled kernels serve there; `alone`: every cell is a wave."""

    def __init__(
        self, pairs: Sequence[PairCosts], kinds: Sequence[Cell], precision: str, budget: int | None,
        fused: bool, alone: bool, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.pairs, self.kinds = pairs, kinds
        self.width = precision_of(precision).bytes
        self.budget, self.fused, self.alone, self.device = budget, fused, alone, device
        self._rates: dict[Hashable, _Rates] = {}
        known = {id(pair): self._rates_of(pair) for pair in {id(p): p for p in pairs}.values()}
        self._of_pair = [known[id(pair)] for pair in pairs]
        self._known: dict[Hashable, list[np.ndarray]] = {}

    def packed(self, lanes: WaveLanes) -> list[WaveLanes]:
        """The group's cells in as few waves as the budget allows."""
        rates = self._of_pair[lanes.group]
        return self._parts(lanes, ("packed", rates.number), lambda: self._packed(lanes, rates))

    def in_turns(self, lanes: WaveLanes) -> WaveLanes:
        """The wave with the turns that it needs: as few as the budget allows, the deepest end sites
        first."""
        rates = self._of_pair[lanes.group]
        parts = self._parts(lanes, ("turns", rates.number), lambda: self._turns(lanes.kinds, rates))
        if len(parts) == 1:
            return lanes
        places, kinds = (
            np.concatenate([getattr(p, n) for p in parts]) for n in ("places", "kinds")
        )
        return WaveLanes(lanes.group, places, kinds, tuple(len(part.places) for part in parts))

    def memory(self, lanes: WaveLanes) -> int:
        """Predicted peak bytes of a wave."""
        rates = self._of_pair[lanes.group]
        turns = np.split(lanes.kinds, np.cumsum(lanes.turns)[:-1])
        return rates.shared(lanes.kinds) + rates.lanes_bytes(turns, self.device)

    def flops(self, lanes: WaveLanes) -> int:
        """FLOPs of a wave's training."""
        pair = self.pairs[lanes.group]
        return pair.steps * pair.batch * self._of_pair[lanes.group].flops(lanes.kinds)

    def shared_out(self, packed: Sequence[WaveLanes], workers: int) -> list[WaveLanes]:
        """Waves that so many workers end together: the longest are cut by their lanes' end sites,
        so that lanes that share passes stay together; no more than is needed."""
        if workers == 1:
            return list(packed)
        share = sum(map(self._cost, packed)) / workers
        tried = []
        for finer in (1, 2, 4, 8):
            found = [cut for lanes in packed for cut in self._cut(lanes, share / finer)]
            costs = {id(lanes): self._cost(lanes) for lanes in found}
            found.sort(key=lambda lanes: -costs[id(lanes)])
            shared = schedule([costs[id(lanes)] for lanes in found], workers)
            tried.append((shared.makespan, found))
            if shared.efficiency >= EVEN:
                break
        return min(tried, key=lambda each: each[0])[1]

    def _cost(self, lanes: WaveLanes) -> int:
        """FLOPs of a wave's training; lanes without any count their number."""
        return self.flops(lanes) + len(lanes.places)

    def _rates_of(self, pair: PairCosts) -> _Rates:
        """One for all pairs of donors that differ in their names alone."""
        nameless = (replace(pair.front, name=""), replace(pair.end, name=""), pair.batch)
        if nameless not in self._rates:
            number = len(self._rates)
            self._rates[nameless] = _Rates(number, pair, self.kinds, self.width, self.fused)
        return self._rates[nameless]

    def _parts(
        self, lanes: WaveLanes, rule: tuple[Hashable, ...], find: Callable[[], list[np.ndarray]]
    ) -> list[WaveLanes]:
        """The lanes in the parts that `find` gives; found once for lanes of the same kinds."""
        key = *rule, lanes.kinds.tobytes()
        if key not in self._known:
            self._known[key] = find()
        return [lanes.at(own) for own in self._known[key]]

    def _packed(self, lanes: WaveLanes, rates: _Rates) -> list[np.ndarray]:
        whole = np.arange(len(lanes.kinds))
        if self.alone:
            return list(whole[:, None])
        if self.budget is None:
            return [whole]
        alone, shared = rates.alone(lanes.kinds, self.device), rates.shared(lanes.kinds)
        room, worst = self.budget - shared, int(alone.argmax())
        if alone[worst] > room:
            kind = lanes.kinds[worst]
            needed = int(alone[worst]) + shared
            raise FulaError(
                _too_small(self.kinds[kind], self.pairs[lanes.group], needed, self.budget)
            )
        if rates.lanes_bytes([lanes.kinds], self.device) <= room:
            return [whole]
        if rates.plain[lanes.kinds].all():  # others have nothing in common
            staying, widest = rates.staying(lanes.kinds), int(rates.flying(lanes.kinds).max())
            most = room - wave_memory.turn_bytes(widest, self.device)
            if staying.sum() > most:  # turns should have half of the room
                most = min(most, max(room // 2, int(staying.max())))
            if staying.max() <= most:
                return first_fit(staying, most)
        return first_fit(alone, room)

    def _turns(self, kinds: np.ndarray, rates: _Rates) -> list[np.ndarray]:
        whole = np.arange(len(kinds))
        if self.budget is None or len(kinds) == 1:
            return [whole]
        room = self.budget - rates.shared(kinds)
        if rates.lanes_bytes([kinds], self.device) <= room:
            return [whole]
        order = np.lexsort((rates.front[kinds], -rates.end[kinds]))
        most = wave_memory.turn_room(int(rates.staying(kinds).sum()), room, self.device)
        return [order[a:b] for a, b in even_runs(rates.flying(kinds[order]), most)]

    def _cut(self, lanes: WaveLanes, most: float) -> list[WaveLanes]:
        """Runs of lanes, by end site, of about equal cost, and of at most `most` if they were
        many."""
        parts = min(ceil(self._cost(lanes) / most - 1e-9), len(lanes.places))
        if parts <= 1:
            return [lanes]
        pair, rates = self.pairs[lanes.group], self._of_pair[lanes.group]
        rule = "cut", rates.number, pair.steps, parts
        return self._parts(lanes, rule, lambda: self._evenly(lanes, parts))

    def _evenly(self, lanes: WaveLanes, parts: int) -> list[np.ndarray]:
        """At most so many runs, the dearest as cheap as halving finds."""
        pair = self.pairs[lanes.group]
        sites = [(cell.end_site, cell.front_site) for cell in self.kinds]
        ends, fronts = np.array(sites)[lanes.kinds].T
        order = np.lexsort((fronts, ends))
        runs = _Runs(self._of_pair[lanes.group], lanes.kinds[order], pair.steps * pair.batch)
        high: float = self._cost(lanes)
        low, best = high / parts, [0, len(order)]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = runs.within(middle)
            if len(found) - 1 <= parts:
                best, high = found, middle
            else:
                low = middle
        return [order[a:b] for a, b in zip(best, best[1:], strict=False)]


class _Rates:
    """Bytes and FLOPs of lanes between two donors by kind, each computed when first needed."""

    def __init__(
        self, number: int, pair: PairCosts, kinds: Sequence[Cell], width: int, fused: bool
    ) -> None:
        self.number, self.pair, self.kinds = number, pair, kinds
        self.width, self.fused = width, fused
        self.bytes = np.full((len(kinds), len(LaneBytes._fields)), -1, np.int64)
        self.work = np.zeros(len(kinds), np.int64)
        self.front = np.array([cell.front_site for cell in kinds])
        self.end = np.array([cell.end_site for cell in kinds])
        self.plain = np.array([cell.alpha == 0 for cell in kinds])
        self.lanes = [wave_memory.lane_of(cell) for cell in kinds]
        self._flops: dict[bytes, int] = {}

    def _know(self, kinds: np.ndarray) -> np.ndarray:
        """The kinds, each once, with their numbers in place."""
        once = np.unique(kinds)
        donors = self.pair.front, self.pair.end
        rule = self.pair.batch, self.width, self.fused, self.pair.measured
        for kind in once[self.bytes[once, 0] < 0]:
            self.bytes[kind] = wave_memory.lane_bytes(self.lanes[kind], *donors, *rule)
            self.work[kind] = lane_flops(self.kinds[kind], *donors)
        return once

    def _lanes(self, kinds: np.ndarray) -> np.ndarray:
        """`LaneBytes` of each lane, (n, 4)."""
        self._know(kinds)
        return self.bytes[kinds]

    def alone(self, kinds: np.ndarray, device: str) -> np.ndarray:
        """Peak bytes of each lane by itself."""
        self._know(kinds)
        once, places = np.unique(kinds, return_inverse=True)
        rows = self.bytes[once].tolist()
        return np.array([wave_memory.lanes_bytes([row], device) for row in rows])[places]

    def staying(self, kinds: np.ndarray) -> np.ndarray:
        """What each lane holds in every turn."""
        own, kept, *_ = self._lanes(kinds).T
        return own + kept

    def flying(self, kinds: np.ndarray) -> np.ndarray:
        """What each lane holds in its own turn alone."""
        return self._lanes(kinds)[:, 2:].max(1)

    def lanes_bytes(self, turns: Sequence[np.ndarray], device: str) -> int:
        """Peak bytes of the lanes of a wave, given the kinds of each turn."""
        return wave_memory.lanes_bytes([self._lanes(t).sum(0).tolist() for t in turns], device)

    def shared(self, kinds: np.ndarray) -> int:
        """Bytes that a wave of these lanes needs once."""
        lanes = [self.lanes[kind] for kind in self._know(kinds)]
        pair = self.pair
        rule = pair.batch, self.width, pair.measured
        return wave_memory.shared_bytes(lanes, pair.front, pair.end, *rule)

    def flops(self, kinds: np.ndarray) -> int:
        """FLOPs of a wave's training step per image."""
        key = kinds.tobytes()
        if key not in self._flops:
            once = self._know(kinds)
            work = self.once(int(self.front[once].max()), bool(self.plain[once].any()))
            self._flops[key] = work + int(self.work[kinds].sum())
        return self._flops[key]

    def once(self, deepest: int, plain: bool) -> int:
        """Those that the lanes share."""
        return shared_flops(deepest, plain, self.pair.front, self.pair.end)


class _Runs:
    """Runs of lanes in their order, by cost. `unit`: images of all training steps."""

    def __init__(self, rates: _Rates, kinds: np.ndarray, unit: int) -> None:
        rates.flops(kinds)  # so that their work is known
        self.rates, self.unit = rates, unit
        self.until = np.concatenate([[0], np.cumsum(rates.work[kinds])])
        self.front, self.plain = rates.front[kinds], rates.plain[kinds]

    def cost(self, start: int, stop: int) -> int:
        """FLOPs of the lanes from start to stop, and their number."""
        plain = bool(self.plain[start:stop].any())
        shared = self.rates.once(int(self.front[start:stop].max()), plain)
        own = int(self.until[stop]) - int(self.until[start])
        return self.unit * (shared + own) + stop - start

    def within(self, most: float) -> list[int]:
        """Bounds of the fewest runs that cost `most` at most, or are one lane."""
        bounds = [0]
        while bounds[-1] < len(self.front):
            bounds.append(self._stop(bounds[-1], most))
        return bounds

    def _stop(self, start: int, most: float) -> int:
        low, high = start + 1, self._last(start, most)
        while low < high:
            middle = (low + high + 1) // 2
            if self.cost(start, middle) <= most:
                low = middle
            else:
                high = middle - 1
        return low

    def _last(self, start: int, most: float) -> int:
        """No run from there ends later: its lanes alone would cost more."""
        if not self.unit:
            return min(len(self.front), start + 1 + int(most))
        least = self.until[start] + (1 + 1e-9) * most / self.unit
        return min(len(self.front), max(int(self.until.searchsorted(least, "right")), start + 1))


def even_runs(sizes: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Bounds of the fewest runs of `sizes` (n,) that come to at most `most` each, or are a single
    one; of those runs the evenest."""
    until = np.concatenate([[0], np.cumsum(sizes)])
    found = _runs_within(until, most)
    high = max(most, int(sizes.max()))
    low = max(int(until[-1]) // len(found), int(sizes.max()))
    while low < high:
        middle = (low + high) // 2
        tried = _runs_within(until, middle)
        if len(tried) == len(found):
            high = middle
        else:
            low = middle + 1
    bounds = _runs_within(until, high)
    return list(zip([0, *bounds], bounds, strict=False))


def _runs_within(until: np.ndarray, most: int) -> list[int]:
    """Ends of runs, each as far as it goes. `until`: sums of the sizes before each."""
    ends = [0]
    while ends[-1] < len(until) - 1:
        furthest = int(until.searchsorted(until[ends[-1]] + most, "right")) - 1
        ends.append(max(furthest, ends[-1] + 1))
    return ends[1:]


def first_fit(sizes: np.ndarray, room: int) -> list[np.ndarray]:
    """Positions of `sizes` (n,) in bins of at most `room`, by first fit, largest first.

    Lanes of one size fill the bins in turn, each as far as it goes: what first fit does with them
    one by one.
    """
    bins: list[list[np.ndarray]] = []
    left: list[int] = []
    order = np.argsort(-sizes, kind="stable")
    values, starts = np.unique(-sizes[order], return_index=True)
    for size, items in zip((-values).tolist(), np.split(order, starts[1:]), strict=True):
        start, place = 0, 0
        while start < len(items):
            if place == len(bins):
                bins.append([])
                left.append(room)
            if count := min(left[place] // size, len(items) - start):
                bins[place].append(items[start : start + count])
                left[place] -= count * size
            start, place = start + count, place + 1
    return [np.sort(np.concatenate(parts)) for parts in bins]


def _too_small(cell: Cell, pair: PairCosts, needed: int, available: int) -> str:
    return (
        f"a lane at sites {cell.front_site}, {cell.end_site} of '{pair.front.name}' and "
        f"'{pair.end.name}' needs {needed / 2**30:.2f} GiB, but the budget is "
        f"{available / 2**30:.2f} GiB; raise --memory or lower [protocol] batch_size"
    )
