"""Planning: spec to cells to waves. Pure, cheap, printable, and without torch.

A wave is the set of cells that run together, step by step, because they share front, end, data
stream and rules; its lanes are packed to a memory budget. Partition, precision and device are part
of the plan, so that a resumed run keeps them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import ceil
from typing import Any

from ..device.mode import EAGER
from ..device.precision import PLAIN, precision_of
from ..errors import FulaError
from . import wave_memory
from .cell import Cell, digest
from .costs import step_flops
from .expand import expand
from .facts import DataFacts, DonorFacts, data_facts, donor_facts
from .protocol import Protocol
from .resources import check_mode, resources
from .schedule import schedule
from .similarity_plan import PlannedSimilarity, coarse_null, plan_similarity
from .spec import Spec


@dataclass(frozen=True)
class WaveKey:
    """What all cells of a wave share. `epochs` is 0 where no training pass is made.

    `attack` is the attack's settings, empty without one; lanes of different alpha > 0 may share.
    """

    front: str
    end: str
    shortcut: str
    subset: int | None
    data_seed: int
    stitch_data: str
    crop_padding: int
    flip: bool
    batch_size: int
    epochs: int
    hook: str
    bn: str
    target_bn: str
    dropout: str
    stitch_bn: str
    stitch_bias: bool
    optimiser: str
    attack: str


def wave_key(cell: Cell) -> WaveKey:
    """The key of the waves that a cell may ride in."""
    p = cell.protocol
    attacked = cell.alpha > 0 and cell.trains
    values = {name: getattr(p, name) for name in _FROM_PROTOCOL}
    return WaveKey(
        front=cell.front,
        end=cell.end,
        shortcut=cell.shortcut_label,
        subset=cell.subset,
        data_seed=cell.data_seed,
        target_bn=p.resolved_target_bn,
        attack=f"{p.attack.model_dump_json()} {p.attack_target} {p.share}" if attacked else "",
        epochs=p.epochs if cell.trains else 0,
        **values,
    )


_FROM_PROTOCOL = (
    "stitch_data", "crop_padding", "flip", "batch_size", "hook", "bn", "dropout", "stitch_bn",
    "stitch_bias", "optimiser",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedWave:
    """Cells that run together. `memory`: predicted peak bytes. `flops`: of all training steps.

    `steps`: training steps, nominal for the data set's size. `id`: hash of the cells' ids.
    """

    cells: tuple[Cell, ...]
    key: WaveKey
    memory: int
    flops: int
    steps: int

    @cached_property
    def id(self) -> str:
        return digest([cell.id for cell in self.cells])

    @property
    def measures_robustness(self) -> bool:
        """Whether robust accuracy of some cell is measured."""
        return any(cell.protocol.measures_robustness for cell in self.cells)


@dataclass(frozen=True)
class Plan:
    """Cells, their waves, and how they will be computed. `notes`: what the user should know.

    `budget`: bytes per wave, None where unlimited. `executor`: `wave` or `solo`. `similarity`: of
    donors without training, where the spec asks for it.
    """

    name: str
    cells: tuple[Cell, ...]
    waves: tuple[PlannedWave, ...]
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    precision: str = PLAIN
    mode: str = EAGER
    executor: str = "wave"
    budget: int | None = None
    donors: Mapping[str, DonorFacts] = field(default_factory=dict, compare=False)
    similarity: PlannedSimilarity | None = None

    @property
    def flops(self) -> int:
        """Training FLOPs of all waves."""
        return sum(wave.flops for wave in self.waves)

    def to_json(self) -> dict[str, Any]:
        """Plain values; each protocol is listed once and cells refer to it by position."""
        protocols = list(dict.fromkeys(cell.protocol for cell in self.cells))
        position = {p: i for i, p in enumerate(protocols)}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return settings | {
            "notes": list(self.notes),
            "protocols": [p.model_dump(mode="json") for p in protocols],
            "cells": [c.to_json() | {"protocol": position[c.protocol]} for c in self.cells],
            "waves": [_wave_json(wave) for wave in self.waves],
            "similarity": self.similarity and asdict(self.similarity),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`; raises `FulaError` for a plan of another form."""
        try:
            return cls._read(values)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise FulaError(
                f"the run's plan is of another form than this version writes ({reason}); go on "
                "with the fula_fast that planned it, or give another --out"
            ) from None

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Plan:
        protocols = [Protocol.model_validate(p) for p in values["protocols"]]
        cells = [Cell.from_json(c, protocols[c["protocol"]]) for c in values["cells"]]
        by_id = {cell.id: cell for cell in cells}
        asked = values["similarity"]
        return cls(
            cells=tuple(cells),
            waves=tuple(_wave_from_json(w, by_id) for w in values["waves"]),
            notes=tuple(values["notes"]),
            similarity=asked and PlannedSimilarity.from_json(asked),
            **{name: values[name] for name in _SETTINGS},
        )


