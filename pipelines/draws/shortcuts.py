"""Shortcuts: small markers that give the class away (FuLA preprint, section on shortcuts).

A marker is pasted after augmentation, as floats, so its pixels are exact whatever the crop. Classes
have a pattern (`pixel`, `aruco`) or fresh `noise`; places are fixed per class or random per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FulaError, nearest
from .aruco import COUNT as ARUCO_COUNT
from .aruco import marker_bits
from .randomness import EVALUATION, Purpose, below, permutation, uniform, words, words_at

if TYPE_CHECKING:
    import torch

PATTERNS = ("pixel", "aruco", "noise")
LOCATIONS = ("class", "random")
MARKER_SETS = ("shortcut", "clean", "rolled")
_MOST_COLOURS = 128
_ROWS = 1 << 16  # of a noise table drawn at a time


@dataclass(frozen=True)
class Shortcut:
    """A marker of `size` x `size` pixels; `seed` fixes the classes' patterns and places.

    `pattern`: `pixel` one colour per class, `aruco` one DICT_4X4_100 marker per class, `noise`
    fresh uniform noise per image. `location`: `class` or `random`.
    """

    pattern: str
    location: str
    size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for option, valid in (("pattern", PATTERNS), ("location", LOCATIONS)):
            value = getattr(self, option)
            if value not in valid:
                raise FulaError(f"unknown shortcut {option} '{value}'{nearest(value, valid)}")


@dataclass(frozen=True)
class NoiseTable:
    """Uniform noise float32 (N, s, s, C) = `shape`, a row for each sample; none of it is kept.

    Indexing draws rows, `numpy.asarray` all of them: the words of one keyed stream in order.
    """

    shape: tuple[int, int, int, int]
    seed: int
    epoch: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        wanted = np.asarray(index)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"rows {wanted.min()} … {wanted.max()} of {len(self)}")
        each = prod(self.shape[1:])
        raw = words_at(self.seed, self.epoch, Purpose.MARKER_NOISE, wanted.ravel() * each, each)
        return uniform(raw).reshape(*wanted.shape, *self.shape[1:])

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        """The whole table; always a new array."""
        if copy is False:
            raise ValueError("a noise table is drawn anew whenever it is asked for")
        out = np.empty(self.shape, dtype=np.float32)
        for start in range(0, len(self), _ROWS):
            rows = slice(start, min(start + _ROWS, len(self)))
            each = prod(self.shape[1:])
            starts, count = np.array([start * each]), (rows.stop - start) * each
            raw = words_at(self.seed, self.epoch, Purpose.MARKER_NOISE, starts, count)
            out[rows] = uniform(raw).reshape(-1, *self.shape[1:])
        return out if dtype is None else out.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Markers:
    """The marker of every sample: `table[index[i]]` goes on sample i at row `y[i]`, column `x[i]`.

    `table` (M, s, s, C) float32 in [0, 1], drawn as it is asked for where every sample has its own;
    `index` int64, `y`, `x` int32, all (N,).
    """

    table: np.ndarray | NoiseTable
    index: np.ndarray
    y: np.ndarray
    x: np.ndarray


def draw_markers(
    shortcut: Shortcut,
    labels: np.ndarray,
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int,
    epoch: int,
    *,
    rolled: bool = False,
) -> Markers:
    """One epoch's markers of the samples with `labels` (N,), for images (C, H, W) = `image_shape`.

    `rolled` gives every image of class c the marker, and the place, of class c - 1. Raises
    `FulaError` for a marker larger than the images.
    """
    channels, height, width = image_shape
    room = (height - shortcut.size, width - shortcut.size)
    if shortcut.size < 1 or min(room) < 0:
        raise FulaError(
            f"a marker of {shortcut.size} pixels does not fit {height}x{width} images; give a "
            f"size of 1 … {min(height, width)}"
        )
    carried = (labels - 1) % num_classes if rolled else labels
    y, x = _places(shortcut, carried, num_classes, room, seed, epoch)
    if shortcut.pattern == "noise":
        table = NoiseTable((len(labels), shortcut.size, shortcut.size, channels), seed, epoch)
        return Markers(table, np.arange(len(labels)), y, x)
    return Markers(class_patterns(shortcut, num_classes, channels), carried, y, x)


def evaluation_markers(
    shortcut: Shortcut,
    which: str,
    labels: np.ndarray,
    num_classes: int,
    image_shape: tuple[int, int, int],
) -> Markers | None:
    """The markers of an evaluation set: `shortcut`, `clean` (None), or `rolled`.

    Raises `FulaError` for another name.
    """
    if which not in MARKER_SETS:
        raise FulaError(f"unknown evaluation set '{which}'{nearest(which, MARKER_SETS)}")
    if which == "clean":
        return None
    return draw_markers(
        shortcut,
        labels,
        num_classes,
        image_shape,
        shortcut.seed,
        EVALUATION,
        rolled=which == "rolled",
    )


def class_patterns(shortcut: Shortcut, num_classes: int, channels: int) -> np.ndarray:
    """The classes' markers, float32 (classes, s, s, C): colours or ArUco bits, permuted by seed.

    Raises `FulaError` where ArUco has too few markers or its bits do not fit.
    """
    order = permutation(shortcut.seed, 0, Purpose.CLASS_PATTERN, num_classes)
    size = shortcut.size
    if shortcut.pattern == "pixel":
        colours = np.array(distant_colours(num_classes, channels), dtype=np.float32)[order]
        return np.broadcast_to(
            colours[:, None, None, :], (num_classes, size, size, channels)
        ).copy()
    if num_classes > ARUCO_COUNT:
        raise FulaError(
            f"{num_classes} classes, but there are {ARUCO_COUNT} ArUco markers; use pattern = "
            "'pixel' or 'noise'"
        )
    if size % 4:
        raise FulaError(f"an ArUco marker of {size} pixels: its 4x4 bits need a multiple of 4")
    bits = marker_bits()[:num_classes][order].repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return np.repeat(bits[..., None], channels, axis=-1).astype(np.float32)


def class_places(
    shortcut: Shortcut, num_classes: int, room: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The classes' top-left rows and columns, uniform over 0 … room."""
    y, x = (
        below(words(shortcut.seed, 0, purpose, num_classes), extent + 1)
        for purpose, extent in zip((Purpose.CLASS_Y, Purpose.CLASS_X), room, strict=True)
    )
    return y, x


