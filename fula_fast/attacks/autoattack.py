"""Robust accuracy by AutoAttack's APGD parts (Croce & Hein 2020), or by PGD: what is tried, and
what is saved.

Attacks, by name (`parse`): `autoattack-rand` (APGD-CE, then APGD-DLR on the survivors, 100
iterations, 20 EOT samples), `autoattack-standard` (APGD-CE, then targeted APGD-DLR towards the nine
likeliest other classes), `autoattack-full` (the same, then FAB and Square by the package
pyautoattack), `apgd20` (APGD-CE and -DLR, 20 iterations, first step 2/255), `apgd-ce`, `apgd-dlr`,
`apgd-t`, and `pgd-N`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import FulaError, nearest
from ..protocol import Attack
from .apgd import APGDConfig, image_loss
from .capture import check_mode
from .handover import hand_over
from .losses import CE, DLR, MIN_CLASSES, TARGETED, evaluate
from .packed import PackedModel
from .pgd import pgd
from .record import Record
from .slots import Search, SearchOptions, Stage, Starts, fixed_sizes
from .starts import check_norm, start_noise

PRECISIONS = ("fp32", "bf16", "fast")
_ASKED = 8  # images that show whether a model is random


@dataclass(frozen=True)
class Savings:
    """Work left out without changing which images count as robust; each may be switched off.

    single_sample: one EOT sample for a model that is deterministic in eval mode. The mean of equal
        gradients is that gradient, and l-inf steps use only its sign; for l2 the mean differs by
        rounding (20 additions and a division). Checked, not assumed: two gradients of the first
        images must agree bit for bit, else all samples are taken.
    compaction: a fooled image leaves the batch. A flag asks whether *any* point looked at fools the
        model, so nothing that comes after the first can change it. The exact model confirms the
        image before it leaves; if it does not (rounding, bfloat16), the image goes on. The image
        reported is then the first that fools, where the reference reports the last. Needs a
        deterministic model: a random one would be asked for confirmation more often than by the
        reference.
    packing: images of all lanes and stages share full batches (of a few fixed sizes where each
        costs a graph). In eval mode no
        image influences another, and APGD's state, its iteration included, is per image. Off, a
        batch holds the images of one lane and stage, as the reference's does.
    fold: batch norm is folded into convolutions for the gradients: the same function to rounding;
        confirmation uses the model as given.

    Images that are misclassified from the start are never attacked; the reference's flags exclude
    them too.
    """

    single_sample: bool = True
    compaction: bool = True
    packing: bool = True
    fold: bool = True


@dataclass(frozen=True)
class Recipe:
    """What an attack's name stands for: APGD `stages` in turn, or, without any, PGD."""

    name: str
    steps: int
    stages: tuple[Stage, ...] = ()
    eot: int = 1
    first_step: float | None = None
    handover: tuple[str, ...] = ()


_CE, _DLR = Stage(CE), Stage(DLR)
_TARGETS = tuple(Stage(TARGETED, rank) for rank in range(2, 11))
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("autoattack-rand", 100, (_CE, _DLR), eot=20),
        Recipe("autoattack-standard", 100, (_CE, *_TARGETS)),
        Recipe("autoattack-full", 100, (_CE, *_TARGETS), handover=("fab-t", "square")),
        Recipe("apgd20", 20, (_CE, _DLR), first_step=2 / 255),
        Recipe("apgd-ce", 100, (_CE,)),
        Recipe("apgd-dlr", 100, (_DLR,)),
        Recipe("apgd-t", 100, _TARGETS),
    )
}
_PGD = re.compile(r"pgd-(\d+)")


def parse(name: str) -> Recipe:
    """The recipe of an attack's name; unknown names raise `FulaError`."""
    if match := _PGD.fullmatch(name):
        if int(match[1]) < 1:
            raise FulaError(f"attack '{name}': it needs at least one step, as in 'pgd-10'")
        return Recipe(name, int(match[1]))
    if name not in RECIPES:
        raise FulaError(f"unknown attack '{name}'{nearest(name, [*RECIPES, 'pgd-10'])}")
    return RECIPES[name]


