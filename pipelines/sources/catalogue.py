"""The records of the sources that ship, in the order of tables."""

from __future__ import annotations

from pathlib import Path

from .registry import Finder, NamedSource, Nominal, register


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
    from ..decode.trees import is_archive

    return is_archive(place) or any(place.glob("train/")) or any(place.glob("*/train/"))


def _data_itself(folder: Path) -> Path | None:
    """The data folder, where it holds train/ itself or is an archive."""
    return folder if _holds_splits(folder) else None


def _shards(folder: Path) -> Path | None:
    """The data folder, where it holds training shards."""
    return folder if any(folder.glob("*train*.tar")) or any(folder.glob("train/*.tar")) else None


def _mnist(folder: Path) -> Path | None:
    return folder if folder.is_file() else _first_of("mnist.npz", "MNIST/raw")(folder)


_HERE = __name__.rpartition(".")[0]
_PUBLISHED, _DERIVED = f"{_HERE}.published", f"{_HERE}.derived"
_MNIST = "mnist.npz, or MNIST/raw as torchvision stores it"

register(NamedSource(
    "digits", f"{_PUBLISHED}:digits", "comes with scikit-learn",
    nominal=Nominal(8, 10, 1442, 355),
))  # fmt: skip
register(NamedSource(
    "mnist", f"{_PUBLISHED}:mnist", _MNIST, _mnist, Nominal(28, 10, 60_000, 10_000),
))  # fmt: skip
register(NamedSource(
    "fashion-mnist", f"{_PUBLISHED}:fashion_mnist", "FashionMNIST/raw, as torchvision stores it",
    _first_of("FashionMNIST/raw"), Nominal(28, 10, 60_000, 10_000),
))  # fmt: skip
register(NamedSource(
    "cifar10", f"{_PUBLISHED}:cifar10",
    "cifar-10-batches-py, or cifar*: class folders or an archive of them",
    _class_folders("cifar", "cifar-10-batches-py"), Nominal(32, 10, 50_000, 10_000),
))  # fmt: skip
register(NamedSource(
    "cifar100", f"{_PUBLISHED}:cifar100", "cifar-100-python", _first_of("cifar-100-python"),
    Nominal(32, 100, 50_000, 10_000),
))  # fmt: skip
register(NamedSource(
    "svhn", f"{_PUBLISHED}:svhn", "train_32x32.mat and test_32x32.mat",
    _first_of("train_32x32.mat"), Nominal(32, 10, 73_257, 26_032),
))  # fmt: skip
register(NamedSource(
    "imagefolder", f"{_PUBLISHED}:imagefolder",
    "option path, or the data folder itself: train/ and test/ or val/", _data_itself,
    at_path=True,
))  # fmt: skip
register(NamedSource(
    "webdataset", f"{_PUBLISHED}:webdataset",
    "option path, or the data folder itself: *train*.tar and *test*.tar or *val*.tar", _shards,
    at_path=True,
))  # fmt: skip
register(NamedSource(
    "npz", f"{_HERE}.arrays:npz", "option path, or the data folder itself",
    lambda folder: folder if folder.is_file() else None, at_path=True,
))  # fmt: skip
register(NamedSource("colour-mnist", f"{_DERIVED}:colour_mnist", _MNIST, _mnist))
register(NamedSource(
    "ls-imagenet-10", f"{_DERIVED}:ls_imagenet_10",
    "ls-imagenet-10*, made by `data prepare ls-imagenet-10`", _class_folders("ls-imagenet-10"),
))  # fmt: skip
register(NamedSource(
    "audiofolder", f"{_DERIVED}:audiofolder",
    "option path, or the data folder itself: wav files", _data_itself, at_path=True,
))  # fmt: skip
register(NamedSource(
    "stylized", f"{_DERIVED}:stylized",
    "option path (a folder), or option base (another source)", lambda folder: None, at_path=True,
))  # fmt: skip
register(NamedSource(
    "clustered-noise", f"{_HERE.rpartition('.')[0]}.streams.noise:clustered_noise",
    "made up: options shape, radius",
))  # fmt: skip
