"""Lanes: what each cell of a wave needs of the shared step, and the route that serves them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..kernels.shared.layout import layout_of
from ..methods import TrainingStage, method
from ..methods.staging import SUM, stage_at, starts
from ..methods.weightings import Weighting
from ..study.cell import Cell


@dataclass(frozen=True)
class LossPart:
    """A part of a lane's loss that has a gradient of its own.

    `site_weights[s - 1]`: weight of term(s), for end sites s = 1 … k. `tasks`: weights of the
    losses on logits, by method.
    """

    site_weights: tuple[float, ...]
    tasks: Mapping[str, float]


@dataclass(frozen=True)
class Lane:
    """A cell as the engine sees it, in one stage of its training.

    `parts`: of its loss; one, unless gradients of several methods are combined. `source`: what
    lanes must share for one product to serve their stitches: the shape of the front's site, or,
    where each lane has a batch of its own, the site. `turn`: in which of a step's passes of the
    tail it flies. `habits`: its `habit` at all times of the wave.
    """

    cell: Cell
    parts: tuple[LossPart, ...]
    source: tuple[int, ...]
    turn: int = 0
    habits: tuple[tuple[bool, bool], ...] = ()

    @property
    def front_site(self) -> int:
        return self.cell.front_site

    @property
    def end_site(self) -> int:
        return self.cell.end_site

    @property
    def trained(self) -> bool:
        """Whether its stitch has an objective."""
        return bool(self.cell.objective)

    @cached_property
    def site_weights(self) -> tuple[float, ...]:
        """Weights of the terms in its whole loss, by end site."""
        return tuple(map(sum, zip(*(part.site_weights for part in self.parts), strict=True)))

    @cached_property
    def tasks(self) -> Mapping[str, float]:
        """Weights of the losses on logits in its whole loss, by method."""
        return {name: weight for part in self.parts for name, weight in part.tasks.items()}

    @cached_property
    def habit(self) -> tuple[bool, bool]:
        """Whether its loss ends where it joins, and whether it has a term there."""
        return self.reach <= self.end_site, bool(self.site_weights[self.end_site - 1])

    @property
    def group(self) -> tuple[int, tuple[int, ...], bool, float, tuple[tuple[bool, bool], ...]]:
        """Lanes that join one end site with equal values here always run together: at any time all
        have a term there or none, and all go on or none."""
        return self.turn, self.source, self.trained, self.cell.alpha, self.habits

    @property
    def needs_end_logits(self) -> bool:
        """Whether its loss compares with the end's own logits."""
        return any(method(name).end_logits for name in self.tasks)

    @cached_property
    def reach(self) -> int:
        """Deepest site that its loss needs; k + 1 is the head; 0 for a lane without a loss."""
        if self.tasks:
            return len(self.site_weights) + 1
        return max((s for s, w in enumerate(self.site_weights, 1) if w), default=0)


def lane_of(
    cell: Cell, stage: TrainingStage, sites: int, source: tuple[int, ...], turn: int = 0
) -> Lane:
    """The lane of a cell in a stage; its end has `sites` sites."""
    parts: list[Mapping[str, float]] = [stage.objective]
    if cell.combine != SUM and stage.objective:
        parts = [{name: weight} for name, weight in sorted(stage.objective.items())]
    weighting = cell.protocol.weighting if stage.weighting is None else stage.weighting
    own = tuple(_part(cell, part, weighting, sites) for part in parts)
    return Lane(cell, own, source, turn)


def _part(cell: Cell, objective: Mapping[str, float], weighting: Weighting, sites: int) -> LossPart:
    weights, tasks = [0.0] * sites, {}
    for name, weight in objective.items():
        if (terms := method(name).terms) is not None:
            shares = terms(weighting, sites + 1 - cell.end_site)
            for site, share in enumerate(shares, cell.end_site):
                weights[site - 1] += weight * share
        if method(name).loss is not None:
            tasks[name] = weight
    return LossPart(tuple(weights), tasks)


def timetable(
    cells: Sequence[Cell],
    sites: int,
    shapes: Sequence[tuple[int, ...]],
    steps: int,
    *,
    shared: bool,
    turns: Mapping[str, int] = MappingProxyType({}),
) -> list[tuple[int, list[Lane]]]:
    """The lanes from each step on at which a stage of one begins, always in one order: turn by
    turn, that in which they join the tail at first; those that never enter it come last.

    Lanes that run a stage of the network together then mostly are neighbours, so that slices serve
    for copies. shapes: of the front's sites. shared: one batch serves all lanes. turns: by cell id.
    """
    begun = sorted({start for cell in cells for start in starts(cell.course, steps)})
    times = [
        [_at(cell, step, steps, sites, shapes, shared, turns.get(cell.id, 0)) for cell in cells]
        for step in begun
    ]
    for number, same in enumerate(zip(*times, strict=True)):
        habits = tuple(lane.habit for lane in same)
        for lanes in times:
            lanes[number] = replace(lanes[number], habits=habits)
    order = sorted(range(len(cells)), key=lambda number: _place(times[0][number]))
    return [
        (step, [lanes[number] for number in order])
        for step, lanes in zip(begun, times, strict=True)
    ]


def _at(cell: Cell, step: int, steps: int, sites: int, shapes, shared: bool, turn: int) -> Lane:
    source = tuple(shapes[cell.front_site - 1]) if shared else (cell.front_site,)
    return lane_of(cell, stage_at(cell.course, step, steps), sites, source, turn)


