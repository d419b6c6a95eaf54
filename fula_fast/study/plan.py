"""Planning: spec to cells to waves. Pure, cheap, printable, and without torch.

A wave is the set of cells that run together, step by step, because they share front, end, data
stream and rules; its lanes are packed to a memory budget. Partition, precision and device are part
of the plan, so that a resumed run keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..device.memory import CPU_SHARE, available_memory
from ..device.mode import EAGER
from ..device.precision import PLAIN
from ..errors import FulaError
from ..measures.moment_memory import CellMeasures
from ..models.heads import check_room
from .cell import digest
from .cells import Cells, Columns, Rows, words_json, words_of
from .expand import expand
from .facts import DataFacts, DonorFacts, data_facts, donor_facts
from .packing import Packer, PairCosts, WaveLanes, kinds_of, turn_of
from .resources import check_mode, resources
from .similarity_plan import PlannedSimilarity, coarse_null, plan_similarity
from .spec import Spec
from .wave_keys import OWN, WaveKey, by_key


@dataclass(frozen=True)
class PlannedWave:
    """Cells that run together. `memory`: predicted peak bytes. `flops`: of all training steps.

    `steps`: training steps, nominal for the data set's size. `id`: hash of the cells' ids. `turns`:
    how many of the cells, in order, fly together, turn by turn; empty: all of them.
    """

    cells: Cells
    key: WaveKey
    memory: int
    flops: int
    steps: int
    id: str
    turns: tuple[int, ...] = ()

    @property
    def turn_of(self) -> dict[str, int]:
        """By cell id, in which turn it flies; empty where all fly in one."""
        return turn_of(self.cells.ids, self.turns)

    @property
    def measures_robustness(self) -> bool:
        """Whether robust accuracy of some cell is measured."""
        return any(how.protocol.measures_robustness for how in self.cells.treatments())


@dataclass(frozen=True)
class Plan:
    """Cells, their waves, and how they will be computed. `notes`: what the user should know.

    `lanes`: all cells, wave by wave. `budget`: bytes per wave, None where unlimited. `executor`:
    `wave` or `solo`. `similarity`: of donors without training, where the spec asks for it.
    """

    name: str
    lanes: Cells
    waves: tuple[PlannedWave, ...]
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    precision: str = PLAIN
    mode: str = EAGER
    executor: str = "wave"
    budget: int | None = None
    donors: Mapping[str, DonorFacts] = field(default_factory=dict, compare=False)
    similarity: PlannedSimilarity | None = None

    @cached_property
    def cells(self) -> Cells:
        """All cells in the grid's order."""
        return self.lanes.take(np.argsort(self.lanes.columns["position"]))

    @property
    def flops(self) -> int:
        """Training FLOPs of all waves."""
        return sum(wave.flops for wave in self.waves)

    def stored(self) -> tuple[dict[str, Any], Columns]:
        """Plain values, and the columns of all cells, wave by wave."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        values = settings | {
            "notes": list(self.notes),
            "words": words_json(self.lanes.words),
            "waves": _waves_json(self.waves),
            "similarity": self.similarity and asdict(self.similarity),
        }
        return values, self.lanes.columns

    @classmethod
    def from_stored(cls, values: Mapping[str, Any], rows: Rows) -> Plan:
        """The inverse of `stored`; cells are read by `rows` when they are needed.

        Raises `FulaError` for a plan of another form.
        """
        try:
            return cls._read(values, rows)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise FulaError(
                f"the run's plan is of another form than this version writes ({reason}); go on "
                "with the fula_fast that planned it, or give another --out"
            ) from None

    @classmethod
    def _read(cls, values: Mapping[str, Any], rows: Rows) -> Plan:
        asked, words = values["similarity"], words_of(values["words"])
        lanes = Cells(words, rows, 0, sum(values["waves"]["cells"]))
        return cls(
            lanes=lanes,
            waves=tuple(_waves_from(values["waves"], lanes)),
            notes=tuple(values["notes"]),
            similarity=asked and PlannedSimilarity.from_json(asked),
            **{name: values[name] for name in _SETTINGS},
        )


_SETTINGS = ("name", "device", "precision", "mode", "executor", "budget")
_COSTS = ("id", "memory", "flops", "steps")


def _waves_json(waves: Sequence[PlannedWave]) -> dict[str, Any]:
    """Columns of the waves, in order; `rule`: position in `rules` of the rest of a wave's key."""
    rules: dict[WaveKey, int] = {}
    blank = dict.fromkeys(OWN, "")
    places = [rules.setdefault(replace(w.key, **blank), len(rules)) for w in waves]
    return {
        "cells": [len(wave.cells) for wave in waves],
        **{name: [getattr(wave, name) for wave in waves] for name in _COSTS},
        "turns": [list(wave.turns) for wave in waves],
        **{name: [getattr(wave.key, name) for wave in waves] for name in OWN},
        "rule": places,
        "rules": [{n: v for n, v in asdict(rule).items() if n not in OWN} for rule in rules],
    }


