"""The two donors of a wave as lanes travel through them: front, native end, and tail.

`shared` waves (no attack) send one batch through front and native end for all lanes; otherwise each
lane has a batch of its own, lanes concatenated along the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batchnorm import Rule
from ..models import Staged
from .bank import Bank, Group
from .lanenorm import LaneNorm, assign, index_of, lane_copy, lane_norms
from .lanes import Lane, Route, runs

Runner = Callable[[nn.Module, Tensor], Tensor]


def run_plain(stage: nn.Module, x: Tensor) -> Tensor:
    """Run a stage as it is; a compiled runner takes its place."""
    return stage(x)


@dataclass
class Flight:
    """What a route gave: `logits` (m, B, classes) of the lanes `head`, and activations by site.

    `terms`: (site, lanes, activations (n*B, ...)) wherever lanes passed a site with gradient.
    """

    logits: Tensor | None
    head: tuple[int, ...]
    terms: list[tuple[int, tuple[int, ...], Tensor]]


class Network:
    """Front, native end and tail of a wave, with the lanes' own running statistics.

    `shared`: one batch serves all lanes. `runner` runs one stage (plain, or compiled).
    """

    def __init__(
        self,
        front: Staged,
        end: Staged,
        lanes: Sequence[Lane],
        bank: Bank,
        *,
        shared: bool,
        dtype: torch.dtype,
        device: torch.device,
        runner: Runner = run_plain,
    ) -> None:
        self.lanes, self.bank, self.shared = lanes, bank, shared
        self.device, self.runner = device, runner
        streams = 1 if shared else len(lanes)
        self.front = lane_copy(front.to(device), streams, dtype)
        self.native = lane_copy(end.to(device), streams, dtype)
        self.tail = lane_copy(end.to(device), len(lanes), dtype)
        self._norms = {id(m): lane_norms(m) for n in self._models() for m in (*n.stages, n.head)}
        self._indices: dict[tuple[int, ...], Tensor | slice] = {}

    def _models(self) -> tuple[Staged, Staged, Staged]:
        return self.front, self.native, self.tail

    def index(self, lanes: tuple[int, ...]) -> Tensor | slice:
        """Lane numbers as a slice or a (cached) index tensor on the device."""
        if lanes not in self._indices:
            self._indices[lanes] = index_of(lanes, self.device)
        return self._indices[lanes]

    def _run(self, stage: nn.Module, x: Tensor, lanes: tuple[int, ...], rule: Rule) -> Tensor:
        assign(self._norms[id(stage)], self.index(lanes), len(lanes), rule)
        return self.runner(stage, x)

    # Front and native end: no gradient, except to the pixels of an attack.

    def fronts(self, x: Tensor, lanes: Sequence[int], rule: Rule) -> dict[int, Tensor]:
        """Front activations at the sites in use: {site: (B, ...)}, shared; or for the lanes that
        leave there, in the order of `lanes`, (n*B, ...)."""
        depth = {n: self.lanes[n].front_site for n in lanes}
        flying = (0,) if self.shared else tuple(depth)
        found: dict[int, Tensor] = {}
        for site in range(1, max(depth.values(), default=0) + 1):
            if not self.shared:
                x, flying = self._leave(x, flying, lambda n, s=site: depth[n] >= s)
            x = self._run(self.front.stages[site - 1], x, flying, rule)
            here = [n for n in depth if depth[n] == site]
            if here:
                found[site] = x if self.shared else self.pick(x, flying, here)
        return found

    def targets(
        self, x: Tensor, depth: Mapping[int, int], rule: Rule
    ) -> dict[int, tuple[tuple[int, ...], Tensor]]:
        """The end's own activations up to each lane's `depth` (k + 1: the logits).

        {site: (lanes, activation)}; a shared wave's entry has no lanes, as it serves all.
        """
        sites = self.native.num_sites
        found: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        flying = (0,) if self.shared else tuple(depth)
        for site in range(1, max(depth.values(), default=0) + 1):
            if not self.shared:
                x, flying = self._leave(x, flying, lambda n, s=site: depth[n] >= s)
            stage = self.native.head if site > sites else self.native.stages[site - 1]
            x = self._run(stage, x, flying, rule)
            found[site] = (() if self.shared else flying, x)
        return found

    def native_evaluation(self, x: Tensor) -> list[Tensor]:
        """The untouched end donor in eval mode: activations at sites 1 … k, then the logits."""
        found = []
        for stage in (*self.native.stages, self.native.head):
            assign(self._norms[id(stage)], slice(0, 1), 1, "running")  # all lanes' rows are equal
            x = self.runner(stage, x)
            found.append(x)
        return found

    def _leave(
        self, x: Tensor, flying: tuple[int, ...], stays: Callable[[int], bool]
    ) -> tuple[Tensor, tuple[int, ...]]:
        kept = tuple(n for n in flying if stays(n))
        return (x, flying) if kept == flying else (self.pick(x, flying, kept), kept)

    def pick(self, x: Tensor, flying: Sequence[int], lanes: Sequence[int]) -> Tensor:
        """The batches of `lanes` out of those `flying`: (n*B, ...) to (m*B, ...)."""
        places = [flying.index(n) for n in lanes]
        return take_lanes(x, len(flying), places)

    # The tail: stitches join, gradients flow.

    def fly(
        self,
        route: Route,
        fronts: Mapping[int, Tensor],
        front_order: Mapping[int, Sequence[int]],
        rule: Rule,
        *,
        training: bool,
    ) -> Flight:
        """Send the lanes along a route.

        `front_order[site]`: lanes behind `fronts[site]`, where each has its own batch. `training`:
        mode of the stitches' own batch norms. Lanes that only move statistics run without graph.
        """
        grad: Tensor | None = None
        stat: Tensor | None = None
        before: tuple[int, ...] = ()
        terms: list[tuple[int, tuple[int, ...], Tensor]] = []
        for stop in route.stops:
            grad, stat = self._through(stop, grad, stat, before, rule)
            joining = self._join(stop, fronts, front_order, training)
            if stop.running and grad is not None:
                terms.append((stop.site, stop.running, grad))
            terms += [(stop.site, part, y) for part, y in joining.items() if part]
            grad = _cat([grad, *self._parts(joining, stop.enter_grad)])
            with torch.no_grad():
                stat = _cat([stat, *self._parts(joining, stop.enter_stat)])
            before = stop.running + stop.enter_grad
        logits = None
        if route.head:
            last = take_lanes(grad, len(before), route.head_keep)
            logits = self._run(self.tail.head, last, route.head, rule)
            logits = logits.unflatten(0, (len(route.head), -1))
        return Flight(logits, route.head, terms)

    def _through(self, stop, grad, stat, before, rule):
        """Stage `stop.site` for all in flight; lanes whose loss has ended change sides."""
        if stop.leave:
            left = take_lanes(grad, len(before), stop.leave) if stop.tracking else None
            grad = take_lanes(grad, len(before), stop.keep) if stop.keep else None
            stat = _cat([stat, None if left is None else left.detach()])
        stage = self.tail.stages[stop.site - 1]
        if stop.running:
            grad = self._run(stage, grad, stop.running, rule)
        if stop.tracking:
            with torch.no_grad():
                stat = self._run(stage, stat, stop.tracking, rule)
        return grad, stat

    def _join(self, stop, fronts, order, training) -> dict[tuple[int, ...], Tensor]:
        """Stitch outputs of the groups that join here, by their lanes."""
        wanted = {*stop.enter_grad, *stop.enter_stat, *stop.ending}
        found = {}
        for group in self.bank.groups:
            if group.end_site != stop.site or not wanted.intersection(group.lanes):
                continue
            a = self._front_of(group, fronts, order)
            found[group.lanes] = group.forward(a, own=not self.shared, training=training)
        return found

    def _front_of(self, group: Group, fronts, order) -> Tensor:
        a = fronts[group.front_site]
        return a if self.shared else self.pick(a, order[group.front_site], group.lanes)

    def _parts(self, joining: Mapping[tuple[int, ...], Tensor], lanes: Sequence[int]):
        """Batches of `lanes` in order, in as few slices of the groups' outputs as possible."""
        where = {n: (part, at) for part in joining for at, n in enumerate(part)}
        for part in dict.fromkeys(where[n][0] for n in lanes):
            places = [where[n][1] for n in lanes if where[n][0] is part]
            yield take_lanes(joining[part], len(part), places)


def take_lanes(x: Tensor, count: int, places: Sequence[int]) -> Tensor:
    """Lanes at `places` of (count*B, ...) as (m*B, ...): a view where they are neighbours."""
    if list(places) == list(range(count)):
        return x
    size = x.shape[0] // count
    parts = [x[r.start * size : r.stop * size] for r in runs(places)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    kept = [p for p in parts if p is not None]
    return torch.cat(kept) if len(kept) > 1 else (kept[0] if kept else None)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics of all lane norms, by name: (lanes, C) each (not copied)."""
    return {
        f"{name}.{kind}": getattr(module, kind)
        for name, module in model.named_modules()
        if isinstance(module, LaneNorm)
        for kind in ("running_mean", "running_var", "num_batches_tracked")
    }
