"""Arrays that a user brings: checked for dtype, axes, range and labels before anything is
converted.

Images: (N, H, W), or (N, H, W, C), or (N, C, H, W) with 1 or 3 channels, where an axis of 1 or 3 at
the end counts as the channels before one in the second place. Whole numbers in 0 … 255 of any
integer dtype, or floats in [0, 1], which become round(255 x). Labels: whole numbers from 0, as (N,)
or (N, 1), or one-hot (N, classes).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FulaError, nearest
from ...files.paths import user_path
from ..decode.images import ImageSet, Source, resized, with_channels

_log = logging.getLogger(__name__)

FORMS = {
    "ours": ("train_x", "train_y", "test_x", "test_y"),
    "Keras": ("x_train", "y_train", "x_test", "y_test"),
    "MedMNIST": ("train_images", "train_labels", "test_images", "test_labels"),
}
"""Keys of training images and labels, test images and labels."""

_CHANNELS = (1, 3)
_MOST_BYTES = 16 << 30


def npz(
    folder: Path, size: int | None, channels: int, download: bool, *, path: str | None = None
) -> Source:
    """A NumPy archive of images and labels, and maybe class names in `classes`.

    Its keys are train_x, train_y, test_x, test_y, or those of Keras (x_train, …) or MedMNIST
    (train_images, …); arrays as in this module's rules. Raises `FulaError` where there is no such
    file.
    """
    file = user_path(path) if path else folder
    if not file.is_file():
        raise FulaError(f"npz file '{file}' does not exist; give path = 'FILE.npz'")
    return load_npz("npz", file, size, channels)


def load_npz(name: str, file: Path, size: int | None, channels: int) -> Source:
    """The source of a NumPy archive; raises `FulaError` naming the file, the key and the cure."""
    arrays = _read(file)
    keys = _form(file, arrays)
    where = [f"'{key}' of '{file}'" for key in keys]
    images = [image_array(arrays[keys[k]], where[k]) for k in (0, 2)]
    labels = [label_array(arrays[keys[k]], len(images[k // 2]), where[k]) for k in (1, 3)]
    classes = _classes(file, arrays, labels, where[1::2])

    def fitted(pixels: np.ndarray, truth: np.ndarray) -> ImageSet:
        pixels = with_channels(pixels, channels)
        return ImageSet(pixels if size is None else resized(pixels, size), truth, classes)

    return Source(name, *map(fitted, images, labels))


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            _check_sizes(data)
            return {key: data[key] for key in data.files}
    except FulaError as error:
        raise FulaError(f"npz file '{file}' {error}") from None
    except MemoryError:
        raise FulaError(
            f"npz file '{file}' holds, or claims to hold, more than fits the memory; fetch it again"
        ) from None
    except Exception as error:  # damaged bytes may raise anything in zipfile and NumPy
        reason = str(error).split("\n")[0][:200]
        raise FulaError(
            f"npz file '{file}' cannot be read ({reason}); write it with numpy.savez, without "
            "objects, or fetch it again"
        ) from error


def _check_sizes(data: Any) -> None:
    """`FulaError` for an archive that unpacks to more than `_MOST_BYTES`, or is no archive."""
    if not hasattr(data, "files"):
        raise FulaError("is one array, no npz archive; save it with numpy.savez")
    unpacked = sum(member.file_size for member in data.zip.infolist())
    if unpacked > _MOST_BYTES:
        raise FulaError(
            f"unpacks to {unpacked / 2**30:.1f} GiB; the limit of a set in memory is "
            f"{_MOST_BYTES / 2**30:.0f} GiB: give the images as a folder"
        )


def _form(file: Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The keys in the form of which the file has most."""
    keys = max(FORMS.values(), key=lambda form: len(set(form) & set(arrays)))
    for key in keys:
        if key not in arrays:
            forms = "; ".join(f"{name}: {', '.join(form)}" for name, form in FORMS.items())
            raise FulaError(
                f"npz file '{file}' has no '{key}'{nearest(key, arrays)}; known are {forms}"
            )
    rest = sorted(set(arrays) - {*keys, "classes"})
    if rest:
        _log.warning("npz file '%s': %s is left out", file, ", ".join(rest))
    return keys