def _waves_from(values: Mapping[str, Any], lanes: Cells) -> Iterator[PlannedWave]:
    columns = [values[name] for name in ("cells", *_COSTS, *OWN, "rule")]
    columns.append(values.get("turns", [()] * len(values["cells"])))  # older plans have none
    start = 0
    for count, name, memory, flops, steps, *own, rule, turns in zip(*columns, strict=True):
        key = WaveKey(**dict(zip(OWN, own, strict=True)), **values["rules"][rule])
        cells = lanes[start : start + count]
        yield PlannedWave(cells, key, memory, flops, steps, name, tuple(turns))
        start += count


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
    notes += _refreshing(cells)
    for dropout in {how.protocol.dropout for how in cells.treatments()}:
        check_mode(mode, device, dropout)
    alone = spec.engine.executor == "solo"
    rule = precision, budget, fused, alone, device
    lanes, waves = _waves(cells, facts, data, rule, workers)
    known = {name: facts(name, spec.base_protocol.hook) for name in spec.donors}
    asked = spec.similarity and plan_similarity(spec, data, known, budget)
    notes += coarse_null(spec.similarity, known) if spec.similarity else ()
    return Plan(
        spec.name, lanes, waves, notes, device, precision, mode, spec.engine.executor, budget,
        known, asked,
    )  # fmt: skip


def plan_here(spec: Spec, donors: Mapping[str, DonorFacts] | None = None) -> Plan:
    """The plan of a spec with what this machine has; see `plan`. Raises `FulaError` for a donor's
    head whose features it does not hold, too."""
    found = resources(spec.engine)
    planned = plan(
        spec, device=found.device, precision=found.precision, mode=spec.engine.mode,
        budget=found.budget, fused=found.fused, workers=found.workers, donors=donors,
    )  # fmt: skip
    if spec.engine.kind == "local":
        room = found.budget if found.device == "cpu" else int(available_memory() * CPU_SHARE)
        _check_heads(planned.donors, room)
    return planned


def _check_heads(donors: Mapping[str, DonorFacts], room: int) -> None:
    """Features that heads are fitted to are held by the processor, of one donor at a time."""
    for name, facts in donors.items():
        try:
            if facts.fitted:
                check_room(*facts.fitted, room)
        except FulaError as error:
            raise FulaError(f"[donors.{name}] {error}") from None


def _waves(
    cells: Cells, facts: _Facts, data: DataFacts, rule: tuple[Any, ...], workers: int
) -> tuple[Cells, tuple[PlannedWave, ...]]:
    """The cells wave by wave, and the waves."""
    keys, members = by_key(cells)
    kinds, examples = kinds_of(cells)
    packer = Packer([facts.pair(key) for key in keys], examples, *rule)
    groups = (WaveLanes(k, places, kinds[places]) for k, places in enumerate(members))
    packed = [part for group in groups for part in packer.packed(group)]
    parts = [packer.in_turns(part) for part in packer.shared_out(packed, workers)]
    lanes, waves, start = cells.take(_joined([part.places for part in parts])), [], 0
    for part in parts:
        own = lanes[start : start + len(part.places)]
        start += len(own)
        steps, costs = packer.pairs[part.group].steps, (packer.memory(part), packer.flops(part))
        name = digest(own.ids)
        waves.append(PlannedWave(own, keys[part.group], *costs, steps, name, part.turns))
    return lanes, tuple(waves)


def _joined(places: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *places])


def _refreshing(cells: Cells) -> tuple[str, ...]:
    """A note on closed forms that make passes all the same."""
    _, first, counts = np.unique(cells.columns["treatment"], return_index=True, return_counts=True)
    found = [
        (cell, int(counts[k]))
        for k in np.argsort(first)
        if not (cell := cells[int(first[k])]).objective and cell.trains and cell.protocol.epochs
    ]
    if not found:
        return ()
    epochs = max(cell.protocol.epochs for cell, _ in found)
    names = ", ".join(dict.fromkeys(cell.method for cell, _ in found))
    count = sum(number for _, number in found)
    return (
        f"{count} closed-form cells ({names}) make up to {epochs} epochs of passes, which "
        "refresh batch-norm statistics; dm_stats = 'stale' makes none",
    )


class _Facts:
    """Donors' facts by (name, hook), each described once."""

    def __init__(self, spec: Spec, data: DataFacts, given: Mapping[str, DonorFacts]) -> None:
        self.spec, self.data, self.given = spec, data, given
        self.known: dict[tuple[str, str], DonorFacts] = {}
        self.pairs: dict[tuple[Any, ...], PairCosts] = {}

    def __call__(self, name: str, hook: str) -> DonorFacts:
        if name in self.given:
            return self.given[name]
        if (name, hook) not in self.known:
            donor = self.spec.donors[name]
            own = self.data if donor.data == self.spec.data else data_facts(donor.images)
            self.known[name, hook] = donor_facts(donor, own, hook)
        return self.known[name, hook]

    def pair(self, key: WaveKey) -> PairCosts:
        """What a wave of this key costs by; equal ones are one object."""
        images = self.data.train_images
        if key.subset is not None:
            images = images * key.subset // self.data.classes
        steps = key.epochs * (images // key.batch_size)
        known = key.front, key.end, key.hook, key.batch_size, steps
        if known not in self.pairs:
            front, end = self(key.front, key.hook), self(key.end, key.hook)
            asked = self.spec.evaluation
            measured = CellMeasures(asked.measures, self.data.test_images, asked.samples)
            self.pairs[known] = PairCosts(front, end, key.batch_size, steps, measured)
        return self.pairs[known]