def _place(lane: Lane) -> tuple[Any, ...]:
    outside = all(ends for ends, _ in lane.habits)
    return lane.turn, outside, lane.end_site, lane.group, lane.front_site, lane.reach


def by_turn(lanes: Sequence[Lane]) -> dict[int, tuple[int, ...]]:
    """The numbers of the lanes of each turn, in their order."""
    found: dict[int, tuple[int, ...]] = {}
    for number, lane in enumerate(lanes):
        found[lane.turn] = (*found.get(lane.turn, ()), number)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Stop:
    """What happens at one end site s of a route.

    The lanes in flight with gradient are picked by `keep` (positions among them), which leaves
    `running`; those at `leave` are done, or turn to statistics only. Both kinds, `running` and
    `tracking`, run stage s. Then lanes join at the site: `enter_grad` go on with gradient,
    `ending` come for their own term alone, and `enter_stat` go on for their statistics.
    """

    site: int
    keep: tuple[int, ...]
    leave: tuple[int, ...]
    running: tuple[int, ...]
    tracking: tuple[int, ...]
    enter_grad: tuple[int, ...]
    enter_stat: tuple[int, ...]
    ending: tuple[int, ...]


@dataclass(frozen=True)
class Route:
    """The path of all lanes through the end's tail: one stop per site, then the head.

    `head`: lanes whose logits are wanted, `head_keep` their positions among those in flight.
    """

    stops: tuple[Stop, ...]
    head: tuple[int, ...]
    head_keep: tuple[int, ...]


def route_of(
    lanes: Sequence[Lane],
    sites: int,
    *,
    full: bool,
    to_head: bool = False,
    only: Collection[int] | None = None,
) -> Route:
    """Simulate the way of the lanes (of those in `only`, where given) once.

    `full`: lanes run on to the last site without gradient where their loss ends, so that their
    running statistics move. `to_head`: every lane goes to the head (evaluation, attacks).
    """
    reach = [sites + 1 if to_head else lane.reach for lane in lanes]
    chosen = range(len(lanes)) if only is None else sorted(only)
    flying: tuple[int, ...] = ()
    tracking: tuple[int, ...] = ()
    stops = []
    for site in range(1, sites + 1):
        keep = tuple(p for p, lane in enumerate(flying) if reach[lane] >= site)
        leave = tuple(p for p, lane in enumerate(flying) if reach[lane] < site)
        running = tuple(flying[p] for p in keep)
        if full:
            tracking = tracking + tuple(flying[p] for p in leave)
        here = sorted(
            (i for i in chosen if lanes[i].end_site == site),
            key=lambda i: (*lanes[i].group, i),  # groups stay together
        )
        enter_grad = tuple(i for i in here if reach[i] > site)
        ending = tuple(i for i in here if reach[i] == site)
        enter_stat = tuple(i for i in here if full and reach[i] <= site)
        stops.append(Stop(site, keep, leave, running, tracking, enter_grad, enter_stat, ending))
        flying = running + enter_grad
        tracking = tracking + enter_stat
    head_keep = tuple(p for p, lane in enumerate(flying) if reach[lane] == sites + 1)
    return Route(tuple(stops), tuple(flying[p] for p in head_keep), head_keep)


def runs(positions: Sequence[int]) -> list[slice]:
    """Maximal slices of consecutive positions, in order: [0, 1, 2, 5] is 0:3, 5:6."""
    found: list[slice] = []
    for p in positions:
        if found and found[-1].stop == p:
            found[-1] = slice(found[-1].start, p + 1)
        else:
            found.append(slice(p, p + 1))
    return found


def take_lanes(x: Tensor, count: int, places: Sequence[int]) -> Tensor:
    """Lanes at `places` of (count*B, ...) as (m*B, ...): a view where they are neighbours."""
    if list(places) == list(range(count)):
        return x
    size, found = x.shape[0] // count, runs(places)
    if len(found) == 1:
        return x[found[0].start * size : found[0].stop * size]
    return _Taken.apply(x, count, tuple(places))


class _Taken(torch.autograd.Function):
    """Copies of lanes at distinct places. Autograd's own backward of many slices would write, and
    add up, a whole tensor for each."""

    @staticmethod
    def forward(ctx, x: Tensor, count: int, places: tuple[int, ...]) -> Tensor:
        ctx.count, ctx.places = count, places
        size = x.shape[0] // count
        return torch.cat([x[r.start * size : r.stop * size] for r in runs(places)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        size = grad.shape[0] // len(ctx.places)
        whole = torch.empty(
            (ctx.count * size, *grad.shape[1:]), dtype=grad.dtype, device=grad.device,
            memory_format=layout_of(grad),
        ).zero_()  # fmt: skip
        whole.unflatten(0, (ctx.count, size)).index_copy_(
            0, index_at(ctx.places, grad.device), grad.unflatten(0, (-1, size))
        )
        return whole, None, None


def take_rows(x: Tensor, places: tuple[int, ...]) -> Tensor:
    """Rows of x (n, ...) at `places`, which need not be distinct."""
    if places == tuple(range(len(x))):
        return x
    return x.index_select(0, index_at(places, x.device))


@cache
def index_at(places: tuple[int, ...], device: torch.device) -> Tensor:
    """The places as int64 on the device. Never dropped: captured graphs go on reading it."""
    return torch.tensor(places, device=device)
