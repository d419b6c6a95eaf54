"""A wave in training: the shared step of all its lanes.

One pass of the front and one native pass of the end serve every lane; the tail runs once per stage
for all lanes that have entered, in turns where memory is short; one backward pass of the sum of the
lanes' losses; one optimiser step over one flat buffer. A lane computes what its cell would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..attacks.pgd import pgd
from ..attacks.settings import Attack
from ..errors import not_none
from ..kernels.shared.layout import laid_out, layout_of
from ..methods import Method
from ..models import Staged
from ..pipelines import Batch
from ..stitching.stitch import Stitch
from ..study.cell import Cell
from ..study.protocol import Protocol
from .aims import Aims, Targets
from .bank import Bank
from .dropout import PASSES, Key, set_key, use_keyed_dropout
from .lane_norms import lane_norms, settling_steps
from .lanes import Lane, Route, by_turn, index_at, route_of, take_lanes, timetable
from .network import Network, Runner, run_plain, statistics
from .optimiser import FlatOptimiser, Fuse, unfused
from .phases import Phase, loss_weights, tasks
from .shares import Draw, Share, draw, shares_of
from .surgery import Surgery

Terms = tuple[Tensor, list[tuple[int, int]]]
"""Values (n,) of terms, and each one's lane and column of the table of terms."""


class Shared(NamedTuple):
    """The options that all lanes of a wave share, of those that a step asks for."""

    batch_size: int
    bn: str
    target_bn: str
    dropout: str
    attack: Attack
    attack_target: str

    @classmethod
    def of(cls, rule: Protocol) -> Shared:
        """Those of any lane's protocol."""
        return cls(
            rule.batch_size, rule.bn, rule.resolved_target_bn, rule.dropout, rule.attack,
            rule.attack_target,
        )  # fmt: skip


