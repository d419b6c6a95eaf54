"""The solo executor: one cell trained alone, in plain PyTorch.

It is the oracle for the wave engine: front up to its site, stitch, tail; targets in one native pass
of the end; no gradient where none is needed. Nothing is shared, fused or skipped.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..attacks.columns import attacked_images, attacked_models
from ..attacks.pgd import pgd
from ..attacks.start_noise import start_noise
from ..device.precision import arithmetic
from ..errors import FulaError, not_none
from ..measures.agreement import Agreement
from ..measures.outputs import OutputTable
from ..measures.registry import measure
from ..measures.sites import SiteTable, stitch_columns
from ..methods import Method, TrainingStage, methods, objectives
from ..methods.staging import SUM, Stages, stage_at
from ..methods.weightings import Weighting
from ..models import Staged, batchnorm
from ..pipelines import Batch
from ..stitching.starts import activations, check_sites
from ..stitching.stitch import Stitch
from ..study.cell import Cell
from ..study.protocol import Protocol
from .dropout import Key, set_key, use_keyed_dropout
from .statistics import moves, statistics_of
from .surgery import combine, projection_orders
from .task import Outcome, WaveTask, attacked_mask, check_result, non_finite, stitches_of

Attacker = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


class StitchedModel(nn.Module):
    """h = end_tail . stitch . front, with its own copies of everything that may move.

    Images (B, C, H, W) in, logits (B, classes) out. Donors passed in are never modified.
    """

    front: Staged
    tail: Staged
    stitch: Stitch
    front_site: int
    end_site: int

    def __init__(
        self, front: Staged, end: Staged, front_site: int, end_site: int, stitch: Stitch
    ) -> None:
        super().__init__()
        check_sites(front, front_site, "front")
        check_sites(end, end_site, "end")
        self.front = batchnorm.frozen(copy.deepcopy(front))
        self.tail = batchnorm.frozen(copy.deepcopy(end))
        self.front_site, self.end_site = front_site, end_site
        self.stitch = stitch

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return self.front.input_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.tail.head(self.tail.run(self.at_stitch(x), self.end_site))

    def at_stitch(self, x: Tensor) -> Tensor:
        """The stitch's output for x (B, C, H, W), in the place of the end's own activation at its
        site."""
        return self.stitch(self.front.run(x, 0, self.front_site))


@dataclass(frozen=True)
class StepResult:
    """One training step: the trained loss (0 for a closed form), the objectives by method, and the
    terms from the stitch's site to the last one."""

    loss: float
    values: dict[str, float]
    terms: tuple[float, ...]


