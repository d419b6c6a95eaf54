"""The attacks by name: one frozen record each, from which validation, prices and help texts derive.

Needs no torch, so that a wrong name is refused before anything is loaded. An attack is added from
outside by `register(NamedAttack(…))`. `pgd-N` stands for PGD of N steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..errors import FulaError, nearest
from .options import NAMES, SAVINGS, AttackOptions, checked

NONE = "none"
"""In the place of an attack's name: nothing is attacked."""

COLUMNS = {
    "robust_attack": "attack behind the robust columns",
    "robust_accuracy": "share of the attacked images that are classified rightly whatever the "
    "attack tried; where gradients vanish this is no robustness",
    "robust_clean_accuracy": "top-1 of the same float32 model on the same images, unattacked",
    "robust_agreement_soft": "soft agreement with the end donor on the adversarial images",
    "robust_images": "how many test images were attacked",
    "robust_zero_gradient_images": "attacked images, fooled or not, whose gradient is exactly "
    "zero at the start: no gradient attack can move them",
    "robust_gradients": "image gradients taken",
    "robust_verified": "images shown to the exact model",
    "robust_mode": "what ran the attack: eager, compiled, captured",
    "robust_norm": "norm of the ball around an image",
    "robust_eps": "radius of the ball, in pixels of [0, 1]",
    "robust_precision": "of the search; every image is confirmed in full precision",
}
"""The columns of an attacked model, with their meaning."""

CE, DLR, TARGETED = 0, 1, 2
"""Kinds of loss (see `losses`), as written in a batch's `kind` tensor."""

MIN_CLASSES = {CE: 1, DLR: 3, TARGETED: 4}
"""The fewest classes for which each loss is defined."""


class AttackStage(NamedTuple):
    """One run of APGD: its loss (see `losses`), for TARGETED the rank of the target class among
    the clean logits (2: the second largest), and which restart it is."""

    loss: int
    rank: int = 0
    restart: int = 0


@dataclass(frozen=True)
class NamedAttack:
    """What an attack's name stands for.

    APGD `stages` in turn; or, without any, PGD, where `steps` is positive; then, on what survives,
    `search`. `steps`: iterations, `eot`: samples a gradient is the mean of. `reads`: what its
    robust accuracy says, `careful`: when not to trust it; both for the guide and help texts.

    `search`: a function, or "module:function" imported on first use,
    (logits_fn, images (n, C, H, W) in [0, 1], labels (n,), `AttackOptions`) -> images of that form
    within the ball; each is shown to the exact model before it counts. `search_gradients`: what it
    costs per image, in gradients. `package`: what it needs installed.
    """

    name: str
    reads: str
    careful: str
    steps: int = 0
    stages: tuple[AttackStage, ...] = ()
    eot: int = 1
    first_step: float | None = None
    search: str | Callable[..., Any] | None = None
    search_gradients: int = 0
    package: str | None = None

    @property
    def gradients(self) -> int:
        """Gradients of an image that it never fools, one EOT sample each: its price."""
        return self.steps * max(len(self.stages), 1) + self.search_gradients

    @property
    def least_classes(self) -> int:
        """The fewest classes for which its losses are defined."""
        return max((MIN_CLASSES[stage.loss] for stage in self.stages), default=1)

    @property
    def is_pgd(self) -> bool:
        """Whether it takes PGD's own options: step, random_start."""
        return self.steps > 0 and not self.stages

    @property
    def takes_step(self) -> bool:
        """Whether it may use the option `step`: PGD does, a search may, stages choose their own."""
        return not self.stages or self.search is not None

    def check_classes(self, classes: int, model: str) -> None:
        """Raise `FulaError` where `model` has fewer classes than the losses need."""
        if classes < self.least_classes:
            raise FulaError(
                f"attack '{self.name}' needs at least {_COUNTS[self.least_classes]} classes (its "
                f"loss compares that many logits), but {model} has {classes}; use 'apgd-ce' or "
                "'pgd-10'"
            )

    def check_installed(self) -> None:
        """Raise `FulaError` where its package is missing."""
        if self.package is not None and find_spec(self.package) is None:
            raise FulaError(
                f"attack '{self.name}' needs the package {self.package}, which is not installed; "
                "install it, or use 'autoattack-standard'"
            )


_COUNTS = {1: "one", 3: "three", 4: "four"}
_ATTACKS: dict[str, NamedAttack] = {}
_PGD = re.compile(r"pgd-(\d+)")
_LIKE_PGD = "pgd-10"
_AUTOATTACK = "autoattack-"


DEFAULT = f"{_AUTOATTACK}rand"
"""What is run where no attack is named."""