class Wave:
    """Lanes that train together, step by step.

    Args: `cells` that share what a wave shares; `front`, `end`: donors, never modified;
    `stitches`: initial stitch by cell id; `steps`: of the whole training; `dtype`: of activations
    (stitches stay float32, or float64 with it); `turns`: by cell id, in which of a step's turns it
    goes through the tail (0 where not given); `settle`: let lanes whose loss needs no tail run it
    for the last steps only (`False` runs it always, as a lone cell would). `runner`, `fuse`: how a
    stage, and a chain of elementwise operators, are run.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        front: Staged,
        end: Staged,
        stitches: Mapping[str, Stitch],
        steps: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        turns: Mapping[str, int] = MappingProxyType({}),
        settle: bool = True,
        runner: Runner = run_plain,
        fuse: Fuse = unfused,
    ) -> None:
        self.device = torch.device(device)
        attacked = any(cell.alpha > 0 for cell in cells)
        shapes, shared = front.site_shapes, not attacked
        times = timetable(cells, end.num_sites, shapes, steps, shared=shared, turns=turns)
        self.lanes = times[0][1]
        self.turns = by_turn(self.lanes)
        self.shared = Shared.of(cells[0].protocol)
        self.steps, self.dtype = steps, dtype
        self.bank = Bank(self.lanes, stitches, self.device, self._kind)
        self.shares = shares_of(self.lanes)
        self.attacked = bool(self.shares)
        self.network = Network(
            front, end, self.lanes, self.bank,
            shared=not self.attacked, dtype=dtype, device=self.device, runner=runner,
        )  # fmt: skip
        protocols = [lane.cell.protocol for lane in self.lanes]
        self.optimiser = FlatOptimiser(
            self.bank.flat, self.bank.lane_of, protocols, steps, fuse=fuse
        )  # fmt: skip
        self.surgery = Surgery(self.bank, [lanes for _, lanes in times], steps)
        self._masks: Key | None = None
        if self.shared.dropout == "train":
            for which in PASSES:
                use_keyed_dropout(getattr(self.network, which), which)
        elif not self.attacked:
            self.network.find_taps()
        self._start_records()
        self._plan_phases(times, settle)

    def _start_records(self) -> None:
        count, sites = len(self.lanes), self.network.native.num_sites
        new = {"dtype": torch.float64, "device": self.device}
        self.alive = torch.ones(count, dtype=torch.bool, device=self.device)
        self.dead_at = torch.full((count,), -1, dtype=torch.int64, device=self.device)
        self.loss = torch.zeros(count, **new)
        self.epoch_loss, self.epoch_steps = torch.zeros(count, **new), torch.zeros((), **new)
        self.terms = torch.full((count, sites), float("nan"), **new)
        self._constants: dict[tuple, Tensor] = {}
        self._attack_routes: dict[tuple[int, ...], Route] = {}

    def _plan_phases(self, times: Sequence[tuple[int, list[Lane]]], settle: bool) -> None:
        """The phases: what lanes minimise changes where a stage of one begins, and `settling_from`
        lets those without a functional term settle."""
        moving = self.shared.bn == "train"
        norms = [*lane_norms(self.network.tail), *lane_norms(self.network.front)]
        needed = settling_steps(norms) if settle and not self.attacked else None
        last = self.steps if needed is None else needed
        self.settling_from = max(self.steps - last, 0) if moving else self.steps
        begun = {start for start, _ in times} | ({self.settling_from} if moving else set())
        self.phases = [
            self._phase(start, times) for start in sorted(begun) if not start or start < self.steps
        ]
        self.trained = [n for n, lane in enumerate(self.lanes) if lane.trained]
        self.first_step = 0 if self.trained else self.settling_from

    def _phase(self, start: int, times: Sequence[tuple[int, list[Lane]]]) -> Phase:
        lanes = [lanes for begun, lanes in times if begun <= start][-1]
        full = self.shared.bn == "train" and start >= self.settling_from
        sites = self.network.native.num_sites
        routes = {
            turn: route_of(lanes, sites, full=full, only=own) for turn, own in self.turns.items()
        }
        new = {"dtype": self._kind, "device": self.device}
        weights = tuple(torch.tensor(part, **new) for part in loss_weights(lanes))
        return Phase(start, lanes, routes, full, weights)

    @property
    def _kind(self) -> torch.dtype:
        """Of stitches and losses: float32, or float64 with the activations."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _constant(self, values: Sequence[float | bool], dtype: torch.dtype) -> Tensor:
        """A vector made once: a captured step may not copy from the host."""
        key = (dtype, *values)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=dtype, device=self.device)
        return self._constants[key]

    def phase_at(self, step: int) -> Phase:
        """The phase of step number `step`."""
        return [phase for phase in self.phases if phase.start <= step][-1]

    def key_dropout(self, epoch: int, index: Tensor) -> None:
        """Masks of the next step, for the images `index` (B,) of the batch."""
        self._masks = Key(self.lanes[0].cell.data_seed, epoch, index)

    def _set_masks(self, masks: Key | None) -> None:
        if self.shared.dropout == "train":
            for part in (self.network.front, self.network.native, self.network.tail):
                set_key(part, masks)

    def step(self, x: Tensor, y: Tensor, number: int, x_attacked: Tensor | None = None) -> None:
        """Training step `number` on images x (B, C, H, W) with labels y (B,).

        `x_attacked` (L*B, C, H, W): each lane's own batch, in an attacked wave.
        """
        self.run(x, y, self.phase_at(number), x_attacked)

    def run(self, x: Tensor, y: Tensor, phase: Phase, x_attacked: Tensor | None = None) -> None:
        """One step in the given phase: tensor code alone, without host contact.

        x (B, C, H, W), y (B,); x_attacked (L, B, C, H, W), each lane's own batch.
        """
        self.lanes = phase.lanes
        lanes = list(range(len(self.lanes))) if phase.full else self.trained
        rule = "moving" if self.shared.bn == "train" else "running"
        self._set_masks(self._masks)
        x = x.to(self.dtype)
        own = (
            x
            if x_attacked is None
            else take_lanes(x_attacked.to(self.dtype), len(self.lanes), lanes)
        )
        with torch.no_grad():
            targets = self._targets(x, own, lanes)
            fronts = self.network.fronts(own, lanes, rule)
        losses: Tensor | None = None
        grads = self.surgery.buffers(len(phase.weights), self.optimiser)
        for turn, route in phase.routes.items():
            aims = Aims(self.lanes, targets)
            flight = self.network.fly(route, fronts, rule, training=True, aims=aims)
            table = self._table(flight, aims, y)
            parts = [(table * weights).sum(1) for weights in phase.weights]
            found = sum((part.detach() for part in parts[1:]), parts[0].detach())
            losses = found if losses is None else losses + found
            # A dead lane's gradient may be NaN; it stays in that lane, and is masked in the step.
            self.bank.backward([part.sum() for part in parts], grads, turn)
            fronts.forget()
        self._set_masks(None)
        self.surgery.combine(grads, self.optimiser)
        del grads  # the update needs room
        self._update(not_none(losses))

    # Attacks

    def logits(self, x: Tensor, lanes: Sequence[int]) -> Tensor:
        """Logits in eval mode (n*B, classes), differentiable in x (n*B, C, H, W): a batch for each
        of `lanes`; an attacked wave's lanes alone have own batches."""
        route = self._attack_route(tuple(lanes))
        fronts = self.network.fronts(x.to(self.dtype), lanes, "running")
        flight = self.network.fly(route, fronts, "running", training=False)
        places = [flight.head.index(n) for n in lanes]
        return take_lanes(flight.logits.flatten(0, 1), len(lanes), places)

    def _attack_route(self, lanes: tuple[int, ...]) -> Route:
        if lanes not in self._attack_routes:
            sites = self.network.native.num_sites
            self._attack_routes[lanes] = route_of(
                self.lanes, sites, full=False, to_head=True, only=lanes
            )
        return self._attack_routes[lanes]

    def attack(self, batch: Batch, epoch: int, step: int) -> Tensor:
        """`attacked_batch` with the random numbers of this step."""
        numbers = batch.index.tolist() if self.shared.attack.random_start else None
        drawn = draw(self.shares, epoch, step, batch.images, numbers)
        return self.attacked_batch(batch.images, batch.labels, drawn)

    def attacked_batch(self, images: Tensor, labels: Tensor, drawn: Draw) -> Tensor:
        """Each lane's own batch, (L*B, C, H, W): its share of images attacked on its stitched model
        in eval mode, with the protocol's settings. Tensor code alone, without host contact."""
        images = images.to(self.optimiser.flat.dtype)
        own = torch.cat([images] * len(self.lanes))
        by_lane = own.unflatten(0, (len(self.lanes), -1))
        for share, places in zip(self.shares, drawn.places, strict=True):
            if len(places):
                members = self._constant(share.lanes, torch.int64)
                found = self._attacked(images, labels, share, places, drawn.noise)
                by_lane[members[:, None], places] = found
        return own

    def _attacked(self, images, labels, share: Share, places, noise) -> Tensor:
        """Adversarial images of the lanes of a share, (n, m, C, H, W)."""
        count, layout = len(share.lanes), layout_of(images)

        def chosen(x: Tensor) -> Tensor:  # (B, ...) to (n*m, ...)
            return laid_out(torch.cat([x.index_select(0, places)] * count), layout)

        found = pgd(
            lambda z: self.logits(z, share.lanes), chosen(images),
            labels.index_select(0, places).repeat(count), self.shared.attack,
            noise=None if noise is None else chosen(noise),
        )  # fmt: skip
        return found.unflatten(0, (count, -1))

    def _targets(self, x: Tensor, own: Tensor, lanes: Sequence[int]) -> Targets:
        rule = "batch" if self.shared.target_bn == "train" else "running"
        depth = {n: self._target_depth(self.lanes[n]) for n in lanes}
        depth = {n: d for n, d in depth.items() if d}
        if not depth:
            return {}
        if self.network.shared:
            return self.network.targets(x, depth, rule)
        if self.shared.attack_target == "clean":
            x = torch.cat([x] * len(depth))  # which keeps the layout, as repeat() does not
        else:
            x = take_lanes(own, len(lanes), [list(lanes).index(n) for n in depth])
        return self.network.targets(x, depth, rule)

    def _target_depth(self, lane: Lane) -> int:
        """Deepest native activation that the lane's loss compares with; k + 1: the logits."""
        if lane.needs_end_logits:
            return self.network.native.num_sites + 1
        return max((s for s, w in enumerate(lane.site_weights, 1) if w), default=0)

    # Losses

    def _table(self, flight, aims: Aims, y: Tensor) -> Tensor:
        """What lanes' losses are made of, (L, columns), with graph: a column for every end site's
        term, and for every task's loss; zero where a lane has none.

        Rows are weighted and summed: in an order that does not depend on the lane's companions.
        """
        columns = self.terms.shape[1] + len(tasks())
        table = torch.zeros(len(self.lanes) * columns, dtype=self._kind, device=self.device)
        parts = [*self._site_terms(aims), *self._task_terms(flight, aims.targets, y)]
        if parts:
            values = torch.cat([values.to(self._kind) for values, _ in parts])
            at = tuple(lane * columns + column for _, own in parts for lane, column in own)
            table = table.index_copy(0, index_at(at, self.device), values)
        return table.view(-1, columns)

    def _site_terms(self, aims: Aims) -> Iterator[Terms]:
        """The terms at the end's sites; they are recorded as well."""
        found = aims.distances()
        if found is None:
            return
        lanes = [n for _, n in found.places]
        values = self._terms(found.dist2, found.norm2, lanes)
        sites = self.terms.shape[1]
        at = tuple(n * sites + site - 1 for site, n in found.places)
        with torch.no_grad():
            self.terms.view(-1).index_copy_(0, index_at(at, self.device), values.double())
        yield values, [(n, site - 1) for site, n in found.places]

    def _terms(self, dist2: Tensor, norm2: Tensor, lanes: Sequence[int]) -> Tensor:
        """Normalised terms; lanes may differ in their norm's scope."""
        scopes = [self.lanes[n].cell.protocol.norm for n in lanes]
        if len(set(scopes)) == 1:
            return kernels.term(dist2, norm2, scopes[0])
        sample = self._constant([s == "sample" for s in scopes], torch.bool)
        each = (kernels.term(dist2, norm2, s) for s in ("sample", "batch"))
        return torch.where(sample, *each)

    def _task_terms(self, flight, targets: Targets, y: Tensor) -> Iterator[Terms]:
        """The task losses of the lanes that reached the head, as `_site_terms`."""
        if flight.logits is None:
            return
        logits = flight.logits.to(self._kind)
        for column, task in enumerate(tasks(), self.terms.shape[1]):
            wanted = [p for p, n in enumerate(flight.head) if task.name in self.lanes[n].tasks]
            if wanted:
                chosen = [flight.head[p] for p in wanted]
                own = take_lanes(logits, len(flight.head), wanted)
                places = [(n, column) for n in chosen]
                yield self._task(task, own, chosen, targets, y), places

    def _task(self, task: Method, logits: Tensor, chosen, targets: Targets, y: Tensor) -> Tensor:
        """(n, B, classes) to (n,): the method's loss of every lane."""
        g = None
        if task.end_logits:
            served, g = targets[self.network.native.num_sites + 1]
            if served:
                g = self.network.pick(g, served, chosen).unflatten(0, (len(chosen), -1))
            g = g.to(logits.dtype)
        return task.load()(logits, g, y if task.labels else None)

    # Update

    def _update(self, losses: Tensor) -> None:
        """A step of the optimiser, for losses (L,) whose gradients have been taken."""
        finite = torch.isfinite(losses)
        dying = self.alive & ~finite
        self.dead_at.copy_(torch.where(dying, self.optimiser.done, self.dead_at))
        self.alive.logical_and_(finite)
        kept = torch.where(self.alive, losses.double(), self.loss)
        self.loss.copy_(torch.where(dying, losses.double(), kept))
        self.epoch_loss.add_(torch.where(self.alive, self.loss, 0.0))
        self.epoch_steps.add_(1)
        self.optimiser.step(self.alive)

    # State

    def state(self) -> dict[str, Tensor]:
        """Everything that training has changed, by name (not copied): what a checkpoint holds."""
        parts = {
            "optimiser": self.optimiser.state(),
            "front": statistics(self.network.front),
            "tail": statistics(self.network.tail),
            "stitch": self.bank.running(),
            "record": {
                name: getattr(self, name)
                for name in ("alive", "dead_at", "loss", "epoch_loss", "epoch_steps", "terms")
            },
        }
        return {f"{part}/{name}": t for part, named in parts.items() for name, t in named.items()}

    @torch.no_grad()
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Copy a checkpoint's tensors, of any shape that `state` gave them, into place."""
        for name, tensor in self.state().items():
            tensor.copy_(saved[name])

    def start_epoch(self) -> None:
        """Begin a new mean of the losses; terms of a stage that has ended are none of the next."""
        self.terms.fill_(float("nan"))
        self.epoch_loss.zero_()
        self.epoch_steps.zero_()

    def snapshot(self) -> Callable[[], None]:
        """Copy the state now; the returned function puts it back bit for bit."""
        kept = {name: tensor.clone() for name, tensor in self.state().items()}
        return lambda: self.load_state(kept)
