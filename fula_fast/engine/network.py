"""The two donors of a wave as lanes travel through them: front, native end, and tail.

`shared` waves (no attack) send one batch through front and native end for all lanes; otherwise each
lane has a batch of its own, lanes concatenated along the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import not_none
from ..kernels.shared.layout import laid_out, layout_of
from ..models import Staged
from ..models.batchnorm import Rule
from .aims import Aims, Targets
from .bank import Bank, Group
from .fronts import Fronts
from .fused_blocks import asked, fuse_blocks
from .lane_norms import LaneNorm, assign, cast, index_of, lane_copy, lane_norms, last_norm
from .lanes import Lane, Route, Stop, take_lanes

Runner = Callable[[nn.Module, Tensor], Tensor]


def run_plain(stage: nn.Module, x: Tensor) -> Tensor:
    """Run a stage as it is, x (B, ...) to (B, ...); a compiled runner takes its place."""
    return stage(x)


@dataclass
class Flight:
    """What a route gave: `logits` (m, B, classes) of the lanes `head`.

    `activations`: (site, lanes, activations (n*B, ...)) wherever lanes passed a site with gradient;
    kept only where the route was flown without aims.
    """

    logits: Tensor | None
    head: tuple[int, ...]
    activations: list[tuple[int, tuple[int, ...], Tensor]]


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
        self.device, self.dtype, self.runner = device, dtype, runner
        streams = 1 if shared else len(lanes)
        self.front = lane_copy(front.to(device), streams, dtype)
        end = cast(end.to(device), dtype)
        self.native = lane_copy(end, streams, dtype)
        self.tail = lane_copy(end, len(lanes), dtype)
        if asked():
            fuse_blocks(*self._models())
        self._taps: list[LaneNorm | None] = [None] * len(self.tail.stages)
        self._norms = {id(m): lane_norms(m) for n in self._models() for m in (*n.stages, n.head)}
        self._indices: dict[tuple[int, ...], Tensor | slice] = {}

    @torch.no_grad()
    def find_taps(self) -> None:
        """Let the batch norms that end the tail's stages measure distances on their way."""
        x = torch.zeros(1, *self.tail.input_shape, device=self.device, dtype=self.dtype)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        x = self.tail.prepared(x)
        for site, stage in enumerate(self.tail.stages):
            assign(self._norms[id(stage)], slice(0, 1), 1, "running")
            x, self._taps[site] = last_norm(stage, x)

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

    def fronts(self, x: Tensor, lanes: Sequence[int], rule: Rule) -> Fronts:
        """Front activations at the sites in use: (B, ...), shared; or for the lanes that leave
        there, in the order of `lanes`, (n*B, ...)."""
        depth = {n: self.lanes[n].front_site for n in lanes}
        flying = (0,) if self.shared else tuple(depth)
        found: dict[int, Tensor] = {}
        x = self.front.prepared(x)
        for site in range(1, max(depth.values(), default=0) + 1):
            if not self.shared:
                x, flying = self._leave(x, flying, lambda n, s=site: depth[n] >= s)
            x = self._run(self.front.stages[site - 1], x, flying, rule)
            here = [n for n in depth if depth[n] == site]
            if here:
                found[site] = x if self.shared else self.pick(x, flying, here)
        order = {s: [n for n in depth if depth[n] == s] for s in found}
        return Fronts(found, None if self.shared else order)

    def targets(self, x: Tensor, depth: Mapping[int, int], rule: Rule) -> Targets:
        """The end's own activations up to each lane's `depth` (k + 1: the logits).

        {site: (lanes, activation)}; a shared wave's entry has no lanes, as it serves all.
        """
        sites = self.native.num_sites
        found: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        x = self.native.prepared(x)
        flying = (0,) if self.shared else tuple(depth)
        for site in range(1, max(depth.values(), default=0) + 1):
            if not self.shared:
                x, flying = self._leave(x, flying, lambda n, s=site: depth[n] >= s)
            stage = self.native.head if site > sites else self.native.stages[site - 1]
            x = self._run(stage, x, flying, rule)
            found[site] = (() if self.shared else flying, x)
        return found

    def native_evaluation(self, x: Tensor) -> list[Tensor]:
        """The untouched end donor in eval mode, of x (B, C, H, W).

        Returns activations (B, ...) at sites 1 … k, then the logits (B, classes).
        """
        found, x = [], self.native.prepared(x)
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
        self, route: Route, fronts: Fronts, rule: Rule, *, training: bool, aims: Aims | None = None
    ) -> Flight:
        """Send the lanes along a route; distances to the `aims` are measured on the way.

        `training`: mode of the stitches' own batch norms. Lanes that only move statistics run
        without graph.
        """
        grad: Tensor | None = None
        stat: Tensor | None = None
        before: tuple[int, ...] = ()
        activations: list[tuple[int, tuple[int, ...], Tensor]] = []
        for stop in route.stops:
            grad, stat = self._through(stop, grad, stat, before, rule, aims)
            joining = self._join(stop, fronts, training, aims)
            if aims is None:
                passing = {stop.running: grad} if stop.running else {}
                activations += [(stop.site, *part) for part in (passing | joining).items()]
            grad = _joined(grad, stop.running, self._parts(joining, stop.enter_grad))
            with torch.no_grad():
                stat = _joined(stat, stop.tracking, self._parts(joining, stop.enter_stat))
            before = stop.running + stop.enter_grad
        logits = None
        if route.head:
            logits = self._to_logits(grad, before, route, rule)
        return Flight(logits, route.head, activations)

    def _to_logits(self, x: Tensor, flying: tuple[int, ...], route: Route, rule: Rule) -> Tensor:
        """Logits (m, B, classes) of the lanes `route.head`: picked among the logits of all, which
        are small, unless batch norms in the head must see those lanes alone."""
        head, keep, x = self.tail.head, route.head_keep, _LaidBack.apply(x)
        if self._norms[id(head)]:
            logits = self._run(head, take_lanes(x, len(flying), keep), route.head, rule)
        else:
            logits = take_lanes(self._run(head, x, flying, rule), len(flying), keep)
        return logits.unflatten(0, (len(keep), -1))

    def _through(self, stop: Stop, grad, stat, before, rule: Rule, aims: Aims | None):
        """Stage `stop.site` for all in flight; lanes whose loss has ended change sides."""
        if stop.leave:
            left = take_lanes(grad, len(before), stop.leave) if stop.tracking else None
            grad = take_lanes(grad, len(before), stop.keep) if stop.keep else None
            stat = _cat([stat, None if left is None else left.detach()])
        if stop.running:
            grad = self._measured(stop, grad, rule, aims)
        if stop.tracking:
            room = len(stop.enter_stat) if aims else 0
            with torch.no_grad():
                stat = self._roomy(stop.site, stat, stop.tracking, room, rule)
        return grad, stat

    def _roomy(self, site: int, x: Tensor, lanes: tuple[int, ...], room: int, rule: Rule) -> Tensor:
        """Run stage `site` of the tail; its output has room for that many lanes more where the
        batch norm that writes it can leave it."""
        stage, tap = self.tail.stages[site - 1], self._taps[site - 1]
        if tap is None:
            return self._run(stage, x, lanes, rule)
        tap.room = room * (x.shape[0] // len(lanes))
        x = self._run(stage, x, lanes, rule)
        tap.room = 0
        return x

    def _measured(self, stop: Stop, x: Tensor, rule: Rule, aims: Aims | None) -> Tensor:
        """Run stage `stop.site` for the lanes with gradient, and take their distances."""
        tap, room = self._taps[stop.site - 1], len(stop.enter_grad) if aims else 0
        target = aims.shared(stop.site, stop.running) if aims and tap else None
        if aims is None or tap is None or target is None:
            x = self._roomy(stop.site, x, stop.running, room, rule)
            if aims and tap is None:  # else none of these lanes has a term here
                aims.compare(stop.site, stop.running, x)
            return x
        tap.target = target
        x = self._roomy(stop.site, x, stop.running, room, rule)
        aims.add(stop.site, stop.running, not_none(tap.dist2))
        tap.target = tap.dist2 = None
        return x

    def _join(self, stop: Stop, fronts: Fronts, training, aims) -> dict[tuple[int, ...], Tensor]:
        """Stitch outputs of the groups that join here, by their lanes."""
        wanted = {*stop.enter_grad, *stop.enter_stat, *stop.ending}
        found = {}
        for group in self.bank.groups:
            if group.end_site != stop.site or not wanted.intersection(group.lanes):
                continue
            y = self._stitched(group, fronts.of(group), stop, training, aims)
            if y is not None:
                found[group.lanes] = y
        return found

    def _stitched(self, group: Group, x: Tensor, stop: Stop, training, aims) -> Tensor | None:
        """Outputs of a group; None where only their distances are wanted."""
        target = aims.shared(stop.site, group.lanes) if aims else None
        if target is not None and group.measures:
            goes_on = not {*stop.enter_grad, *stop.enter_stat}.isdisjoint(group.lanes)
            y, dist2 = group.measured(x, target, training=training, write=goes_on)
            aims.add(stop.site, group.lanes, dist2)
            return y
        y = group.forward(x, training=training)
        if aims:
            aims.compare(stop.site, group.lanes, y)
        return y

    def _parts(
        self, joining: Mapping[tuple[int, ...], Tensor], lanes: Sequence[int]
    ) -> list[tuple[int, Tensor]]:
        """Batches of `lanes` in order, in as few slices of the groups' outputs as possible, with
        the number of lanes in each."""
        where = {n: (part, at) for part in joining for at, n in enumerate(part)}
        found = []
        for part in dict.fromkeys(where[n][0] for n in lanes):
            places = [where[n][1] for n in lanes if where[n][0] is part]
            found.append((len(places), take_lanes(joining[part], len(part), places)))
        return found


def _joined(
    x: Tensor | None, lanes: Sequence[int], parts: Sequence[tuple[int, Tensor]]
) -> Tensor | None:
    """Batches `x` of `lanes` with `parts` behind, (lanes, batches); x may have room for them."""
    more = [part for _, part in parts]
    if lanes and more:
        batch = more[0].shape[0] // parts[0][0]
        if x.shape[0] == batch * (len(lanes) + sum(count for count, _ in parts)):
            return _Placed.apply(x, *more)
    return _cat([x, *more])


class _LaidBack(torch.autograd.Function):
    """The same tensor; its gradient comes in its layout. That of a mean over positions has channels
    first, and the stage before would read it element by element."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.layout = layout_of(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return laid_out(grad, ctx.layout)


class _Placed(torch.autograd.Function):
    """Parts written into the room at the end of a tensor, where `cat` would copy all of it."""

    @staticmethod
    def forward(ctx, whole: Tensor, *parts: Tensor) -> Tensor:
        ctx.sizes = [len(part) for part in parts]
        torch.cat(parts, out=whole[len(whole) - sum(ctx.sizes) :])
        ctx.mark_dirty(whole)
        return whole

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the whole goes on as it is: nobody reads its end."""
        return grad, *grad[len(grad) - sum(ctx.sizes) :].split(ctx.sizes)


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