def register(attack: NamedAttack) -> NamedAttack:
    """Add an attack under its name. Raises `FulaError` where another has it."""
    taken = _PGD.fullmatch(attack.name) or attack.name == NONE
    if taken or _ATTACKS.get(attack.name, attack) != attack:
        raise FulaError(f"attack '{attack.name}' is there already; choose another name")
    if not attack.steps and attack.search is None:
        raise FulaError(f"attack '{attack.name}' does nothing; give it steps or a search")
    _ATTACKS[attack.name] = attack
    return attack


def attacks() -> tuple[NamedAttack, ...]:
    """Every registered attack, in the order of registration; PGD, of any number of steps, is none
    of them."""
    return tuple(_ATTACKS.values())


def valid_names() -> tuple[str, ...]:
    """Names to choose from, for messages and help texts."""
    return *_ATTACKS, _LIKE_PGD


def parse(name: str) -> NamedAttack:
    """The attack of a name, short (`rand`) or in full; unknown names raise `FulaError`."""
    for known in (name, _AUTOATTACK + name):
        if known in _ATTACKS:
            return _ATTACKS[known]
    if match := _PGD.fullmatch(name):
        if int(match[1]) < 1:
            raise FulaError(f"attack '{name}': it needs at least one step, as in '{_LIKE_PGD}'")
        return NamedAttack(name, *_PGD_READS, steps=int(match[1]))
    short = [n.removeprefix(_AUTOATTACK) for n in _ATTACKS]
    raise FulaError(f"unknown attack '{name}'{nearest(name, {*valid_names(), *short})}")


def gradients(name: str) -> int:
    """Gradients of an image that the attack of that name never fools; 0 for `NONE`."""
    return 0 if name == NONE else parse(name).gradients


def prepared(
    attack: str, options: Mapping[str, Any], known: Iterable[str] = (*NAMES, *SAVINGS)
) -> tuple[NamedAttack, AttackOptions]:
    """An attack by its name and options, before anything is loaded for it; see `checked`.

    Raises `FulaError` for what is wrong with either, or with both together.
    """
    found, chosen = parse(attack), checked(options, known)
    found.check_installed()
    return adjusted(found, chosen), chosen


def adjusted(attack: NamedAttack, options: AttackOptions) -> NamedAttack:
    """The attack with the options' own numbers of iterations and samples, where given.

    Raises `FulaError` for an option that the attack has no use for.
    """
    if not attack.stages and options.eot is not None:
        raise FulaError(f"attack '{attack.name}' takes no EOT samples; leave eot out")
    if attack.is_pgd and options.restarts > 1 and not options.random_start:
        raise FulaError(
            f"attack '{attack.name}' does the same at every restart; set random_start = true"
        )
    if attack.stages and options.random_start:
        raise FulaError(f"attack '{attack.name}' always starts at random; leave random_start out")
    if not attack.steps and (options.steps or options.random_start or options.restarts > 1):
        raise FulaError(
            f"attack '{attack.name}' is no PGD; leave steps, random_start and restarts out"
        )
    return replace(attack, steps=options.steps or attack.steps, eot=options.eot or attack.eot)


_CE, _DLR = AttackStage(CE), AttackStage(DLR)
_TARGETS = tuple(AttackStage(TARGETED, rank) for rank in range(2, 11))
_FIRST_ORDER = "an upper bound: gradients that vanish or are hidden look like robustness"
_PGD_READS = ("right after N signed gradient steps from the image itself", _FIRST_ORDER)

for _attack in (
    NamedAttack(
        "autoattack-rand", "APGD-CE, then APGD-DLR on the survivors, 20 samples a gradient",
        "made for models that draw random numbers; for others `standard` is stronger",
        steps=100, stages=(_CE, _DLR), eot=20,
    ),
    NamedAttack(
        "autoattack-standard", "APGD-CE, then targeted APGD-DLR towards nine other classes",
        f"{_FIRST_ORDER}; without FAB and Square", steps=100, stages=(_CE, *_TARGETS),
    ),
    NamedAttack(
        "autoattack-full", "the usual yardstick: `standard`, then FAB and Square",
        "needs the package pyautoattack; the last two run lane by lane",
        steps=100, stages=(_CE, *_TARGETS), search="fula_fast.attacks.handover:fab_and_square",
        search_gradients=9 * 100 + 5000 // 3,  # FAB: 9 targets; Square: 5000 forward passes
        package="pyautoattack",
    ),
    NamedAttack(
        "apgd20", "APGD-CE and -DLR, 20 iterations each, first step 2/255",
        f"short; {_FIRST_ORDER}", steps=20, stages=(_CE, _DLR), first_step=2 / 255,
    ),
    NamedAttack("apgd-ce", "APGD on the cross-entropy", _FIRST_ORDER, steps=100, stages=(_CE,)),
    NamedAttack("apgd-dlr", "APGD on the difference of logits", _FIRST_ORDER, steps=100,
                stages=(_DLR,)),
    NamedAttack("apgd-t", "APGD towards nine other classes", _FIRST_ORDER, steps=100,
                stages=_TARGETS),
):  # fmt: skip
    register(_attack)
