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

        self.name = f"pillow{PIL.__version__}"

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

    Grayscale, palette, CMYK, 16-bit and transparent images are converted (transparency is
    dropped), EXIF orientation is applied. Raises `FulaError` naming a file that cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(index.read(i))) as image:
            upright = _rgb(image)
            pixels = np.asarray(upright if size is None else fit(upright, size))
            return with_channels(pixels[None], channels)[0]
    except UnidentifiedImageError as error:  # its text names an object in memory
        raise unreadable(index.where(i), "no known image format") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise unreadable(index.where(i), str(error)) from error


def unreadable(place: str, reason: str) -> FulaError:
    """The error for an image file that cannot be decoded."""
    return FulaError(
        f"image '{place}' cannot be read ({reason}); repair or remove it, or set on_error = 'skip'"
    )


def _rgb(image):
    """The Pillow image, upright, in mode RGB."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bit; convert() would clip, not scale
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
