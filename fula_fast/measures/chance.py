"""Is a score above chance? Permutation tests, for one pair of sites and for the best of many.

Gröger, Wen, Brbić 2026 (arXiv 2602.14486): raw scores grow with width, with few samples, and with
the number of layer pairs searched. The null breaks the correspondence of the samples of one side;
one permutation is shared by all sites and measures, so the best pair has its own null. Distances
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