@dataclass(frozen=True)
class AttackOptions:
    """How an attack is run.

    norm, eps: the ball around each image, in pixels of [0, 1]. step: PGD's step size. steps, eot:
    instead of the attack's own numbers of iterations and of EOT samples. seed: of the start noise. restarts: APGD runs per stage. batch_size: images in flight; by default 512 on
    CUDA, 128 elsewhere. precision: "fp32";
    "bf16" searches in bfloat16, confirms every image in full precision and attacks the survivors
    again in full precision, so that its robust images are robust to the fp32 attack too; "fast"
    leaves that second attack out. mode: "auto" captures the iteration in a CUDA graph on CUDA;
    "eager"; "compiled" passes the models through torch.compile; "captured" needs CUDA. compile
    adds torch.compile to a captured iteration. keep_images: return the adversarial images.
    starts: another source of start noise (for comparisons).
    """

    norm: str = "linf"
    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int | None = None
    eot: int | None = None
    seed: int = 0
    restarts: int = 1
    batch_size: int | None = None
    precision: str = "fp32"
    mode: str = "auto"
    compile: bool = False
    keep_images: bool = False
    savings: Savings = Savings()
    starts: Starts | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_numbers(self, ("eps", "step"), float, "a finite number >= 0", least=0)
        _check_numbers(self, ("restarts",), int, "a whole number >= 1", least=1)
        optional = [
            name for name in ("batch_size", "steps", "eot") if getattr(self, name) is not None
        ]
        _check_numbers(self, optional, int, "a whole number >= 1", least=1)
        check_norm(self.norm)
        check_mode(self.mode)
        if self.precision not in PRECISIONS:
            raise FulaError(
                f"unknown precision '{self.precision}'{nearest(self.precision, PRECISIONS)}"
            )


def _check_numbers(
    options: AttackOptions, names: Sequence[str], kind: type, rule: str, *, least: int
) -> None:
    allowed = (int, float) if kind is float else int
    for name in names:
        value = getattr(options, name)
        right = isinstance(value, allowed) and not isinstance(value, bool)
        if not (right and math.isfinite(value) and value >= least):
            raise FulaError(f"{name} = {value} must be {rule}")


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
    with exact_arithmetic(record.images.device):
        for bf16 in passes:
            search = model.search(shape, bf16=bf16, folded=options.savings.fold)
            attack = _apgd_pass if recipe.stages else _pgd_pass
            result = attack(search, record, recipe, options)
        if recipe.handover:
            hand_over(
                model, record, recipe.handover, norm=options.norm, eps=options.eps,
                seed=options.seed, batch_size=options.batch_size,
            )  # fmt: skip
    return result


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """On CUDA: float32 products in float32 rather than TF32, and repeatable convolutions."""
    if device.type != "cuda":
        yield
        return
    holders = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [holder.fp32_precision for holder in holders]
    deterministic = torch.backends.cudnn.deterministic
    try:
        for holder in holders:
            holder.fp32_precision = "ieee"
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        for holder, precision in zip(holders, before, strict=True):
            holder.fp32_precision = precision
        torch.backends.cudnn.deterministic = deterministic


def _check_classes(recipe: Recipe, classes: int) -> None:
    needed = max((MIN_CLASSES[stage.loss] for stage in recipe.stages), default=1)
    if classes < needed:
        raise FulaError(
            f"attack '{recipe.name}' needs at least {needed} classes (its loss compares that many "
            f"logits), but the model has {classes}; use 'apgd-ce' or 'pgd-10'"
        )


def _apgd_pass(search: PackedModel, record: Record, recipe: Recipe, options: AttackOptions) -> Run:
    pairs = record.surviving()
    if not pairs:
        return Run(None, 0, "none")
    savings = options.savings
    stages = _stages(recipe, record.num_classes, options.restarts)
    starts = options.starts or _keyed_starts(options, record.images.shape[1:], stages)
    same = is_deterministic(search, record, pairs)
    eot = 1 if same and savings.single_sample else recipe.eot
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
    cuda = record.images.is_cuda
    captured = cuda and search.capturable and options.mode in ("auto", "captured")
    # a graph or a compiled model per size: few sizes; else no row is padded
    few = captured or options.compile or options.mode == "compiled"
    every = range(1, options.batch_size + 1)
    return SearchOptions(
        keep_first=options.savings.compaction and same,
        packing=options.savings.packing,
        sizes=fixed_sizes(options.batch_size) if few else every,
        captured=captured,
        poll=4 if cuda else 1,
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


def _pgd_pass(search: PackedModel, record: Record, recipe: Recipe, options: AttackOptions) -> Run:
    """PGD's last iterate; a flag depends on that one alone, so no image leaves early."""
    attack = Attack(norm=options.norm, eps=options.eps, step=options.step, steps=recipe.steps)
    pairs = record.surviving()
    for begin in range(0, len(pairs), options.batch_size):
        batch = pairs[begin : begin + options.batch_size]
        lane, image = torch.tensor(batch, device=record.images.device).unbind(1)
        adversarial = pgd(
            lambda x, lane=lane: search.logits(x, lane),
            record.pixels(image), record.labels[image], attack,
        )  # fmt: skip
        record.confirm(batch, adversarial)
        for each, _ in batch:
            record.gradients[each] += recipe.steps
    return Run(None, 1, _mode({"eager"}, options))


def _mode(ran: set[str], options: AttackOptions) -> str:
    if "captured" in ran:
        return "captured"
    return "compiled" if options.compile or options.mode == "compiled" else "eager"
