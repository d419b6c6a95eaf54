"""Chosen measures of two models on the same samples: observed, under permutations, on halves.

One preparation is made at a time, for it may take much memory (`matrices.bundles`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chance import Chance, against_chance, best_against_chance, family, holm
from .intervals import Interval, over_images
from .matrices import Choice, Sides, bundles
from .outputs import Outputs
from .registry import Measure
from .sampling import by_row, halves, orders


@dataclass(frozen=True, eq=False)
class Draws:
    """What is drawn once for all models, sites and measures: `null` (K, n), permutations of the
    samples; `halves` (D, n // 2), half samples. Empty where none were asked for."""

    null: np.ndarray
    halves: np.ndarray

    @classmethod
    def of(cls, samples: int, null: int, intervals: int, seed: int) -> Draws:
        """`null` permutations and `intervals` half samples of `samples` images."""
        nothing = np.empty((0, samples), dtype=np.int64)
        return cls(
            orders(samples, null, seed) if null else nothing,
            halves(samples, intervals, seed) if intervals else nothing,
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """One measure over site pairs (I, J): on the samples, in K orders of the second side's samples,
    and on D half samples."""

    observed: np.ndarray
    null: np.ndarray
    halves: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Of several sets of second sites, side by side."""
        return cls(
            *(
                np.concatenate([getattr(p, name) for p in parts], axis=-1)
                for name in ("observed", "null", "halves")
            )
        )

    def taken(self, columns: Sequence[int]) -> Scores:
        """With the second sites in this order."""
        return Scores(*(a[..., list(columns)] for a in (self.observed, self.null, self.halves)))


@dataclass(frozen=True, eq=False)
class Judgement:
    """What chance and sampling say of a measure over site pairs (I, J); None where nothing was
    drawn. `holm`, `family`: p adjusted for all cells of the matrix, by Holm and by the largest
    scores of the permutations. `best`: the most similar pair, against the most similar of every
    permutation."""

    chance: Chance | None
    holm: np.ndarray | None
    family: np.ndarray | None
    best: Chance | None
    interval: Interval | None


def compare(
    x: Sequence[Any], y: Sequence[Any], choice: Choice, draws: Draws, *, rows: int = 1
) -> dict[str, Scores]:
    """Every chosen measure of sides x (I) against y (J): name -> scores.

    `x`, `y`: matrices (n * rows, p) site by site, the rows of a sample side by side; for measures
    of outputs, `Outputs`.
    """
    null, parts = (torch.from_numpy(by_row(a, rows)) for a in (draws.null, draws.halves))
    found = {name: scores for part in bundles(choice)
             for name, scores in _bundle(x, y, part, null, parts).items()}  # fmt: skip
    return {name: found[name] for name in choice}


def _bundle(
    x: Sequence[Any], y: Sequence[Any], choice: Choice, null: Tensor, parts: Tensor
) -> dict[str, Scores]:
    first = Sides(x, choice)
    second = first if y is x else Sides(y, choice)
    observed = first.against(second)
    permuted = first.against(second, null) if len(null) else _none(observed)
    del first, second
    sampled = _stacked(
        Sides([_part(s, taken) for s in x], choice).against(
            Sides([_part(s, taken) for s in y], choice)
        )
        for taken in parts
    )
    sampled = sampled or _none(observed)
    return {
        name: Scores(*(part[name].numpy() for part in (observed, permuted, sampled)))
        for name in choice
    }


def _part(side: Any, taken: Tensor) -> Any:
    """Some rows of a matrix, or some samples of outputs."""
    return side.ordered(taken) if isinstance(side, Outputs) else side[taken]


def _none(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.new_empty((0, *values.shape)) for name, values in like.items()}


def _stacked(found: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    every = list(found)
    return {name: torch.stack([one[name] for one in every]) for name in (every[0] if every else ())}


def judged(measure: Measure, scores: Scores, level: float) -> Judgement:
    """p, calibrated scores and intervals of a measure's scores."""
    chance = adjusted = together = best = interval = None
    if len(scores.null):
        chance = against_chance(measure, scores.observed, scores.null, 1 - level)
        best = best_against_chance(measure, scores.observed, scores.null, 1 - level)
        adjusted = holm(chance.p)
        together = family(measure, scores.observed, scores.null)
    if len(scores.halves):
        interval = over_images(measure, scores.observed, scores.halves, level)
    return Judgement(chance, adjusted, together, best, interval)
