"""Is a score above chance? Permutation tests, for one pair of sites and for the best of many.

Gröger, Wen, Brbić 2026 (arXiv 2602.14486): raw scores grow with width, with few samples, and with
the number of layer pairs searched. The null breaks the correspondence of the samples of one side;
one permutation is shared by all sites and measures, so the best pair has its own null, and so has
a whole matrix: `family` says which of its cells are above chance when all are looked at. Distances
are tested as their negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import FulaError
from .registry import Measure


@dataclass(frozen=True, eq=False)
class Chance:
    """Arrays of the shape of the scores: p, the score that chance reaches with probability alpha,
    and the calibrated similarity in [0, 1], 0 where the score is not above it."""

    p: np.ndarray
    threshold: np.ndarray
    calibrated: np.ndarray


def against_chance(
    measure: Measure, observed: ArrayLike, null: ArrayLike, alpha: float = 0.05
) -> Chance:
    """Each score (...) against its own nulls (K, ...).

    p = (1 + #{null >= observed}) / (K + 1). threshold: the (1 - alpha) quantile tau of null and
    observed together, the ceil((1 - alpha)(K + 1))-th in order. calibrated: max(0, (s - tau) /
    (s_max - tau)). Raises `FulaError` for an alpha outside (0, 1).
    """
    s, nulls = oriented(measure, observed), oriented(measure, null)
    if not 0 < alpha < 1:
        raise FulaError(f"alpha {alpha} must lie between 0 and 1")
    k = len(nulls)
    p = (1 + (nulls >= s).sum(0)) / (k + 1)
    both = np.sort(np.concatenate([s[None], nulls]), axis=0)
    tau = both[math.ceil((1 - alpha) * (k + 1) - 1e-9) - 1]
    room = oriented(measure, measure.best) - tau
    with np.errstate(divide="ignore", invalid="ignore"):
        calibrated = np.where((room > 0) & (s > tau), (s - tau) / room, 0.0)
    return Chance(p, oriented(measure, tau), np.clip(calibrated, 0, 1))


def best_against_chance(
    measure: Measure, observed: ArrayLike, null: ArrayLike, alpha: float = 0.05
) -> Chance:
    """The most similar pair of a matrix (I, J) against the most similar of each null (K, I, J)."""
    s = oriented(measure, observed).max()
    nulls = oriented(measure, null)
    nulls = nulls.reshape(len(nulls), -1).max(1)
    return against_chance(measure, oriented(measure, s), oriented(measure, nulls), alpha)


def family(measure: Measure, observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    """p of every cell of a matrix (I, J), adjusted for all of them: step-down maxT.

    Westfall & Young 1993, Algorithm 4.1; Nichols & Holmes 2002. Each cell's scores are
    standardised by mean and spread of its nulls and the observed one together, so that cells whose
    chance levels differ compare; then the cells are taken from the largest score down, each against
    the largest score of every permutation (K, I, J) among the cells that are left. The chance that
    any cell without correspondence falls below alpha is at most alpha. Unlike `holm`, p can fall to
    1 / (K + 1) whatever the number of cells, for the permutations keep how the cells depend on each
    other. 1 where a cell's scores are all alike.
    """
    s, nulls = oriented(measure, observed), oriented(measure, null)
    both = np.concatenate([s[None], nulls]).reshape(len(nulls) + 1, -1)
    spread = both.std(0)
    known = spread > 1e-12 * np.abs(both).max(0)
    scores = np.where(known, (both - both.mean(0)) / np.where(known, spread, 1), 0)
    order = np.argsort(-scores[0], kind="stable")
    falling = scores[:, order]
    largest = np.maximum.accumulate(falling[:, ::-1], axis=1)[:, ::-1]  # among the cells left
    p = (largest >= falling[0] - 1e-12).sum(0) / len(both)
    out = np.empty(s.size)
    out[order] = np.maximum.accumulate(p)
    return np.where(known, out, 1).reshape(s.shape)


def oriented(measure: Measure, values: ArrayLike) -> np.ndarray:
    """Values so that larger is more similar: distances change their sign. Its own inverse."""
    values = np.asarray(values, dtype=np.float64)
    return values if measure.similarity else -values


def holm(p: ArrayLike) -> np.ndarray:
    """p values adjusted for being a family, of any shape (Holm 1979): the i-th smallest of m times
    m - i + 1, never below a smaller one's, at most 1."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=None, kind="stable")
    adjusted = np.maximum.accumulate(p.flat[order] * np.arange(p.size, 0, -1))
    out = np.empty(p.size)
    out[order] = np.minimum(adjusted, 1)
    return out.reshape(p.shape)
