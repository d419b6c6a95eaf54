"""Image files to uint8 pixels with Pillow: any mode, any size, one square size out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import FulaError
from .images import fit

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def decode_file(path: Path, size: int | None, channels: int) -> np.ndarray:
    """One file as uint8 (H, W, channels); `size` None keeps the file's own size.

    Grayscale, palette, CMYK, 16-bit and transparent images are converted, EXIF orientation is
    applied. Raises `FulaError` naming a file that cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = _converted(image, channels)
            pixels = pixels if size is None else fit(pixels, size)
            return np.asarray(pixels).reshape(pixels.height, pixels.width, channels)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise FulaError(
            f"image '{path}' cannot be read ({error}); repair or remove it, or set "
            "on_error = 'skip'"
        ) from error


def _converted(image, channels: int):
    """The Pillow image, upright, in mode L or RGB."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # convert() would clip, not scale
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def decode_files(
    paths: Sequence[Path], size: int | None, channels: int, on_error: str = "raise"
) -> list[np.ndarray | None]:
    """`decode_file` for each path, by threads; None in the place of one skipped on error."""

    def decode(path: Path) -> np.ndarray | None:
        try:
            return decode_file(path, size, channels)
        except FulaError:
            if on_error == "skip":
                return None
            raise

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(decode, paths))
