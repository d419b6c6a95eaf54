"""A plan as text for the terminal: what would be computed, at what cost, and what is done."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table

from .cells import Cells, combined
from .facts import DonorFacts
from .plan import Plan
from .similarity_plan import PlannedSimilarity

_SHOWN_WAVES = 20


def plan_view(plan: Plan, done: Collection[str] = ()) -> RenderableType:
    """Donors, cells by pair and method, waves with memory and FLOPs, totals.

    `done`: ids of the cells that are finished already.
    """
    return Group(*_parts(plan, frozenset(done)))


def print_plan(plan: Plan, done: Collection[str] = ()) -> None:
    """The view on standard output, as wide as it needs to be where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(plan_view(plan, done))


def _parts(plan: Plan, done: frozenset[str]) -> Iterator[RenderableType]:
    if plan.lanes:
        yield _cells(plan, done)
        yield _waves(plan, done)
    if plan.similarity:
        yield from _similarity(plan.similarity, plan.donors)
    for note in plan.notes:
        yield f"note: {note}"
    if plan.lanes:
        yield _totals(plan, done)


def _cells(plan: Plan, done: frozenset[str]) -> Table:
    cells, finished = plan.cells, _finished(plan.cells, done)
    columns, words = cells.columns, cells.words
    kinds = [(how.method, how.protocol.preset) for how in words.treatments]
    kind = np.array([kinds.index(each) for each in kinds])[columns["treatment"]]
    group = combined(columns["front"], columns["end"], kind)
    sites = combined(columns["front_site"], columns["end_site"])
    _, firsts, counts = np.unique(group, return_index=True, return_counts=True)
    table = _table("Cells", "front", "end", "method", "protocol", "sites", "cells", "done")
    for number in np.argsort(firsts):
        first, mine = cells[int(firsts[number])], group == number
        places = len(np.unique(sites[mine]))
        shown = map(str, (places, counts[number], np.count_nonzero(finished[mine])))
        table.add_row(first.front, first.end, first.method, first.protocol.preset, *shown)
    return table


def _finished(cells: Cells, done: Collection[str]) -> np.ndarray:
    """Which cells are done."""
    if not done:
        return np.zeros(len(cells), bool)
    return np.isin(cells.columns["id"], np.array(list(done), "S16"))


def _waves(plan: Plan, done: frozenset[str]) -> Table:
    table = _table("Waves", "wave", "front", "end", "lanes", "done", "steps", "memory", "work")
    for wave in plan.waves[:_SHOWN_WAVES]:
        finished = sum(name in done for name in wave.cells.ids)
        lanes = f"{len(wave.cells)}" + (f" in {len(wave.turns)} turns" if wave.turns else "")
        counts = lanes, str(finished), str(wave.steps)
        names = (wave.id, wave.key.front, wave.key.end)
        table.add_row(*names, *counts, bytes_text(wave.memory), flops_text(wave.flops))
    if (rest := len(plan.waves) - _SHOWN_WAVES) > 0:
        table.add_row(f"and {rest} more")
    return table


def _similarity(
    asked: PlannedSimilarity, donors: Mapping[str, DonorFacts]
) -> Iterator[RenderableType]:
    """Pairs of donors with their sites, and what all of them share."""
    table = _table("Similarity", "front", "end", "front sites", "end sites")
    for pair in asked.pairs:
        table.add_row(*pair, *(str(donors[name].num_sites) for name in pair))
    yield table
    yield (
        f"similarity: {len(asked.measures)} measures on {asked.images:,} images; pairs of samples "
        f"and chance on {asked.samples:,}; about {bytes_text(asked.memory)}"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    text = {"front", "end", "method", "protocol", "wave"}
    for name in columns:
        table.add_column(name, justify="left" if name in text else "right")
    return table


def _totals(plan: Plan, done: frozenset[str]) -> str:
    finished = int(_finished(plan.lanes, done).sum())
    how = plan.cells.columns["treatment"]
    methods: dict[str, int] = {}
    for treatment in how[np.sort(np.unique(how, return_index=True)[1])]:
        name = plan.lanes.words.treatments[treatment].method
        methods[name] = methods.get(name, 0) + int(np.count_nonzero(how == treatment))
    budget = "" if plan.budget is None else f" (budget {bytes_text(plan.budget)})"
    largest = max((wave.memory for wave in plan.waves), default=0)
    return (
        f"{plan.name}: {len(plan.lanes)} cells "
        f"({', '.join(f'{n} {m}' for m, n in methods.items())}), {finished} done; "
        f"{len(plan.waves)} waves, {flops_text(plan.flops)} of stitch training, largest wave "
        f"{bytes_text(largest)}{budget}; {plan.device}, {plan.precision}, {plan.mode}"
    )


def bytes_text(size: float) -> str:
    """Bytes with a binary unit: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def flops_text(flops: float) -> str:
    """FLOPs with a decimal unit: "3.2 PFLOP"."""
    for unit in ("", "k", "M", "G", "T"):
        if flops < 1000:
            return f"{flops:.3g} {unit}FLOP"
        flops /= 1000
    return f"{flops:,.1f} PFLOP"
