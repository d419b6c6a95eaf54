"""Objectives that follow each other in one training. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Final

from ..errors import FulaError
from .weightings import Weighting

SUM: Final = "sum"
"""How gradients of several methods become one, unless said otherwise."""


@dataclass(frozen=True)
class TrainingStage:
    """What is minimised in a part of a training.

    `objective`: weights by trained method. `weighting`: of the terms that its methods weigh (None:
    the protocol's, or they weigh none). `epochs`: of the part (None: it shares evenly what the
    parts with a number leave). `own`: its weighting was given for it, and is not the protocol's.
    """

    objective: Mapping[str, float]
    weighting: Weighting | None = None
    epochs: int | None = None
    own: bool = field(default=True, compare=False)


Stages = tuple[TrainingStage, ...]


def timed(stages: Stages, epochs: int) -> Stages:
    """The stages with a number of epochs each, which sum to `epochs`.

    What the numbers given leave is shared evenly by the stages without one, the first of them
    taking one more where it does not divide. Raises `FulaError` where they do not fit.
    """
    given = [stage.epochs for stage in stages if stage.epochs is not None]
    open_, left = len(stages) - len(given), epochs - sum(given)
    if left < open_ or (not open_ and left):
        raise FulaError(_misfit(given, open_, epochs))
    each, more = divmod(left, open_) if open_ else (0, 0)
    shares = iter([each + 1] * more + [each] * (open_ - more))
    return tuple(replace(s, epochs=next(shares) if s.epochs is None else s.epochs) for s in stages)


def _misfit(given: Sequence[int], open_: int, epochs: int) -> str:
    text = f"{' + '.join(map(str, given))} = {sum(given)}" if len(given) > 1 else f"{sum(given)}"
    asked = f"the epochs of its stages sum to {text}" if given else f"it has {open_} stages"
    others = f", and {open_} more need one each" if given and open_ else ""
    return f"{asked}{others}, but epochs = {epochs}; make them fit, or leave out those of stages"


def joined(stages: Stages) -> Stages:
    """Neighbours that minimise the same as one stage; all with a number of epochs."""
    found: list[TrainingStage] = []
    for stage in stages:
        if found and replace(found[-1], epochs=stage.epochs) == stage:
            stage = replace(stage, epochs=(found.pop().epochs or 0) + (stage.epochs or 0))
        found.append(stage)
    return tuple(found)


def united(objectives: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sum of some objectives' weights, by method."""
    names = dict.fromkeys(name for objective in objectives for name in objective)
    return {name: sum(each.get(name, 0.0) for each in objectives) for name in names}


def starts(stages: Stages, steps: int) -> tuple[int, ...]:
    """Number of each stage's first step in a training of `steps`, epochs of equal length.

    >>> starts((TrainingStage({}, epochs=1), TrainingStage({}, epochs=2)), 12)
    (0, 4)
    """
    if len(stages) == 1:
        return (0,)
    ends = list(accumulate(stage.epochs or 0 for stage in stages))
    return (0, *(-(-end * steps // ends[-1]) for end in ends[:-1]))


def stage_at(stages: Stages, step: int, steps: int) -> TrainingStage:
    """The stage that step number `step` of a training of `steps` belongs to."""
    begun = sum(start <= step for start in starts(stages, steps))
    return stages[begun - 1]
