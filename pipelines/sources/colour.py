"""Colour MNIST in six variants (Smith et al. 2025): digit and background colour as two labels.

Pixels of the digit become white, the rest takes a colour, jittered per image and channel by
0.1 · clamp(N(0, 1), -1, 1) · 255 and clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import FulaError, nearest
from ..decode.images import ImageSet
from ..draws.frame import Normalisation
from ..draws.randomness import Purpose, below, permutation, uniform, words

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (225, 225, 0),
    "magenta": (225, 0, 225),
    "cyan": (0, 255, 255),
    "orange": (255, 128, 0),
    "rose": (255, 0, 128),
    "violet": (128, 0, 255),
    "grey": (128, 128, 128),
}
_CENTRED = Normalisation((0.5,) * 3, (0.5,) * 3)
_MNIST = Normalisation((0.1307,) * 3, (0.3081,) * 3)


Key = tuple[int, int]  # the seed, and 0 for training or 1 for test images


@dataclass(frozen=True)
class ColourVariant:
    """What an image shows and what its label is; see `VARIANTS`."""

    pixels: Callable[[np.ndarray, np.ndarray, Key], np.ndarray]
    colour_is_label: bool = False
    normalisation: Normalisation = _CENTRED


def coloured(digits: np.ndarray, colours: np.ndarray, key: Key) -> np.ndarray:
    """White digits (N, H, W) uint8 on jittered colours (N,): uint8 (N, H, W, 3)."""
    background = _jittered(colours, key)[:, None, None, :]
    return np.where(digits[..., None] != 0, np.uint8(255), background)


def _jittered(colours: np.ndarray, key: Key) -> np.ndarray:
    """uint8 (N, 3): each image's colour, jittered per channel."""
    table = np.array(list(COLOURS.values()), dtype=np.float64)
    shift = 25.5 * np.clip(_normals(3 * len(colours), key), -1, 1).reshape(-1, 3)
    return np.rint(np.clip(table[colours] + shift, 0, 255)).astype(np.uint8)


def _normals(count: int, key: Key) -> np.ndarray:
    """Standard normals by Box and Muller's transform, two words each."""
    pairs = uniform(words(*key, Purpose.JITTER, 2 * count)).astype(np.float64).reshape(-1, 2)
    return np.sqrt(-2 * np.log(1 - pairs[:, 0])) * np.cos(2 * np.pi * pairs[:, 1])


def _colour_only(digits: np.ndarray, colours: np.ndarray, key: Key) -> np.ndarray:
    return coloured(np.zeros_like(digits), colours, key)


def _plain(digits: np.ndarray, colours: np.ndarray, key: Key) -> np.ndarray:
    return np.repeat(digits[..., None], 3, axis=-1)


def _mixed(digits: np.ndarray, colours: np.ndarray, key: Key) -> np.ndarray:
    """A third each of plain, coloured and colour-only images."""
    kind = permutation(*key, Purpose.MIX, len(digits)) % 3
    out = _plain(digits, colours, key)
    blank = np.where((kind == 2)[:, None, None], np.uint8(0), digits)
    return np.where((kind == 0)[:, None, None, None], out, coloured(blank, colours, key))


VARIANTS = {
    "correlated": ColourVariant(coloured),
    "digit": ColourVariant(coloured),
    "colour": ColourVariant(coloured, colour_is_label=True),
    "colour-only": ColourVariant(_colour_only),
    "bw": ColourVariant(_plain, normalisation=_MNIST),
    "mix": ColourVariant(_mixed),
}
"""`correlated`: the colour is the digit's. `digit`, `colour`: random colours, labelled by digit, or
by colour. `colour-only`: no digit, labelled by colour. `bw`: plain MNIST. `mix`: a third each of
bw, correlated and colour-only. In all but `digit` and `colour`, colour and digit agree."""


def variant(name: str) -> ColourVariant:
    """The named variant, or `FulaError` with the nearest name."""
    if name not in VARIANTS:
        raise FulaError(f"unknown colour-mnist variant '{name}'{nearest(name, VARIANTS)}")
    return VARIANTS[name]


def colour_set(mnist: ImageSet, name: str, seed: int, split: int) -> ImageSet:
    """The variant `name` of MNIST images (N, 28, 28, 1); `seed` draws colours and jitter.

    `split` is 0 for training and 1 for test images, whose draws are unrelated.
    """
    chosen, key = variant(name), (seed, split)
    colours = mnist.labels
    if name in ("digit", "colour"):
        colours = below(words(*key, Purpose.COLOUR, len(mnist)), 10).astype(np.int64)
    images = chosen.pixels(mnist.images[..., 0], colours, key)
    return ImageSet(images, colours if chosen.colour_is_label else mnist.labels, mnist.classes)
