"""A wave in training: the shared step of all its lanes.

One pass of the front and one native pass of the end serve every lane; the tail runs once per stage
for all lanes that have entered; one backward pass of the sum of the lanes' losses; one optimiser
step over one flat buffer. Lanes never mix, so a lane computes what its cell would compute alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..attacks.pgd import pgd
from ..attacks.settings import Attack
from ..kernels.shared.layout import laid_out, layout_of
from ..methods import Method, methods
from ..models import Staged
from ..pipelines import Batch
from ..stitching.stitch import Stitch
from ..study.cell import Cell
from ..study.protocol import Protocol
from .aims import Aims, Targets
from .bank import Bank
from .dropout import PASSES, Key, set_key, use_keyed_dropout
from .lane_norms import lane_norms, settling_steps
from .lanes import Lane, Route, in_order, index_at, route_of, take_lanes
from .network import Network, Runner, run_plain, statistics
from .optimiser import FlatOptimiser, Fuse, unfused
from .shares import Draw, Share, draw, shares_of

Terms = tuple[Tensor, list[tuple[int, int, float]]]
"""Values (n,) of terms, and each one's lane, column of the table of terms, and weight."""


def _tasks() -> tuple[Method, ...]:
    """The methods with a loss on logits: a column each in the table of terms."""
    return tuple(method for method in methods() if method.loss is not None)


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
    (stitches stay float32, or float64 with it); `settle`: let lanes whose loss needs no tail run it
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
        settle: bool = True,
        runner: Runner = run_plain,
        fuse: Fuse = unfused,
    ) -> None:
        self.device = torch.device(device)
        attacked = any(cell.alpha > 0 for cell in cells)
        self.lanes = in_order(cells, end.num_sites, front.site_shapes, shared=not attacked)
        self.shared = Shared.of(cells[0].protocol)
        self.steps, self.dtype = steps, dtype
        numbers = torch.float64 if dtype == torch.float64 else torch.float32
        self.bank = Bank(self.lanes, stitches, self.device, numbers)
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
        self._masks: Key | None = None
        if self.shared.dropout == "train":
            for which in PASSES:
                use_keyed_dropout(getattr(self.network, which), which)
        elif not self.attacked:
            self.network.find_taps()
        self._start_records()
        self._plan_phases(end.num_sites, settle)

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

    def _plan_phases(self, sites: int, settle: bool) -> None:
        """Routes of the two phases: before and after lanes without a functional term settle."""
        moving = self.shared.bn == "train"
        norms = [*lane_norms(self.network.tail), *lane_norms(self.network.front)]
        needed = settling_steps(norms) if settle and not self.attacked else None
        last = self.steps if needed is None else needed
        self.settling_from = max(self.steps - last, 0) if moving else self.steps
        self.routes = {
            full: route_of(self.lanes, sites, full=full)
            for full in ([False, True] if moving else [False])
        }
        self.trained = [n for n, lane in enumerate(self.lanes) if lane.trained]
        self.first_step = 0 if self.trained else self.settling_from

    def _constant(self, values: Sequence[float | bool], dtype: torch.dtype) -> Tensor:
        """A vector made once: a captured step may not copy from the host."""
        key = (dtype, *values)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=dtype, device=self.device)
        return self._constants[key]

    def full_at(self, step: int) -> bool:
        """Whether step number `step` moves the statistics of all lanes."""
        return True in self.routes and step >= self.settling_from

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
        self.run(x, y, self.full_at(number), x_attacked)

    def run(self, x: Tensor, y: Tensor, full: bool, x_attacked: Tensor | None = None) -> None:
        """One step in the given phase: tensor code alone, without host contact.

        x (B, C, H, W), y (B,); x_attacked (L, B, C, H, W), each lane's own batch.
        """
        lanes = list(range(len(self.lanes))) if full else self.trained
        route = self.routes[full]
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
        aims = Aims(self.lanes, targets)
        flight = self.network.fly(route, fronts, rule, training=True, aims=aims)
        self._set_masks(None)
        losses = self._losses(flight, aims, y)
        self._update(losses)

    # Attacks

    def logits(self, x: Tensor, lanes: Sequence[int]) -> Tensor:
        """Eval-mode logits of stitched models: x (n*B, C, H, W), a batch for each of `lanes`, to
        (n*B, classes). Differentiable in x; an attacked wave's lanes alone have own batches."""
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

    def _losses(self, flight, aims: Aims, y: Tensor) -> Tensor:
        """Loss of every lane, (L,), with graph; zero for a lane without an objective.

        Each weighted term has its own place in a table (L, columns), a column for every end site
        and task, whose rows are summed: in an order that does not depend on the lane's companions.
        """
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        columns = self.terms.shape[1] + len(_tasks())
        table = torch.zeros(len(self.lanes) * columns, dtype=kind, device=self.device)
        parts = [*self._site_terms(aims), *self._task_terms(flight, aims.targets, y, kind)]
        if parts:
            places = [place for _, own in parts for place in own]
            weights = self._constant([weight for *_, weight in places], kind)
            values = torch.cat([values.to(kind) for values, _ in parts]) * weights
            at = tuple(lane * columns + column for lane, column, _ in places)
            table = table.index_copy(0, index_at(at, self.device), values)
        return table.view(-1, columns).sum(1)

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
        weights = [self.lanes[n].site_weights[site - 1] for site, n in found.places]
        columns = [site - 1 for site, _ in found.places]
        yield values, list(zip(lanes, columns, weights, strict=True))

    def _terms(self, dist2: Tensor, norm2: Tensor, lanes: Sequence[int]) -> Tensor:
        """Normalised terms; lanes may differ in their norm's scope."""
        scopes = [self.lanes[n].cell.protocol.norm for n in lanes]
        if len(set(scopes)) == 1:
            return kernels.term(dist2, norm2, scopes[0])
        sample = self._constant([s == "sample" for s in scopes], torch.bool)
        each = (kernels.term(dist2, norm2, s) for s in ("sample", "batch"))
        return torch.where(sample, *each)

    def _task_terms(
        self, flight, targets: Targets, y: Tensor, kind: torch.dtype
    ) -> Iterator[Terms]:
        """The task losses of the lanes that reached the head, as `_site_terms`."""
        if flight.logits is None:
            return
        logits = flight.logits.to(kind)
        for column, task in enumerate(_tasks(), self.terms.shape[1]):
            wanted = [p for p, n in enumerate(flight.head) if task.name in self.lanes[n].tasks]
            if wanted:
                chosen = [flight.head[p] for p in wanted]
                own = take_lanes(logits, len(flight.head), wanted)
                places = [(n, column, self.lanes[n].tasks[task.name]) for n in chosen]
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
        finite = torch.isfinite(losses.detach())
        dying = self.alive & ~finite
        self.dead_at.copy_(torch.where(dying, self.optimiser.done, self.dead_at))
        self.alive.logical_and_(finite)
        kept = torch.where(self.alive, losses.detach().double(), self.loss)
        self.loss.copy_(torch.where(dying, losses.detach().double(), kept))
        self.epoch_loss.add_(torch.where(self.alive, self.loss, 0.0))
        self.epoch_steps.add_(1)
        if losses.requires_grad:
            # A dead lane's gradient may be NaN; it stays in that lane, and is masked in the step.
            self.bank.backward(losses.sum(), self.optimiser.grad)
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
        """Begin a new mean of the losses."""
        self.epoch_loss.zero_()
        self.epoch_steps.zero_()

    def snapshot(self) -> Callable[[], None]:
        """Copy the state now; the returned function puts it back bit for bit."""
        kept = {name: tensor.clone() for name, tensor in self.state().items()}
        return lambda: self.load_state(kept)
