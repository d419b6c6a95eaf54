"""Robust accuracy by AutoAttack's APGD parts (Croce & Hein 2020), or by PGD."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..device.graphs import WARM_UP, Recorder
from ..device.replay import Replay, recorder_on
from .apgd import APGDConfig, image_loss
from .losses import evaluate
from .names import CE, AttackStage, NamedAttack
from .options import AttackOptions
from .packed import PackedModel, by_route, logits_along
from .pgd import pgd
from .record import Record
from .searched import hand_over
from .settings import Attack
from .slots import Search, SearchOptions, Starts, fixed_sizes
from .start_noise import start_noise

_ASKED = 8  # images that show whether a model is random


@dataclass(frozen=True)
class Run:
    """How an attack went: whether the models proved deterministic, the EOT samples taken per
    gradient, and what ran the iterations ("eager", "compiled", "captured", "none")."""

    deterministic: bool | None
    eot: int
    mode: str


def run(model: PackedModel, record: Record, named: NamedAttack, options: AttackOptions) -> Run:
    """Attack every rightly classified image of every lane; what fools it goes to `record`.

    Raises `FulaError` where a loss of the attack needs more classes than the model has.
    """
    named.check_classes(record.num_classes, "the model")
    if options.eps == 0 or not record.surviving():
        return Run(None, 0, "none")
    _find_zero_gradients(model, record, options)
    result = Run(None, 0, "eager")
    for bf16 in _PASSES[options.precision] if named.steps else ():
        if record.surviving():
            search = model.search(record.images.shape[1:], bf16=bf16, folded=options.savings.fold)
            attack = _apgd_pass if named.stages else _pgd_pass
            result = attack(search, record, named, options)
    if named.search is not None:
        hand_over(model, record, named, options)
    return result


_PASSES = {"fp32": (False,), "bf16": (True, False), "fast": (True,)}
"""Whether each pass of the search is in bfloat16, by the option `precision`."""


def _find_zero_gradients(model: PackedModel, record: Record, options: AttackOptions) -> None:
    """Mark the images that are to be attacked, but give no gradient to follow: a rounding of the
    input, or a saturated softmax."""
    pairs = record.surviving()
    if not pairs or record.num_classes < 2:  # one class has no gradient and no wrong answer
        return
    search = model.search(record.images.shape[1:], bf16=False, folded=options.savings.fold)
    for begin in range(0, len(pairs), options.batch_size):
        lane, image = torch.tensor(
            pairs[begin : begin + options.batch_size], device=record.images.device
        ).unbind(1)
        x, labels = record.pixels(image), record.labels[image]

        def loss_of(logits: Tensor, labels: Tensor = labels) -> Tensor:
            return image_loss(logits, labels, None, CE)

        seen = evaluate(lambda z, lane=lane: search.logits(z, lane), x, loss_of)
        record.zero_gradient[lane.cpu(), image.cpu()] = ~seen.grad.flatten(1).any(1).cpu()


def _apgd_pass(
    search: PackedModel, record: Record, named: NamedAttack, options: AttackOptions
) -> Run:
    pairs = record.surviving()
    stages = _stages(named, record.num_classes, options.restarts)
    starts = options.starts or _keyed_starts(options, record.images.shape[1:], stages)
    recorder = _recorder(record, options)
    same = is_deterministic(search, record, pairs, routed=_routed(record, recorder))
    eot = 1 if same and options.savings.single_sample else named.eot
    config = APGDConfig(
        options.norm, options.eps, named.steps, first_step=named.first_step, eot=eot
    )
    how = _search_options(search, record, options, same, recorder)
    runner = Search(search, record, config, stages, starts, how)
    runner.run(pairs)
    return Run(same, eot, _mode(runner.modes, options))


def _search_options(
    search: PackedModel,
    record: Record,
    options: AttackOptions,
    same: bool,
    recorder: Recorder | None,
) -> SearchOptions:
    few = recorder is not None or options.compiles  # each size costs a graph; else no row is padded
    every = range(1, options.batch_size + 1)
    routed = _routed(record, recorder)
    several = routed and len({search.route(lane) for lane in record.lanes}) > 1
    return SearchOptions(
        keep_first=options.savings.compaction and same,
        packing=options.savings.packing,
        sizes=fixed_sizes(options.batch_size, halves=several) if few else every,
        recorder=recorder,
        poll=4 if record.images.is_cuda else 1,
        routed=routed,
    )


def _routed(record: Record, recorder: Recorder | None) -> bool:
    """Whether batches keep to one route, and so need nothing of the host: wherever that counts."""
    return recorder is not None or record.images.is_cuda


def _stages(named: NamedAttack, classes: int, restarts: int) -> list[AttackStage]:
    """Every stage that the model has classes for, each as often as there are restarts."""
    return [
        replaced
        for stage in named.stages
        if stage.rank <= classes
        for replaced in (stage._replace(restart=i) for i in range(restarts))
    ]


def _keyed_starts(
    options: AttackOptions, shape: Sequence[int], stages: Sequence[AttackStage]
) -> Starts:
    """Start noise keyed by seed, restart and image: every stage and lane starts alike."""

    def starts(stage: int, lane: int, images: Sequence[int]) -> Tensor:
        return start_noise(
            options.norm, images, shape, seed=options.seed, stream=stages[stage].restart
        )

    return starts


def is_deterministic(
    search: PackedModel, record: Record, pairs: Sequence[tuple[int, int]], *, routed: bool = False
) -> bool:
    """Whether two gradients of the same images agree bit for bit.

    pairs: (lane, image) to choose from; eight are asked, or one of every lane where there are more.
    routed: ask as the search does, route by route.
    """
    turn: Counter[int] = Counter()
    by_turn = []
    for lane, image in pairs:
        by_turn.append((turn[lane], lane, image))
        turn[lane] += 1
    chosen = [(lane, image) for _, lane, image in sorted(by_turn)][: max(_ASKED, len(turn))]
    return all(
        _same_gradient(search, record, group[i : i + _ASKED], route)
        for route, group in by_route(search, chosen, routed)
        for i in range(0, len(group), _ASKED)
    )


def _same_gradient(
    search: PackedModel, record: Record, pairs: Sequence[tuple[int, int]], route: Hashable | None
) -> bool:
    lane, image = torch.tensor(pairs, device=record.images.device).unbind(1)
    x, labels = record.pixels(image), record.labels[image]
    logits = logits_along(search, route)
    first, second = (
        evaluate(lambda z: logits(z, lane), x, lambda z: image_loss(z, labels, None, CE))
        for _ in range(2)
    )
    np.add.at(record.gradients, [own for own, _ in pairs], 2)
    return torch.equal(first.grad, second.grad) and torch.equal(first.loss, second.loss)


def _recorder(record: Record, options: AttackOptions) -> Recorder | None:
    wanted = options.mode in ("auto", "captured")
    return recorder_on(record.images.device) if wanted else None


def _pgd_pass(
    search: PackedModel, record: Record, named: NamedAttack, options: AttackOptions
) -> Run:
    """PGD's last iterate; a flag depends on that one alone, so no image leaves early."""
    loops = _Loops(search, record, named, options)
    for restart in range(options.restarts):
        for route, group in by_route(search, record.surviving(), loops.routed):
            loop = loops.along(route, len(group))
            for begin in range(0, len(group), options.batch_size):
                batch = group[begin : begin + options.batch_size]
                record.confirm(batch, loops.run(loop, batch, restart))
                np.add.at(record.gradients, [own for own, _ in batch], named.steps)
    return Run(None, 1, _mode(loops.modes, options))


