"""Image files to uint8 pixels: any mode and size in, one square size out.

Two decoders behind one signature: Pillow, always there, and DALI, several times faster. At an
image's own size both give the same pixels on a CPU; resized ones differ by a few levels, so the
decoder's name and version are part of the cache's key.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from ...errors import FulaError
from .cache import cores
from .folders import FolderIndex
from .headers import RULE
from .images import fit, with_channels

Pixels = list["np.ndarray | None"]


class Decoder(Protocol):
    """The files of `samples` to uint8 (H, W, C) arrays, in order.

    `size` None keeps each file's own size. A file that cannot be read raises `FulaError` naming
    it, or gives None with `on_error="skip"`.
    """

    name: str

    def __call__(
        self,
        index: FolderIndex,
        samples: Sequence[int],
        size: int | None,
        channels: int,
        on_error: str = "raise",
    ) -> Pixels: ...


class PillowDecoder:
    """Decodes with Pillow, by threads."""

    def __init__(self) -> None:
        import PIL

        self.name = f"pillow{PIL.__version__}-rule{RULE}"

    def __call__(
        self,
        index: FolderIndex,
        samples: Sequence[int],
        size: int | None,
        channels: int,
        on_error: str = "raise",
    ) -> Pixels:
        def decode(i: int) -> np.ndarray | None:
            try:
                return decode_file(index, i, size, channels)
            except FulaError:
                if on_error == "skip":
                    return None
                raise

        with ThreadPoolExecutor(min(8, cores())) as pool:
            return list(pool.map(decode, samples))


def decode_file(index: FolderIndex, i: int, size: int | None, channels: int) -> np.ndarray:
    """One file as uint8 (H, W, channels) by Pillow.

    Grayscale, palette, CMYK and transparent images are converted (transparency is dropped), EXIF
    orientation is applied. More than 8 bits: 16-bit integers are scaled by 255/65535, floats in
    [0, 1] by 255; other numbers have no known white and are refused. Raises `FulaError` naming a
    file that cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(index.read(i))) as image:
            return picture_pixels(image, size, channels)
    except UnidentifiedImageError as error:  # its text names an object in memory
        raise unreadable(index.where(i), "no known image format") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise unreadable(index.where(i), str(error)) from error


def picture_pixels(image, size: int | None, channels: int) -> np.ndarray:
    """A Pillow image as uint8 (H, W, channels), by the rules of `decode_file`; raises `ValueError`
    for one without a known white."""
    upright = _rgb(image)
    pixels = np.asarray(upright if size is None else fit(upright, size))
    return with_channels(pixels[None], channels)[0]


_SIXTEEN_BITS = ("PNG", "PPM")
"""File formats of which Pillow gives 16-bit numbers in its 32-bit mode."""


def _eight_bits(wide: np.ndarray, mode: str, kind: str | None) -> np.ndarray:
    """Gray numbers (H, W) of more than 8 bits as uint8; Pillow's `convert` would clip,
    not scale."""
    low, high = wide.min(), wide.max()
    if mode == "F":
        if not (low >= 0 and high <= 1):  # a NaN fails too
            raise ValueError(f"its floats run from {low:g} to {high:g}, not within 0 to 1")
        return np.rint(wide * np.float32(255)).astype(np.uint8)
    if mode == "I" and (kind not in _SIXTEEN_BITS or low < 0 or high > 65535):
        raise ValueError(f"its 32-bit integers, {low} to {high}, have no known white")
    return ((wide.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def unreadable(place: str, reason: str) -> FulaError:
    """The error for an image file that cannot be decoded."""
    return FulaError(
        f"image '{place}' cannot be read ({reason}); repair or remove it, or set on_error = 'skip'"
    )


def _rgb(image):
    """The Pillow image, upright, in mode RGB. Raises `ValueError` for one without a known white."""
    from PIL import Image, ImageOps

    kind = image.format
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode, kind))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
