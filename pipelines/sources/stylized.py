"""A stand-in for stylised images: other texture, same shapes.

Each image keeps its own Fourier phase, which carries edges and shapes, and takes the amplitude
spectrum, which carries texture and colour, of another image of the same set. Labels stay.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..decode.cache import build_once, load_array, save_arrays
from ..decode.images import ImageSet
from ..draws.randomness import Purpose, permutation

_CHUNK = 1024


def scrambled(image_set: ImageSet, seed: int) -> ImageSet:
    """`image_set` with textures exchanged, cached; `seed` draws who lends to whom."""
    key = f"{image_set.content_hash}-{seed}"
    entry = build_once("stylized", key, lambda folder: _fill(folder, image_set, seed))
    return ImageSet(load_array(entry, "images"), image_set.labels, image_set.classes)


def _fill(folder: Path, image_set: ImageSet, seed: int) -> None:
    lenders = _lenders(len(image_set), seed)
    out = np.empty(image_set.images.shape, dtype=np.uint8)
    for start in range(0, len(image_set), _CHUNK):
        part = slice(start, start + _CHUNK)
        out[part] = swap_amplitude(image_set.images[part], image_set.images[lenders[part]])
    save_arrays(folder, images=out)


def _lenders(count: int, seed: int) -> np.ndarray:
    """One cycle through all images in random order, so that nobody lends to itself."""
    order = permutation(seed, 0, Purpose.TEXTURE, count)
    lenders = np.empty(count, dtype=np.int64)
    lenders[order] = np.roll(order, 1)
    return lenders


def swap_amplitude(shapes: np.ndarray, textures: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C): the phase of `shapes` with the amplitude of `textures`."""
    own, other = (np.fft.rfft2(x.astype(np.float32), axes=(1, 2)) for x in (shapes, textures))
    mixed = np.abs(other) * np.exp(1j * np.angle(own))
    pixels = np.fft.irfft2(mixed, s=shapes.shape[1:3], axes=(1, 2))
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