_SETTINGS = ("name", "device", "precision", "mode", "executor", "budget")


def _wave_json(wave: PlannedWave) -> dict[str, Any]:
    costs = {"memory": wave.memory, "flops": wave.flops, "steps": wave.steps}
    cells = [cell.id for cell in wave.cells]
    return {"id": wave.id, "cells": cells, "key": asdict(wave.key), **costs}


def _wave_from_json(values: Mapping[str, Any], by_id: Mapping[str, Cell]) -> PlannedWave:
    cells = tuple(by_id[name] for name in values["cells"])
    costs = {name: values[name] for name in ("memory", "flops", "steps")}
    return PlannedWave(cells, WaveKey(**values["key"]), **costs)


def plan(
    spec: Spec,
    *,
    device: str = "cpu",
    precision: str = PLAIN,
    mode: str = EAGER,
    budget: int | None = None,
    fused: bool = True,
    workers: int = 1,
    data: DataFacts | None = None,
    donors: Mapping[str, DonorFacts] | None = None,
) -> Plan:
    """The plan of a spec, with resolved `device`, `precision` and `mode`.

    `budget`: bytes per wave (None: unlimited). `fused`: compiled kernels serve there. `workers`:
    waves are cut so that so many can end together. `data`, `donors`: facts that replace the
    nominal ones (loaded data; modules that are no named model).
    Raises `FulaError` where the grid asks for what its donors or data do not have, and for a lane
    that does not fit the budget alone.
    """
    data = data or data_facts(spec.data)
    facts = _Facts(spec, data, donors or {})
    cells, notes = expand(spec, data, facts)
    groups: dict[WaveKey, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[wave_key(cell)].append(cell)
    notes += _refreshing(cells)
    for dropout in {cell.protocol.dropout for cell in cells}:
        check_mode(mode, device, dropout)
    solo = spec.engine.executor == "solo"
    packer = _Packer(facts, data, precision, budget, fused, alone=solo)
    packed = [(key, lanes) for key, group in groups.items() for lanes in packer.packed(key, group)]
    waves = tuple(packer.wave(*part) for part in packer.shared_out(packed, workers))
    known = {name: facts(name, spec.base_protocol.hook) for name in spec.donors}
    asked = spec.similarity and plan_similarity(spec, data, known, budget)
    notes += coarse_null(spec.similarity, known) if spec.similarity else ()
    return Plan(
        spec.name, cells, waves, notes, device, precision, mode, spec.engine.executor, budget,
        known, asked,
    )  # fmt: skip


def plan_here(spec: Spec, donors: Mapping[str, DonorFacts] | None = None) -> Plan:
    """The plan of a spec with what this machine has; see `plan`."""
    found = resources(spec.engine)
    return plan(
        spec, device=found.device, precision=found.precision, mode=spec.engine.mode,
        budget=found.budget, fused=found.fused, workers=found.workers, donors=donors,
    )  # fmt: skip


def _refreshing(cells: Iterable[Cell]) -> tuple[str, ...]:
    """A note on closed forms that make passes all the same."""
    found = [c for c in cells if not c.objective and c.trains and c.protocol.epochs]
    if not found:
        return ()
    epochs = max(cell.protocol.epochs for cell in found)
    names = ", ".join(dict.fromkeys(cell.method for cell in found))
    return (
        f"{len(found)} closed-form cells ({names}) make up to {epochs} epochs of passes, which "
        "refresh batch-norm statistics; dm_stats = 'stale' makes none",
    )


class _Facts:
    """Donors' facts by (name, hook), each described once."""

    def __init__(self, spec: Spec, data: DataFacts, given: Mapping[str, DonorFacts]) -> None:
        self.spec, self.data, self.given = spec, data, given
        self.known: dict[tuple[str, str], DonorFacts] = {}

    def __call__(self, name: str, hook: str) -> DonorFacts:
        if name in self.given:
            return self.given[name]
        if (name, hook) not in self.known:
            donor = self.spec.donors[name]
            own = self.data if donor.data == self.spec.data else data_facts(donor.images)
            self.known[name, hook] = donor_facts(donor, own, hook)
        return self.known[name, hook]


EVEN = 0.95
"""Share of workers' time at work from which waves are not cut further."""
_HALVINGS = 20


@dataclass(frozen=True)
class _Packer:
    facts: _Facts
    data: DataFacts
    precision: str
    budget: int | None
    fused: bool
    alone: bool

    def packed(self, key: WaveKey, cells: Sequence[Cell]) -> list[list[Cell]]:
        """The group's cells in as few waves as the budget allows."""
        return self._packed(key, cells, *self._pair(key))

    def wave(self, key: WaveKey, lanes: Sequence[Cell]) -> PlannedWave:
        """A wave of these cells."""
        steps, pair = key.epochs * self._steps_per_epoch(key), self._pair(key)
        predicted = self._bytes(lanes, *pair, key)
        return PlannedWave(tuple(lanes), key, predicted, steps * step_flops(lanes, *pair), steps)

    def _pair(self, key: WaveKey) -> tuple[DonorFacts, DonorFacts]:
        return self.facts(key.front, key.hook), self.facts(key.end, key.hook)

    def shared_out(
        self, packed: Sequence[tuple[WaveKey, list[Cell]]], workers: int
    ) -> list[tuple[WaveKey, list[Cell]]]:
        """Waves that so many workers end together: the longest are cut by their lanes' end sites,
        so that lanes that share passes stay together; no more than is needed."""
        if workers == 1:
            return list(packed)
        share = sum(self._cost(*part) for part in packed) / workers
        tried = []
        for finer in (1, 2, 4, 8):
            found = [(k, cut) for k, lanes in packed for cut in self._cut(k, lanes, share / finer)]
            found.sort(key=lambda part: -self._cost(*part))
            shared = schedule([self._cost(*part) for part in found], workers)
            tried.append((shared.makespan, found))
            if shared.efficiency >= EVEN:
                break
        return min(tried, key=lambda each: each[0])[1]

    def _cost(self, key: WaveKey, lanes: Sequence[Cell]) -> float:
        """FLOPs of a wave's training; lanes without any count their number."""
        steps = key.epochs * self._steps_per_epoch(key)
        return steps * step_flops(lanes, *self._pair(key)) + len(lanes)

    def _cut(self, key: WaveKey, lanes: list[Cell], most: float) -> list[list[Cell]]:
        """Runs of lanes, by end site, of about equal cost, and of at most `most` if they were
        many."""
        parts = min(ceil(self._cost(key, lanes) / most - 1e-9), len(lanes))
        if parts <= 1:
            return [lanes]
        order = sorted(lanes, key=lambda cell: (cell.end_site, cell.front_site))
        low, high = self._cost(key, lanes) / parts, self._cost(key, lanes)
        best = [order]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = self._runs(key, order, middle)
            if len(found) <= parts:
                best, high = found, middle
            else:
                low = middle
        return best

    def _runs(self, key: WaveKey, order: list[Cell], most: float) -> list[list[Cell]]:
        """The fewest runs of `order` that cost `most` at most, or are one lane."""
        found, start = [], 0
        while start < len(order):
            low, high = start + 1, len(order)
            while low < high:
                middle = (low + high + 1) // 2
                if self._cost(key, order[start:middle]) <= most:
                    low = middle
                else:
                    high = middle - 1
            found.append(order[start:low])
            start = low
        return found

    def _steps_per_epoch(self, key: WaveKey) -> int:
        images = self.data.train_images
        if key.subset is not None:
            images = images * key.subset // self.data.classes
        return images // key.batch_size

    def _bytes(
        self, cells: Sequence[Cell], front: DonorFacts, end: DonorFacts, key: WaveKey
    ) -> int:
        lanes = [wave_memory.lane_of(cell) for cell in cells]
        return wave_memory.wave_bytes(lanes, front, end, key.batch_size, self.precision, self.fused)

    def _packed(
        self, key: WaveKey, cells: Sequence[Cell], front: DonorFacts, end: DonorFacts
    ) -> list[list[Cell]]:
        if self.alone:
            return [[cell] for cell in cells]
        if self.budget is None:
            return [list(cells)]
        width = precision_of(self.precision).bytes
        lanes = [wave_memory.lane_of(cell) for cell in cells]
        shared = wave_memory.shared_bytes(lanes, front, end, key.batch_size, width)
        room = self.budget - shared
        rule = key.batch_size, width, self.fused
        sizes = [wave_memory.lane_bytes(lane, front, end, *rule) for lane in lanes]
        worst = max(range(len(cells)), key=sizes.__getitem__)
        if sizes[worst] > room:
            raise FulaError(_too_small(cells[worst], sizes[worst] + shared, self.budget))
        return [[cells[i] for i in sorted(bin_)] for bin_ in first_fit(sizes, room)]


def first_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Positions of `sizes` in bins of at most `room`, by first fit, largest first."""
    bins: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = next((b for b, free in enumerate(left) if sizes[i] <= free), None)
        if place is None:
            bins.append([])
            left.append(room)
            place = len(bins) - 1
        bins[place].append(i)
        left[place] -= sizes[i]
    return bins


def _too_small(cell: Cell, needed: int, available: int) -> str:
    return (
        f"a lane at sites {cell.front_site}, {cell.end_site} of '{cell.front}' and '{cell.end}' "
        f"needs {needed / 2**30:.2f} GiB, but the budget is {available / 2**30:.2f} GiB; raise "
        "--memory or lower [protocol] batch_size"
    )
