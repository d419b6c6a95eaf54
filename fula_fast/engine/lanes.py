"""Lanes: what each cell of a wave needs of the shared step, and the route that serves them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ..kernels.shared.layout import layout_of
from ..methods import method
from ..study.cell import Cell


@dataclass(frozen=True)
class Lane:
    """A cell as the engine sees it.

    `site_weights[s - 1]`: weight of term(s) in its loss, for end sites s = 1 … k. `tasks`: weights
    of the losses on logits, by method. `trained`: its stitch has an objective. `source`: what lanes
    must share for one product to serve their stitches: the shape of the front's site, or, where
    each lane has a batch of its own, the site.
    """

    cell: Cell
    site_weights: tuple[float, ...]
    tasks: Mapping[str, float]
    source: tuple[int, ...]

    @property
    def front_site(self) -> int:
        return self.cell.front_site

    @property
    def end_site(self) -> int:
        return self.cell.end_site

    @property
    def trained(self) -> bool:
        return bool(self.cell.objective)

    @property
    def group(self) -> tuple[tuple[int, ...], bool, float, bool, bool]:
        """Lanes that join one end site with equal values here always run together: all have a term
        there or none, and all go on or none."""
        ends, measured = self.reach <= self.end_site, bool(self.site_weights[self.end_site - 1])
        return self.source, self.trained, self.cell.alpha, ends, measured

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


def lane_of(cell: Cell, sites: int, source: tuple[int, ...]) -> Lane:
    """The lane of a cell whose end has `sites` sites."""
    weights, tasks = [0.0] * sites, {}
    for name, weight in cell.objective.items():
        if (terms := method(name).terms) is not None:
            shares = terms(cell.protocol.weighting, sites + 1 - cell.end_site)
            for site, share in enumerate(shares, cell.end_site):
                weights[site - 1] += weight * share
        if method(name).loss is not None:
            tasks[name] = weight
    return Lane(cell, tuple(weights), tasks, source)


def in_order(
    cells: Sequence[Cell], sites: int, shapes: Sequence[tuple[int, ...]], *, shared: bool
) -> list[Lane]:
    """Lanes in the order in which they join the tail; those that never enter it come last.

    Lanes that run a stage together then mostly are neighbours, so that slices serve for copies.
    shapes: of the front's sites. shared: one batch serves all lanes.
    """
    lanes = [
        lane_of(c, sites, tuple(shapes[c.front_site - 1]) if shared else (c.front_site,))
        for c in cells
    ]
    return sorted(
        lanes,
        key=lambda lane: (
            lane.reach <= lane.end_site, lane.end_site, lane.group, lane.front_site, lane.reach,
        ),
    )  # fmt: skip


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
