"""What an attack's name stands for.

Names (`parse`): `autoattack-rand` (APGD-CE, then APGD-DLR on the survivors, 100 iterations, 20 EOT
samples), `autoattack-standard` (APGD-CE, then targeted APGD-DLR towards the nine likeliest other
classes), `autoattack-full` (the same, then FAB and Square by the package pyautoattack), `apgd20`
(APGD-CE and -DLR, 20 iterations, first step 2/255), `apgd-ce`, `apgd-dlr`, `apgd-t`, and `pgd-N`.
`rand`, `standard` and `full` are short for AutoAttack's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import FulaError, nearest
from .handover import reference_package
from .losses import CE, DLR, TARGETED
from .options import NAMES, SAVINGS, AttackOptions, checked
from .slots import Stage


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
_SHORT = {name: f"autoattack-{name}" for name in ("rand", "standard", "full")}
_PGD = re.compile(r"pgd-(\d+)")


def prepared(
    attack: str, options: Mapping[str, Any], known: Iterable[str] = (*NAMES, *SAVINGS)
) -> tuple[Recipe, AttackOptions]:
    """An attack by its name and options, before anything is loaded for it; see `checked`.

    Raises `FulaError` for what is wrong with either, or with both together.
    """
    recipe, chosen = parse(attack), checked(options, known)
    if recipe.handover:
        reference_package()
    return adjusted(recipe, chosen), chosen


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
    """The recipe of an attack's name, short or in full; unknown names raise `FulaError`."""
    name = _SHORT.get(name, name)
    if match := _PGD.fullmatch(name):
        if int(match[1]) < 1:
            raise FulaError(f"attack '{name}': it needs at least one step, as in 'pgd-10'")
        return Recipe(name, int(match[1]))
    if name not in RECIPES:
        raise FulaError(f"unknown attack '{name}'{nearest(name, [*RECIPES, *_SHORT, 'pgd-10'])}")
    return RECIPES[name]