@lru_cache(maxsize=8)
def distant_colours(count: int, channels: int) -> tuple[tuple[float, ...], ...]:
    """`count` colours by farthest-point sampling of linspace(0, 1, count)**channels.

    Starts at the grid's first point; each next point is the one farthest from those taken, the
    first such in grid order. Raises `FulaError` for more colours than are told apart.
    """
    if count > _MOST_COLOURS:
        raise FulaError(
            f"{count} classes: pattern 'pixel' separates at most {_MOST_COLOURS} colours; use "
            "pattern = 'noise'"
        )
    shape = (count,) * channels
    taken = [(0,) * channels]
    nearest_taken = np.full(shape, np.inf, dtype=np.float32)
    for _ in range(count - 1):
        np.minimum(nearest_taken, _squared_distances(taken[-1], count), out=nearest_taken)
        taken.append(tuple(int(k) for k in np.unravel_index(nearest_taken.argmax(), shape)))
    values = np.linspace(0, 1, count)
    return tuple(tuple(float(values[k]) for k in point) for point in taken)


def _squared_distances(point: tuple[int, ...], count: int) -> np.ndarray:
    """From every grid point to `point`, in grid steps: integers, so that ties are exact."""
    along = [(np.arange(count, dtype=np.float32) - k) ** 2 for k in point]
    return sum(np.ix_(*along))


def _places(
    shortcut: Shortcut,
    labels: np.ndarray,
    num_classes: int,
    room: tuple[int, int],
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    if shortcut.location == "class":
        y, x = class_places(shortcut, num_classes, room)
        return y[labels], x[labels]
    y, x = (
        below(words(seed, epoch, purpose, len(labels)), extent + 1)
        for purpose, extent in zip((Purpose.MARKER_Y, Purpose.MARKER_X), room, strict=True)
    )
    return y, x


def paste(images: np.ndarray, markers: Markers, index: np.ndarray) -> np.ndarray:
    """Reference: float32 `images` (B, H, W, C) of the samples `index`, with their markers."""
    out = images.copy()
    size = markers.table.shape[1]
    patterns = markers.table[markers.index[index]]
    for image, pattern, y, x in zip(out, patterns, markers.y[index], markers.x[index], strict=True):
        image[y : y + size, x : x + size] = pattern
    return out


def paste_tensor(
    images: torch.Tensor, patterns: torch.Tensor, y: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """`images` (B, H, W, C) with `patterns` (B, s, s, C) at rows `y`, columns `x` (B,)."""
    import torch

    side = torch.arange(patterns.shape[1], device=images.device)
    rows = (y[:, None] + side)[:, :, None]  # (B, s, 1)
    columns = (x[:, None] + side)[:, None, :]  # (B, 1, s)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images.index_put((batch, rows, columns), patterns)
