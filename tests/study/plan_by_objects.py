"""The reference for plans: an object for every cell, one after another, each hashed for itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product
from math import ceil
from typing import Any

from fula_fast.device.precision import precision_of
from fula_fast.methods.weightings import term_weights
from fula_fast.study import wave_memory
from fula_fast.study.cell import Cell, Context, cell_id, digest
from fula_fast.study.costs import step_flops
from fula_fast.study.expand import alike, objectives, site_pairs
from fula_fast.study.facts import data_facts, donor_facts
from fula_fast.study.spec import Spec
from fula_fast.study.wave_keys import WaveKey, wave_key

FIELDS = ("front", "end", "method", "alpha", "shortcut", "subset", "seed", "data_seed")


def cells_of(spec: Spec) -> tuple[list[Cell], list[tuple[int, list[str], tuple[str, ...]]]]:
    """The grid's cells, each once; and of those that were merged, by what they differed in: count,
    methods and differences."""
    kept: dict[str, Cell] = {}
    merged: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for cell, context in _points(spec):
        name = cell_id(cell, context)
        if name in kept:
            merged[_differences(kept[name], cell)][cell.method] += 1
        else:
            kept[name] = replace(cell, id=name)
    return list(kept.values()), [(c.total(), list(c), d) for d, c in merged.items()]


def _points(spec: Spec):
    data, grid = data_facts(spec.data), spec.grid
    recipes = {name: digest(donor.recipe_identity()) for name, donor in spec.donors.items()}
    seeds = [(s, d) for s in grid.seeds for d in grid.data_seeds or (s,)]
    for pair, rule in product(grid.donor_pairs(), spec.protocols()):
        front, end = (donor_facts(spec.donors[n], data, rule.hook) for n in pair)
        for i, j in site_pairs(grid.sites, front, end):
            like = alike(front.shapes[i - 1], end.shapes[j - 1])
            context = Context(
                recipes[pair[0]], recipes[pair[1]], digest(spec.data.identity()), data.classes, like
            )
            terms = end.num_sites + 1 - j
            for alpha, mark, subset in product(grid.alpha, grid.shortcut, grid.subset):
                for asked in objectives(grid.methods):
                    for own in _weighted(rule, asked, grid.weightings, terms):
                        how = asked.at(own, terms)
                        for seed, data_seed in seeds:
                            yield (
                                Cell(*pair, i, j, how.method, how.objective, how.protocol, alpha,
                                     mark, subset, seed, data_seed, "", how.stages, how.combine),
                                context,
                            )  # fmt: skip


def _weighted(rule: Any, asked: Any, weightings: Any, terms: int) -> list[Any]:
    if not asked.weighted or not weightings:
        return [rule]
    for weighting in weightings:
        term_weights(weighting, terms)
    return [rule.model_copy(update={"weighting": w}) for w in weightings]


def _differences(kept: Cell, other: Cell) -> tuple[str, ...]:
    options = type(kept.protocol).model_fields
    return (
        *(f for f in FIELDS if getattr(kept, f) != getattr(other, f)),
        *(f for f in options if getattr(kept.protocol, f) != getattr(other.protocol, f)),
    )


def waves_of(
    spec: Spec, cells: list[Cell], budget: int | None, precision: str
) -> list[tuple[list[str], WaveKey, int, int]]:
    """Ids, key, memory and FLOPs of the waves of one worker."""
    groups: dict[WaveKey, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[wave_key(cell)].append(cell)
    return [
        _wave(spec, key, part, precision)
        for key, group in groups.items()
        for part in _bins(spec, key, group, budget, precision)
    ]


def _wave(spec: Spec, key: WaveKey, turns: list[list[Cell]], precision: str):
    data, donors = data_facts(spec.data), _donors(spec, key)
    images = data.train_images
    if key.subset is not None:
        images = images * key.subset // data.classes
    steps = key.epochs * (images // key.batch_size)
    cells = [cell for turn in turns for cell in turn]
    memory = _memory(turns, donors, key, precision)
    return [cell.id for cell in cells], key, memory, steps * step_flops(cells, *donors)


def _memory(turns: list[list[Cell]], donors: Any, key: WaveKey, precision: str) -> int:
    """A factor of 1.6 on what flies in one turn; in several, of 2.25 on the largest, if less."""
    width = precision_of(precision).bytes
    lanes = [[wave_memory.lane_of(cell) for cell in turn] for turn in turns]
    every = [lane for turn in lanes for lane in turn]
    shared = wave_memory.shared_bytes(every, *donors, key.batch_size, width)
    each = [[wave_memory.lane_bytes(n, *donors, key.batch_size, width) for n in t] for t in lanes]
    flown = []
    for kind in ("training", "passing"):
        sums = [sum(getattr(lane, kind) for lane in turn) for turn in each]
        factor = 1.6 * sum(sums)
        flown.append(factor if len(sums) == 1 else min(factor, 2.25 * max(sums)))
    own = sum(lane.own for turn in each for lane in turn)
    return shared + own + int(max(flown))


def _donors(spec: Spec, key: WaveKey):
    data = data_facts(spec.data)
    return [donor_facts(spec.donors[n], data, key.hook) for n in (key.front, key.end)]


def _bins(spec: Spec, key: WaveKey, cells: list[Cell], budget: int | None, precision: str):
    """Waves, each as its turns."""
    if budget is None:
        return [[cells]]
    donors, width = _donors(spec, key), precision_of(precision).bytes
    lanes = [wave_memory.lane_of(cell) for cell in cells]
    room = budget - wave_memory.shared_bytes(lanes, *donors, key.batch_size, width)
    each = [wave_memory.lane_bytes(lane, *donors, key.batch_size, width) for lane in lanes]
    if _memory([cells], donors, key, precision) <= budget:
        return [[cells]]
    flying = [max(lane.training, lane.passing) for lane in each]
    own = [lane.own for lane in each]
    most = room - ceil(2.25 * max(flying))
    if sum(own) > most:
        most = min(most, max(room // 2, max(own)))
    if not any(cell.alpha for cell in cells) and max(own) <= most:
        found = _first_fit(own, most)
        return [_turns([cells[i] for i in part], donors, key, precision, budget) for part in found]
    found = _first_fit(
        [lane.own + int(1.6 * n) for lane, n in zip(each, flying, strict=True)], room
    )
    return [[[cells[i] for i in part]] for part in found]


def _turns(cells: list[Cell], donors: Any, key: WaveKey, precision: str, budget: int):
    """As few as fit, by end site from behind; the largest is as small as can be."""
    if _memory([cells], donors, key, precision) <= budget:
        return [cells]
    order = sorted(cells, key=lambda cell: (-cell.end_site, cell.front_site))
    width = precision_of(precision).bytes
    lanes = [wave_memory.lane_of(cell) for cell in order]
    each = [wave_memory.lane_bytes(lane, *donors, key.batch_size, width) for lane in lanes]
    flying = [max(lane.training, lane.passing) for lane in each]
    shared = wave_memory.shared_bytes(lanes, *donors, key.batch_size, width)
    most = int((budget - shared - sum(lane.own for lane in each)) / 2.25)
    bounds = sorted({sum(flying[a:b]) for b in range(len(flying) + 1) for a in range(b)})
    count = len(_runs(flying, most))
    least = next(m for m in bounds if m >= max(flying) and len(_runs(flying, m)) == count)
    return [[order[i] for i in run] for run in _runs(flying, least)]


def _runs(sizes: list[int], most: int) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for i, size in enumerate(sizes):
        if runs[-1] and sum(sizes[k] for k in runs[-1]) + size > most:
            runs.append([])
        runs[-1].append(i)
    return runs


def _first_fit(sizes: list[int], room: int) -> list[list[int]]:
    """First fit, largest first, one by one."""
    bins: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = (b for b in bins if sum(sizes[k] for k in b) + sizes[i] <= room)
        place = next(fitting, None)
        if place is None:
            bins.append(place := [])
        place.append(i)
    return [sorted(found) for found in bins]
