"""What an attack's name stands for, how it is run, and what may be left out.

Names (`parse`): `autoattack-rand` (APGD-CE, then APGD-DLR on the survivors, 100 iterations, 20 EOT
samples), `autoattack-standard` (APGD-CE, then targeted APGD-DLR towards the nine likeliest other
classes), `autoattack-full` (the same, then FAB and Square by the package pyautoattack), `apgd20`
(APGD-CE and -DLR, 20 iterations, first step 2/255), `apgd-ce`, `apgd-dlr`, `apgd-t`, and `pgd-N`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import FulaError, nearest
from .capture import check_mode
from .losses import CE, DLR, TARGETED
from .slots import Stage, Starts
from .starts import check_norm

PRECISIONS = ("fp32", "bf16", "fast")


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


def adjusted(recipe: Recipe, options: AttackOptions) -> Recipe:
    """The recipe with the options' own numbers of iterations and samples, where given.

    Raises `FulaError` for an option that the attack has no use for.
    """
    if not recipe.stages and options.eot is not None:
        raise FulaError(f"attack '{recipe.name}' takes no EOT samples; leave eot out")
    if not recipe.stages and options.restarts > 1 and not options.random_start:
        raise FulaError(
            f"attack '{recipe.name}' does the same at every restart; set random_start = true"
        )
    if recipe.stages and options.random_start:
        raise FulaError(f"attack '{recipe.name}' always starts at random; leave random_start out")
    return replace(recipe, steps=options.steps or recipe.steps, eot=options.eot or recipe.eot)


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

    norm, eps: the ball around each image, in pixels of [0, 1]. step, random_start: PGD's. steps,
    eot: instead of the attack's own numbers of iterations and of EOT samples. seed: of the start
    noise. restarts: runs per stage, each from a start of its own. batch_size: images in flight; by
    default 512 on CUDA, 128 elsewhere. precision: "fp32"; "bf16" searches in bfloat16, confirms
    every image in full precision and attacks the survivors again in full precision, so that its
    robust images are robust to the fp32 attack too; "fast" leaves that second attack out. mode:
    "auto" captures the iteration in a CUDA graph on CUDA; "eager"; "compiled" passes the models
    through torch.compile; "captured" needs CUDA. compile adds torch.compile to a captured
    iteration. keep_images: keep the adversarial images. starts: another source of start noise (for
    comparisons).
    """

    norm: str = "linf"
    eps: float = 8 / 255
    step: float = 2 / 255
    random_start: bool = False
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

    @property
    def compiles(self) -> bool:
        """Whether models go through torch.compile."""
        return self.compile or self.mode == "compiled"


def _check_numbers(
    options: AttackOptions, names: Sequence[str], kind: type, rule: str, *, least: int
) -> None:
    allowed = (int, float) if kind is float else int
    for name in names:
        value = getattr(options, name)
        right = isinstance(value, allowed) and not isinstance(value, bool)
        if not (right and math.isfinite(value) and value >= least):
            raise FulaError(f"{name} = {value} must be {rule}")
