"""The randomness of an epoch as arrays: order, crops, flips; markers are in `shortcuts`.

Every array is a pure function of (seed, epoch, sample index), drawn on the host with NumPy's Philox
generator in counter mode, one stream per purpose. Only raw 64-bit words are used, so the numbers do
not depend on how a NumPy release turns words into integers or permutations, nor on batch size,
worker count or resume point.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ...errors import FulaError

_BLOCK = 4  # words that Philox makes of one counter
EVALUATION = -1
"""The epoch under which evaluation sets draw their marker places and noise."""


class Purpose(IntEnum):
    """What a stream of random words is for; part of its key."""

    ORDER = 0
    CROP_Y = 1
    CROP_X = 2
    FLIP = 3
    MARKER_Y = 4
    MARKER_X = 5
    MARKER_NOISE = 6
    TAKE = 7
    CLASS_PATTERN = 8
    CLASS_Y = 9
    CLASS_X = 10
    COLOUR = 11
    JITTER = 12
    PAIR = 13
    TEXTURE = 14
    MIX = 15
    NOISE_CENTRE = 16
    NOISE_TRAIN = 17
    NOISE_TEST = 18
    SIMILARITY_SUBSET = 64
    SIMILARITY_NULL = 65
    SIMILARITY_HALF = 66


@dataclass(frozen=True)
class Augmentation:
    """Random crop of the image zero-padded by `pad` pixels, then a horizontal flip (p = 1/2)."""

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise FulaError(f"crop padding {self.pad} must be at least 0 pixels")


NO_AUGMENTATION = Augmentation(pad=0, flip=False)


@dataclass(frozen=True, eq=False)
class EpochDraw:
    """One epoch's random numbers; all but `order` are indexed by sample.

    `order` (n,) int64 is the permutation. The crop of sample i starts at row `dy[i]`, column
    `dx[i]` (int32) of the padded image, 0 … 2·pad, and is mirrored afterwards where `flip[i]`.
    """

    order: np.ndarray
    dy: np.ndarray
    dx: np.ndarray
    flip: np.ndarray


def words(seed: int, epoch: int, purpose: Purpose, count: int) -> np.ndarray:
    """The first `count` uint64 words of the stream keyed by (seed, epoch, purpose).

    Word i does not depend on `count`. `seed` lies in [0, 2**63), `epoch` in [-1, 2**40).
    """
    return _generator(seed, epoch, purpose).random_raw(count)


def words_at(seed: int, epoch: int, purpose: Purpose, starts: np.ndarray, count: int) -> np.ndarray:
    """`count` words of the same stream from each of `starts` (k,) on: uint64 (k, count)."""
    generator, block = _generator(seed, epoch, purpose), 0
    out = np.empty((len(starts), count), dtype=np.uint64)
    for row, start in enumerate(starts.tolist()):
        first, skipped = divmod(start, _BLOCK)
        generator.advance(first - block)
        out[row] = generator.random_raw(skipped + count)[skipped:]
        block = first - (-(skipped + count) // _BLOCK)
    return out


def _generator(seed: int, epoch: int, purpose: Purpose) -> np.random.Philox:
    if not 0 <= seed < 2**63:
        raise FulaError(f"seed {seed} must lie in [0, 2**63)")
    key = np.array([seed, (epoch + 1) << 8 | purpose], dtype=np.uint64)
    return np.random.Philox(key=key)


def below(raw: np.ndarray, bound: int) -> np.ndarray:
    """Uniform int32 in [0, bound) from uint64 words of any shape (bias at most bound / 2**32)."""
    return ((raw >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int32)


def uniform(raw: np.ndarray) -> np.ndarray:
    """Uniform float32 in [0, 1), 24 bits each, from uint64 words of any shape."""
    return (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def permutation(seed: int, epoch: int, purpose: Purpose, count: int) -> np.ndarray:
    """A permutation of 0 … count-1 (int64): samples sorted by their word."""
    return np.argsort(words(seed, epoch, purpose, count), kind="stable")


def draw_epoch(
    n: int, seed: int, epoch: int, augmentation: Augmentation = NO_AUGMENTATION
) -> EpochDraw:
    """Draw order, crops and flips of the epoch of `n` samples."""
    span = 2 * augmentation.pad + 1
    return EpochDraw(
        order=permutation(seed, epoch, Purpose.ORDER, n),
        dy=below(words(seed, epoch, Purpose.CROP_Y, n), span),
        dx=below(words(seed, epoch, Purpose.CROP_X, n), span),
        flip=_flips(n, seed, epoch, augmentation.flip),
    )


def _flips(n: int, seed: int, epoch: int, flip: bool) -> np.ndarray:
    if not flip:
        return np.zeros(n, dtype=bool)
    return (words(seed, epoch, Purpose.FLIP, n) >> np.uint64(63)).astype(bool)
