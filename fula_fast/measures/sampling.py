"""Which samples: the subset of images, the shared permutations, the half samples of intervals.

Each is a pure function of a seed, drawn with `pipelines.draws.randomness`, so results depend
neither on the device nor on which sites or measures are computed together.
"""

from __future__ import annotations

import numpy as np

from ..errors import FulaError
from ..pipelines.draws.randomness import Purpose, permutation


def subset(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """Sorted indices (min(images, samples),) of the images that measures of pairs are taken on."""
    return np.sort(permutation(seed, 0, Purpose.SIMILARITY_SUBSET, images)[:samples])


def orders(samples: int, draws: int, seed: int = 0) -> np.ndarray:
    """(draws, samples): permutations of the samples, the same for all sites and measures."""
    return _draws(samples, draws, seed, Purpose.SIMILARITY_NULL)


def halves(samples: int, draws: int, seed: int = 0) -> np.ndarray:
    """(draws, samples // 2): sorted indices of half of the samples, drawn without replacement."""
    return np.sort(_draws(samples, draws, seed, Purpose.SIMILARITY_HALF)[:, : samples // 2], axis=1)


def by_row(indices: np.ndarray, rows_per_sample: int) -> np.ndarray:
    """Indices (..., m) of samples as indices (..., m * r) of their rows, r side by side."""
    rows = indices[..., None] * rows_per_sample + np.arange(rows_per_sample)
    return rows.reshape(*indices.shape[:-1], indices.shape[-1] * rows_per_sample)


def _draws(samples: int, draws: int, seed: int, purpose: Purpose) -> np.ndarray:
    if draws < 1:
        raise FulaError(f"{draws} draws: at least 1 is needed")
    return np.stack([permutation(seed, draw, purpose, samples) for draw in range(draws)])