class SoloCell:
    """One cell: a stitch in training between two frozen donors.

    Args: `front`, `end`: donors (left untouched). `front_site`, `end_site`: from 1. `objective`:
    weights by method (empty for a closed form: nothing is trained). `stitch`: the initial
    stitch, trained in place. `steps`: of the whole training, for the schedule.
    `attacker(logits_of, x, y)`: adversarial version of a batch, for alpha > 0. `stages`,
    `combination`: as a `Cell`'s; `seed` keys the order in which gradients are combined.
    """

    def __init__(
        self,
        front: Staged,
        end: Staged,
        front_site: int,
        end_site: int,
        objective: Mapping[str, float],
        protocol: Protocol,
        stitch: Stitch,
        steps: int,
        *,
        attacker: Attacker | None = None,
        stages: Stages = (),
        combination: str = SUM,
        seed: int = 0,
    ) -> None:
        self.model = StitchedModel(front, end, front_site, end_site, stitch)
        self.native = batchnorm.frozen(copy.deepcopy(end))
        self.objective, self.protocol = dict(objective), protocol
        self.course = stages or (TrainingStage(self.objective, protocol.weighting),)
        self.combination, self.seed = combination, seed
        self.steps, self.done = steps, 0
        self.attacker = attacker
        self.optimiser = _optimiser(stitch, protocol) if objective else None
        if protocol.dropout == "train":
            for which, part in self._parts().items():
                use_keyed_dropout(part, which)

    def _parts(self) -> dict[str, nn.Module]:
        return {"front": self.model.front, "native": self.native, "tail": self.model.tail}

    def step(
        self, x: Tensor, y: Tensor, attacked: Tensor | None = None, masks: Key | None = None
    ) -> StepResult:
        """One batch: x (B, C, H, W), y (B,); `attacked` (B,) marks the images to attack, `masks`
        keys dropout where it is on.

        With batch norm under `train`, running statistics of front and tail move.
        """
        clean = x
        if attacked is not None and attacked.any():
            x = x.clone()
            self._rules("running")
            self.model.stitch.eval()
            x[attacked] = not_none(self.attacker)(self.model, clean[attacked], y[attacked])
        self._rules("moving" if self.protocol.bn == "train" else "running")
        self._key_dropout(masks)
        target_input = x if self.protocol.attack_target == "adversarial" else clean
        targets, target_logits = self._targets(target_input)
        with torch.no_grad():
            a = self.model.front.run(x, 0, self.model.front_site)
        stage = stage_at(self.course, self.done, self.steps)
        with torch.set_grad_enabled(bool(self.objective)):
            values, terms = self._values(a, y, targets, target_logits, stage)
            parts = {name: weight * values[name] for name, weight in stage.objective.items()}
            loss = sum(parts.values())
        self._key_dropout(None)
        if self.objective:
            self._update(loss, parts, terms)
        self.done += 1
        return StepResult(
            float(torch.as_tensor(loss).detach()),
            {name: float(value.detach()) for name, value in values.items()},
            tuple(float(t.detach()) for t in terms),
        )

    def _key_dropout(self, masks: Key | None) -> None:
        for part in self._parts().values():
            set_key(part, masks)

    def _rules(self, rule: batchnorm.Rule) -> None:
        batchnorm.set_rule(self.model.front, rule)
        batchnorm.set_rule(self.model.tail, rule)

    @torch.no_grad()
    def _targets(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        rule = "batch" if self.protocol.resolved_target_bn == "train" else "running"
        with batchnorm.rule(self.native, rule):
            sites = range(self.model.end_site, self.native.num_sites + 1)
            targets = activations(self.native, x, sites)
            return targets, self.native.head(targets[-1])

    def _values(
        self, a: Tensor, y: Tensor, targets: list[Tensor], target_logits, stage: TrainingStage
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        self.model.stitch.train()
        h = self.model.stitch(a)
        tail, norm = self.model.tail, self.protocol.norm
        terms = [objectives.term(h, targets[0], norm)]
        for site, target in enumerate(targets[1:], self.model.end_site):
            h = tail.run(h, site, site + 1)
            terms.append(objectives.term(h, target, norm))
        weighting = self.protocol.weighting if stage.weighting is None else stage.weighting
        given = (terms, weighting, tail.head(h), target_logits, y)
        asked = (m for m in methods() if m.name in stage.objective or _compares(m, weighting))
        return {m.name: objectives.value(m, *given) for m in asked}, terms

    def _update(self, loss: Tensor, parts: Mapping[str, Tensor], terms) -> None:
        if not torch.isfinite(loss):
            raise non_finite(float(loss.detach()), self.done, [float(t.detach()) for t in terms])
        rate = learning_rate(self.protocol, self.done, self.steps)
        optimiser = not_none(self.optimiser)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        if self.combination == SUM or len(parts) == 1:
            loss.backward()
        else:
            order = projection_orders(self.seed, self.steps, len(parts))[self.done]
            own = [parts[name] for name in sorted(parts)]
            combine(own, list(self.model.stitch.parameters()), order)
        optimiser.step()


def _compares(method: Method, weighting: Weighting) -> bool:
    """All that are trained, for comparison; a list of weights may be of other sites' length."""
    return method.trained and (not method.weighted or isinstance(weighting, str))


def learning_rate(protocol: Protocol, step: int, steps: int) -> float:
    """Rate at `step` of `steps`: constant, or times 0.1 at each third of the training."""
    thirds = 3 * step // max(steps, 1) if protocol.schedule == "thirds" else 0
    return protocol.lr * 0.1**thirds


def _optimiser(stitch: Stitch, protocol: Protocol) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[protocol.optimiser]
    extra = {"momentum": protocol.momentum} if protocol.optimiser == "sgd" else {}
    # Adam's decay is the L2 form (added to the gradient), on weight and bias alike.
    return kind(stitch.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay, **extra)


def run_wave(task: WaveTask) -> Iterator[list[Outcome]]:
    """Run a wave's cells one after another; a cell that fails does not stop the others."""
    front, end = (copy.deepcopy(m).eval().to(task.device) for m in (task.front, task.end))
    with arithmetic(task.precision):
        stitches = stitches_of(replace(task, front=front, end=end))
    front, end = front.to(task.dtype), end.to(task.dtype)
    for cell in task.cells:
        try:
            outcome, _ = run_cell(task, cell, stitches[cell.id], front, end)
        except FulaError as error:
            outcome = Outcome(cell, error=str(error))
        yield [outcome]


def run_cell(
    task: WaveTask, cell: Cell, stitch: Stitch, front: Staged, end: Staged
) -> tuple[Outcome, StitchedModel]:
    """Train and measure one cell of a task; gives its model too, with its own running statistics.

    `front`, `end`: the task's donors on its device, in its dtype.
    """
    with arithmetic(task.precision):
        return _run_cell(task, cell, stitch, front, end)


def _run_cell(
    task: WaveTask, cell: Cell, stitch: Stitch, front: Staged, end: Staged
) -> tuple[Outcome, StitchedModel]:
    started = time.perf_counter()
    solo = SoloCell(
        front, end, cell.front_site, cell.end_site, cell.objective, cell.protocol,
        stitch.to(task.device, task.parameter_dtype), task.steps,
        stages=cell.stages, combination=cell.combine, seed=cell.data_seed,
    )  # fmt: skip
    task.progress.wave_started(1, task.steps, task.flops / len(task.cells))
    loss = _train(task, cell, solo)
    seconds = time.perf_counter() - started
    metrics = {"loss": loss, "train_seconds": seconds, "engine_mode": "solo"}
    for name, batches in task.evaluations.items():
        asked = task.measures, task.samples
        found = evaluate(solo.model, solo.native, batches(), task.dtype, *asked)
        prefix = "" if name == next(iter(task.evaluations)) else f"{name}_"
        metrics |= {prefix + key: value for key, value in found.items()}
    metrics |= stitch_columns(solo.model.stitch.state_dict(), task.measures)
    if cell.protocol.measures_robustness:
        metrics |= _robust(task, cell, solo)
    statistics = model_statistics(solo.model) if moves(cell) else {}
    stitched = dict(solo.model.stitch.state_dict())
    return check_result(Outcome(cell, metrics, stitched, statistics)), solo.model


def model_statistics(model: StitchedModel) -> dict[str, Tensor]:
    """The running statistics of the norms that a stitched model passes through (not copied)."""
    return statistics_of(
        model.front, model.tail, model.front_site, model.end_site, nn.modules.batchnorm._BatchNorm
    )


def _robust(task: WaveTask, cell: Cell, solo: SoloCell) -> dict[str, object]:
    batches = next(iter(task.evaluations.values()))()
    images, labels = attacked_images(batches, task.robust_images)
    model, end = _exact(task, cell, solo)
    with batchnorm.rule(end, "running"), torch.no_grad():
        ((columns, _),) = attacked_models(
            model,
            lambda x: end(x.to(task.parameter_dtype)),
            images,
            labels,
            cell.protocol.robust,
            cell.protocol.robust_options(task.precision),
        )
    return columns


@torch.no_grad()
def _exact(task: WaveTask, cell: Cell, solo: SoloCell) -> tuple[StitchedModel, Staged]:
    """Model and end donor in full precision, from the donors' own weights: what is attacked."""
    if task.dtype == task.parameter_dtype:
        return solo.model, solo.native
    front, end = (
        copy.deepcopy(donor).to(task.device, task.parameter_dtype)
        for donor in (task.front, task.end)
    )
    model = StitchedModel(
        front, end, solo.model.front_site, solo.model.end_site, solo.model.stitch
    ).eval()
    if moves(cell):
        moved = model_statistics(solo.model)
        for name, own in model_statistics(model).items():
            own.copy_(moved[name])
    return model, batchnorm.frozen(end)


def _train(task: WaveTask, cell: Cell, solo: SoloCell) -> float | None:
    """All epochs; returns the mean loss of the last one (None where nothing is trained)."""
    last, stream = None, task.stream
    if stream is None or not cell.trains:
        return None
    for epoch in range(task.epochs):
        losses = []
        for step, batch in enumerate(stream.epoch(epoch)):
            x = batch.images.to(task.dtype)
            if cell.alpha > 0:
                mask = attacked_mask(cell, epoch, step, len(x)).to(x.device)
                solo.attacker = _attacker(cell, epoch, batch.index[mask])
            else:
                mask = None
            masks = Key(cell.data_seed, epoch, batch.index)
            result = solo.step(x, batch.labels, mask, masks)
            losses.append(result.loss)
            task.progress.step(solo.done)
        last = sum(losses) / len(losses)
    return last if cell.objective else None


def _attacker(cell: Cell, epoch: int, index: Tensor) -> Attacker:
    """PGD with the protocol's settings; the start noise of an image is keyed by its number."""
    attack = cell.protocol.attack

    def attacker(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        noise = None
        if attack.random_start:
            noise = start_noise(
                attack.norm, index.tolist(), x.shape[1:], seed=cell.data_seed, stream=epoch
            ).to(x)
        return pgd(model, x, y, attack, noise=noise)

    return attacker


@torch.no_grad()
def evaluate(
    model: StitchedModel,
    end: Staged,
    batches: Iterator[Batch],
    dtype: torch.dtype,
    measures: Sequence[str] = (),
    samples: Sequence[int] = (),
) -> dict[str, object]:
    """Top-1, agreement with the end donor, and measures by site over a test set, in eval mode."""
    batchnorm.set_rule(model, "running")
    model.eval()
    device = next(model.parameters()).device
    agreement = Agreement((), device)
    outputs = OutputTable(1, [measure(name) for name in measures])
    table = SiteTable([model.end_site], end.num_sites, device, measures, samples)
    sites = range(1, end.num_sites + 1)
    with batchnorm.rule(end, "running"):
        for batch in batches:
            x = batch.images.to(dtype)
            targets, h = activations(end, x, sites), model.at_stitch(x)
            for site, g in enumerate(targets, 1):
                table.target(site, g)
                if site > model.end_site:
                    h = model.tail.run(h, site - 1, site)
                if site >= model.end_site:
                    table.add(site, [0], h, g, batch.index)
            logits, end_logits = model.tail.head(h), end.head(targets[-1])
            agreement.add(logits, end_logits, batch.labels)
            outputs.add(logits[None], end_logits, batch.labels)
    answers = {name: float(v) for name, v in agreement.result().items()}
    return {**answers, **table.columns()[0], **outputs.columns()[0]}
