"""Robust accuracy by AutoAttack's APGD parts (Croce & Hein 2020), or by PGD."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..attack_options import AttackOptions
from ..errors import FulaError
from ..graphs import Recorder
from ..protocol import Attack
from .apgd import APGDConfig, image_loss
from .capture import Replay, recorder_on
from .handover import hand_over
from .losses import CE, MIN_CLASSES, evaluate
from .packed import PackedModel
from .pgd import pgd
from .recipes import Recipe
from .record import Record
from .slots import Search, SearchOptions, Stage, Starts, fixed_sizes
from .starts import start_noise

_ASKED = 8  # images that show whether a model is random


@dataclass(frozen=True)
class Run:
    """How an attack went: whether the models proved deterministic, the EOT samples taken per
    gradient, and what ran the iterations ("eager", "compiled", "captured", "none")."""

    deterministic: bool | None
    eot: int
    mode: str


def run(model: PackedModel, record: Record, recipe: Recipe, options: AttackOptions) -> Run:
    """Attack every rightly classified image of every lane; what fools it goes to `record`.

    Raises `FulaError` where a loss of the recipe needs more classes than the model has.
    """
    _check_classes(recipe, record.num_classes)
    if options.eps == 0 or not record.surviving():
        return Run(None, 0, "none")
    passes = {"fp32": (False,), "bf16": (True, False), "fast": (True,)}[options.precision]
    shape = record.images.shape[1:]
    attack = _apgd_pass if recipe.stages else _pgd_pass
    for bf16 in passes:
        if record.surviving():
            search = model.search(shape, bf16=bf16, folded=options.savings.fold)
            result = attack(search, record, recipe, options)
    if recipe.handover:
        hand_over(
            model, record, recipe.handover, norm=options.norm, eps=options.eps,
            seed=options.seed, batch_size=options.batch_size,
        )  # fmt: skip
    return result


def _check_classes(recipe: Recipe, classes: int) -> None:
    needed = max((MIN_CLASSES[stage.loss] for stage in recipe.stages), default=1)
    if classes < needed:
        raise FulaError(
            f"attack '{recipe.name}' needs at least {needed} classes (its loss compares that many "
            f"logits), but the model has {classes}; use 'apgd-ce' or 'pgd-10'"
        )


def _apgd_pass(search: PackedModel, record: Record, recipe: Recipe, options: AttackOptions) -> Run:
    pairs = record.surviving()
    stages = _stages(recipe, record.num_classes, options.restarts)
    starts = options.starts or _keyed_starts(options, record.images.shape[1:], stages)
    same = is_deterministic(search, record, pairs)
    eot = 1 if same and options.savings.single_sample else recipe.eot
    config = APGDConfig(
        options.norm, options.eps, recipe.steps, first_step=recipe.first_step, eot=eot
    )
    runner = Search(
        search, record, config, stages, starts, _search_options(search, record, options, same)
    )
    runner.run(pairs)
    return Run(same, eot, _mode(runner.modes, options))


def _search_options(
    search: PackedModel, record: Record, options: AttackOptions, same: bool
) -> SearchOptions:
    recorder = _recorder(search, record, options)
    few = recorder is not None or options.compiles  # each size costs a graph; else no row is padded
    every = range(1, options.batch_size + 1)
    return SearchOptions(
        keep_first=options.savings.compaction and same,
        packing=options.savings.packing,
        sizes=fixed_sizes(options.batch_size) if few else every,
        recorder=recorder,
        poll=4 if record.images.is_cuda else 1,
    )


def _stages(recipe: Recipe, classes: int, restarts: int) -> list[Stage]:
    """Every stage that the model has classes for, each as often as there are restarts."""
    return [
        replaced
        for stage in recipe.stages
        if stage.rank <= classes
        for replaced in (stage._replace(restart=i) for i in range(restarts))
    ]


def _keyed_starts(options: AttackOptions, shape: Sequence[int], stages: Sequence[Stage]) -> Starts:
    """Start noise keyed by seed, restart and image: every stage and lane starts alike."""

    def starts(stage: int, lane: int, images: Sequence[int]) -> Tensor:
        return start_noise(
            options.norm, images, shape, seed=options.seed, stream=stages[stage].restart
        )

    return starts


def is_deterministic(search: PackedModel, record: Record, pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether two gradients of the same images agree bit for bit.

    pairs: (lane, image) to choose from; eight are asked, or one of every lane where there are more.
    """
    turn: Counter[int] = Counter()
    by_turn = []
    for lane, image in pairs:
        by_turn.append((turn[lane], lane, image))
        turn[lane] += 1
    chosen = [(lane, image) for _, lane, image in sorted(by_turn)][: max(_ASKED, len(turn))]
    return all(
        _same_gradient(search, record, chosen[i : i + _ASKED])
        for i in range(0, len(chosen), _ASKED)
    )


def _same_gradient(search: PackedModel, record: Record, pairs: Sequence[tuple[int, int]]) -> bool:
    lane, image = torch.tensor(pairs, device=record.images.device).unbind(1)
    x, labels = record.pixels(image), record.labels[image]
    first, second = (
        evaluate(lambda z: search.logits(z, lane), x, lambda z: image_loss(z, labels, None, CE))
        for _ in range(2)
    )
    np.add.at(record.gradients, [own for own, _ in pairs], 2)
    return torch.equal(first.grad, second.grad) and torch.equal(first.loss, second.loss)


def _recorder(search: PackedModel, record: Record, options: AttackOptions) -> Recorder | None:
    wanted = search.capturable and options.mode in ("auto", "captured")
    return recorder_on(record.images.device) if wanted else None


def _pgd_pass(search: PackedModel, record: Record, recipe: Recipe, options: AttackOptions) -> Run:
    """PGD's last iterate; a flag depends on that one alone, so no image leaves early."""
    attack = Attack(
        norm=options.norm, eps=options.eps, step=options.step, steps=recipe.steps,
        random_start=options.random_start,
    )  # fmt: skip

    def loop(x: Tensor, labels: Tensor, lane: Tensor, noise: Tensor | None = None) -> Tensor:
        return pgd(lambda z: search.logits(z, lane), x, labels, attack, noise=noise)

    replay = Replay(loop, _recorder(search, record, options))
    for restart in range(options.restarts):
        pairs = record.surviving()
        for begin in range(0, len(pairs), options.batch_size):
            batch = pairs[begin : begin + options.batch_size]
            lane, image = torch.tensor(batch, device=record.images.device).unbind(1)
            x = record.pixels(image)
            noise = [_noise(options, x, image, restart)] if options.random_start else []
            record.confirm(batch, replay(x, record.labels[image], lane, *noise))
            np.add.at(record.gradients, [own for own, _ in batch], recipe.steps)
    return Run(None, 1, _mode({replay.mode}, options))


def _noise(options: AttackOptions, x: Tensor, image: Tensor, restart: int) -> Tensor:
    noise = start_noise(
        options.norm, image.tolist(), x.shape[1:], seed=options.seed, stream=restart
    )
    return noise.to(x)


def _mode(ran: set[str], options: AttackOptions) -> str:
    if "captured" in ran:
        return "captured"
    return "compiled" if options.compiles else "eager"
