"""Where the files of each source are looked for, and whether they are there.

Names alone are compared: no archive is opened, nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..decode.trees import is_archive
from .by_name import data_folder, loader

Finder = Callable[[Path], Path | None]


@dataclass(frozen=True)
class Place:
    """`looked_for`: in words. `found`: the file or folder; None where there is none. `needs_files`:
    False for a source that is made up, or comes with a library."""

    looked_for: str
    found: Path | None = None
    needs_files: bool = True

    @property
    def there(self) -> bool:
        """Whether the source can be loaded here as it is."""
        return self.found is not None or not self.needs_files


def place_of(name: str, data_dir: str | Path | None = None) -> Place:
    """The place of a source's files in the data folder (see `sources.data_folder`).

    Raises `FulaError` for an unknown name.
    """
    loader(name)
    if name in _MADE_UP:
        return Place(_MADE_UP[name], needs_files=False)
    words, find = _FILES[name]
    return Place(words, find(data_folder(data_dir)))


def _first_of(*names: str) -> Finder:
    def find(folder: Path) -> Path | None:
        return next((folder / n for n in names if (folder / n).exists()), None)

    return find


def _class_folders(prefix: str, *others: str) -> Finder:
    """An archive or a folder with train/ whose name starts with `prefix`, as
    `class_folders` does."""

    def find(folder: Path) -> Path | None:
        inside = sorted(folder.glob(f"{prefix}*")) if folder.is_dir() else []
        places = [folder] if (folder / "train").is_dir() else inside
        return next((p for p in places if _holds_splits(p)), _first_of(*others)(folder))

    return find


def _holds_splits(place: Path) -> bool:
    return is_archive(place) or any(place.glob("train/")) or any(place.glob("*/train/"))


def _data_itself(folder: Path) -> Path | None:
    """The data folder, where it holds train/ itself or is an archive."""
    return folder if _holds_splits(folder) else None


def _mnist(folder: Path) -> Path | None:
    return folder if folder.is_file() else _first_of("mnist.npz", "MNIST/raw")(folder)


_MNIST = ("mnist.npz, or MNIST/raw as torchvision stores it", _mnist)
_FILES: dict[str, tuple[str, Finder]] = {
    "mnist": _MNIST,
    "colour-mnist": _MNIST,
    "fashion-mnist": ("FashionMNIST/raw, as torchvision stores it", _first_of("FashionMNIST/raw")),
    "cifar10": (
        "cifar-10-batches-py, or cifar*: class folders or an archive of them",
        _class_folders("cifar", "cifar-10-batches-py"),
    ),
    "cifar100": ("cifar-100-python", _first_of("cifar-100-python")),
    "svhn": ("train_32x32.mat and test_32x32.mat", _first_of("train_32x32.mat")),
    "imagefolder": (
        "option path, or the data folder itself: train/ and test/ or val/",
        _data_itself,
    ),
    "npz": ("option path, or the data folder itself", lambda f: f if f.is_file() else None),
    "ls-imagenet-10": (
        "ls-imagenet-10*, made by `data prepare ls-imagenet-10`",
        _class_folders("ls-imagenet-10"),
    ),
    "audiofolder": ("option path, or the data folder itself: wav files", _data_itself),
    "stylized": ("option path (a folder), or option base (another source)", lambda folder: None),
}
_MADE_UP = {
    "digits": "comes with scikit-learn",
    "clustered-noise": "made up: options shape, radius",
}
