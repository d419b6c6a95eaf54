"""A labelled contact sheet: one row per class, as the network sees it, after crop and marker."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import FulaError, nearest
from .decode.images import ImageSet, Source
from .draws.augment import crop_flip, to_floats
from .draws.randomness import NO_AUGMENTATION, Augmentation, Purpose, draw_epoch, permutation
from .draws.shortcuts import MARKER_SETS, Shortcut, draw_markers, evaluation_markers, paste

_SPLITS = ("train", "test")
_GAP, _FONT = 2, 14


def contact_sheet(
    source: Source,
    out: Path,
    *,
    split: str = "train",
    columns: int = 12,
    classes: int = 20,
    augmentation: Augmentation = NO_AUGMENTATION,
    shortcut: Shortcut | None = None,
    marker_set: str = "shortcut",
    seed: int = 0,
    epoch: int = 0,
) -> Path:
    """Write a PNG with up to `columns` random images of each of the first `classes` classes.

    Training images are cropped, flipped and marked as in that `epoch` of a stream with that `seed`;
    test images carry the markers of `marker_set` (shortcut, clean, rolled). Returns `out`. Raises
    `FulaError` for an unknown split or marker set, for none to show, and for activations.
    """
    check_picture(out)
    if split not in _SPLITS:
        raise FulaError(f"unknown split '{split}'{nearest(split, _SPLITS)}")
    if columns < 1 or classes < 1:
        raise FulaError(f"{columns} columns, {classes} classes: a sheet needs at least 1 of each")
    if marker_set not in MARKER_SETS:
        raise FulaError(f"unknown evaluation set '{marker_set}'{nearest(marker_set, MARKER_SETS)}")
    if marker_set != "shortcut" and (shortcut is None or split == "train"):
        raise FulaError(
            f"evaluation set '{marker_set}' is of test images with a shortcut; show the test "
            "split, and give a shortcut"
        )
    images = getattr(source, split)
    if not hasattr(images, "gather"):
        raise FulaError(f"'{source.name}' has activations, not images; there is nothing to show")
    rows = _chosen(images, columns, classes, seed)
    index = np.concatenate(rows)
    markers = None
    if shortcut is not None:
        markers = _markers(images, split, shortcut, marker_set, seed, epoch)
    applied = augmentation if split == "train" else NO_AUGMENTATION
    draw = draw_epoch(len(images), seed, epoch, applied)
    crops = crop_flip(
        images.gather(index), draw.dy[index], draw.dx[index], draw.flip[index], applied.pad
    )
    floats = to_floats(crops) if markers is None else paste(to_floats(crops), markers, index)
    _, height, width = images.image_shape
    title = f"{source.name}, {split}: {len(images)} images, {width}x{height} pixels"
    _draw(np.rint(floats * 255).astype(np.uint8), rows, images.classes, title, out)
    return out


def check_picture(out: Path) -> None:
    """Raise `FulaError` unless a picture can be saved under the name `out`."""
    from PIL import Image

    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise FulaError(
            f"'{out}' is no name of a picture; give one that ends in .png, such as grid.png"
        )
    if out.is_dir():
        raise FulaError(f"'{out}' is a folder; give the name of a picture, such as {out}/grid.png")


def _chosen(images: ImageSet, columns: int, classes: int, seed: int) -> list[np.ndarray]:
    """Sample indices by class, the first ones of a random order."""
    order = permutation(seed, 0, Purpose.TAKE, len(images))
    labels = images.labels[order]
    return [order[labels == c][:columns] for c in range(min(classes, images.num_classes))]


def _markers(
    images: ImageSet, split: str, shortcut: Shortcut, marker_set: str, seed: int, epoch: int
):
    sizes = (images.labels, images.num_classes, images.image_shape)
    if split == "test":
        return evaluation_markers(shortcut, marker_set, *sizes)
    return draw_markers(shortcut, *sizes, seed, epoch)


def _draw(
    pixels: np.ndarray, rows: list[np.ndarray], classes: tuple[str, ...], title: str, out: Path
) -> None:
    from PIL import Image, ImageDraw, ImageFont

    zoom = max(1, -(-56 // pixels.shape[1]))  # small images at least 56 pixels high
    height, width = (zoom * side + _GAP for side in pixels.shape[1:3])
    font = ImageFont.load_default(_FONT)
    margin = 12 + int(max(font.getlength(name) for name in classes[: len(rows)]))
    columns = max(len(row) for row in rows)
    wide = max(margin + columns * width, 16 + int(font.getlength(title)))
    sheet = Image.new("RGB", (wide, 28 + len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((6, 6), title, fill="black", font=font)
    place = 0
    for k, row in enumerate(rows):
        top = 28 + k * height
        draw.text((6, top + height // 2), classes[k], fill="black", font=font, anchor="lm")
        for column in range(len(row)):
            image = Image.fromarray(np.repeat(pixels[place], 4 - pixels.shape[-1], -1)[..., :3])
            large = image.resize((width - _GAP, height - _GAP), Image.Resampling.NEAREST)
            sheet.paste(large, (margin + column * width, top))
            place += 1
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except OSError as error:
        raise FulaError(
            f"picture '{out}' cannot be written ({error.strerror or error}); give another --out"
        ) from error