class _Loops:
    """PGD's loop along each route: recorded where it runs more often than a recording runs it by
    itself."""

    def __init__(
        self, search: PackedModel, record: Record, named: NamedAttack, options: AttackOptions
    ) -> None:
        self._search, self._record, self._options = search, record, options
        self._attack = Attack(
            norm=options.norm, eps=options.eps, step=options.step, steps=named.steps,
            random_start=options.random_start,
        )  # fmt: skip
        self._recorder = _recorder(record, options)
        self.routed = _routed(record, self._recorder)
        self._loops: dict[Hashable | None, Replay] = {}

    @property
    def modes(self) -> set[str]:
        """What ran."""
        return {loop.mode for loop in self._loops.values()}

    def along(self, route: Hashable | None, images: int) -> Replay:
        """The loop of a route on which so many images are attacked."""
        if route not in self._loops:
            runs = math.ceil(images / self._options.batch_size) * self._options.restarts
            worth = runs > WARM_UP or self._options.mode == "captured"
            self._loops[route] = Replay(
                partial(self._loop, logits_along(self._search, route)),
                self._recorder if worth else None,
            )
        return self._loops[route]

    def _loop(self, logits, x, labels, lane, noise: Tensor | None = None) -> Tensor:
        return pgd(lambda z: logits(z, lane), x, labels, self._attack, noise=noise)

    def run(self, loop: Replay, pairs: Sequence[tuple[int, int]], restart: int) -> Tensor:
        """Adversarial images of a batch. Each size is a recording, so that a smaller batch is
        filled up with its last image."""
        missing = 0
        if loop.records:
            sizes = fixed_sizes(self._options.batch_size, halves=True)
            missing = next(size for size in sizes if size >= len(pairs)) - len(pairs)
        filled = [*pairs, *[pairs[-1]] * missing]
        lane, image = torch.tensor(filled, device=self._record.images.device).unbind(1)
        x = self._record.pixels(image)
        noise = [_noise(self._options, x, image, restart)] if self._options.random_start else []
        return loop(x, self._record.labels[image], lane, *noise)[: len(pairs)]


def _noise(options: AttackOptions, x: Tensor, image: Tensor, restart: int) -> Tensor:
    noise = start_noise(
        options.norm, image.tolist(), x.shape[1:], seed=options.seed, stream=restart
    )
    return noise.to(x)


def _mode(ran: set[str], options: AttackOptions) -> str:
    if "captured" in ran:
        return "captured"
    return "compiled" if options.compiles else "eager"