def _classes(
    file: Path, arrays: dict[str, np.ndarray], labels: Sequence[np.ndarray], where: Sequence[str]
) -> tuple[str, ...]:
    """The class names: the file's own, else the labels as they occur."""
    count = max(int(part.max()) for part in labels) + 1
    if "classes" in arrays:
        names = tuple(str(c) for c in np.ravel(arrays["classes"]))
        if len(names) < count:
            raise FulaError(
                f"'classes' of '{file}' has {len(names)} names, but labels run to {count - 1}; "
                "give one name a class"
            )
        return names
    if count > len(labels[0]):
        raise FulaError(
            f"labels in {where[0]} run to {count - 1}, more classes than its {len(labels[0])} "
            "images; give class numbers, not names of images"
        )
    seen = np.bincount(labels[0], minlength=count)
    if not seen.all():
        raise FulaError(
            f"label {int(seen.argmin())} never occurs in {where[0]}, though labels run to "
            f"{count - 1}; number the classes from 0 without gaps, or name them all in 'classes'"
        )
    return tuple(map(str, range(count)))


def image_array(array: Any, where: str) -> np.ndarray:
    """uint8 (N, H, W, C) of a user's images, by this module's rules; `where` names them.

    Raises `FulaError` for pixels out of range.
    """
    images = _with_channel_axis(np.asarray(array), where)
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    low, high = images.min(), images.max()
    floats = np.issubdtype(images.dtype, np.floating)
    if not (low >= 0 and high <= (1 if floats else 255)):  # a NaN fails too
        wanted = "floats in [0, 1]" if floats else "whole numbers in 0 to 255"
        raise FulaError(
            f"{where} is {images.dtype} from {low:g} to {high:g}; give uint8, or {wanted}, before "
            "any normalisation (that one is stated by mean and std)"
        )
    scaled = np.rint(images * images.dtype.type(255)) if floats else images
    return np.ascontiguousarray(scaled.astype(np.uint8))


def _with_channel_axis(images: np.ndarray, where: str) -> np.ndarray:
    """(N, H, W, C): the channels last, one where the array has none."""
    real = images.dtype.kind in "uif"
    if real and images.size and images.ndim == 3:
        return images[..., None]
    if real and images.size and images.ndim == 4:
        if images.shape[3] in _CHANNELS:
            return images
        if images.shape[1] in _CHANNELS:
            return images.transpose(0, 2, 3, 1)
    raise FulaError(
        f"{where} is {images.dtype} of shape {images.shape}; images are numbers of shape "
        "(N, H, W), (N, H, W, C) or (N, C, H, W), with 1 or 3 channels"
    )


def label_array(array: Any, images: int, where: str) -> np.ndarray:
    """int64 (N,) of a user's labels for so many `images`, by this module's rules.

    Raises `FulaError` unless they are whole numbers from 0, one for each image.
    """
    labels = np.asarray(array)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "buif":
        labels = _from_one_hot(labels, where)
    if labels.shape != (images,):
        raise FulaError(
            f"{where} has shape {np.shape(array)}, but there are {images} images; give one label "
            "an image"
        )
    if labels.dtype.kind not in "ui":
        raise FulaError(f"{where}: labels are {labels.dtype}; give whole numbers from 0")
    if images and labels.min() < 0:
        raise FulaError(f"{where} has the label {labels.min()}; number the classes from 0")
    return labels.astype(np.int64)


def _from_one_hot(labels: np.ndarray, where: str) -> np.ndarray:
    ones = labels == 1
    if not (((labels == 0) | ones).all() and (ones.sum(1) == 1).all()):
        raise FulaError(
            f"{where} has shape {labels.shape} and is not one-hot (one 1 an image, 0 elsewhere); "
            "images with several labels have no class: give one label an image"
        )
    return ones.argmax(1)
