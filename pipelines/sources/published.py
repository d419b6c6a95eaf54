"""Sources of images as they were published: arrays, class folders, and torchvision's sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FulaError
from ...files.paths import user_path
from ..decode.files import decoded, file_set, refuse_reading
from ..decode.folders import TEST_SPLITS, FolderIndex, index_splits, splits_of
from ..decode.images import ImageSet, Source, resized, with_channels
from ..decode.trees import FileTree, is_archive, open_tree
from ..decode.webdataset import index_shards
from .arrays import load_npz
from .given import every_fifth
from .places import place_of

_DIGITS = tuple("0123456789")


def _fitted(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    size: int | None,
    channels: int,
) -> Source:
    """A source from raw (images, labels) pairs, images (N, H, W) or (N, H, W, C)."""

    def fitted(images: np.ndarray, labels: np.ndarray) -> ImageSet:
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise FulaError(
                f"'{name}' holds images {images.dtype} {images.shape}; they must be uint8 (N, H, "
                "W) or (N, H, W, C), and some"
            )
        images = with_channels(images, channels)
        images = images if size is None else resized(images, size)
        return ImageSet(images, np.asarray(labels, dtype=np.int64), tuple(classes))

    return Source(name, fitted(*train), fitted(*test))


def digits(folder: Path, size: int | None, channels: int, download: bool) -> Source:
    """scikit-learn's handwritten digits (UCI), 8x8; of a class every fifth is a test image."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int64)
    test = every_fifth(labels, len(labels))
    return _fitted(
        "digits",
        (images[~test], labels[~test]),
        (images[test], labels[test]),
        _DIGITS,
        size,
        channels,
    )


def mnist(folder: Path, size: int | None, channels: int, download: bool) -> Source:
    """MNIST, 28x28: `mnist.npz` or torchvision's `MNIST/raw`."""
    for file in (folder, folder / "mnist.npz"):
        if file.is_file():
            return load_npz("mnist", file, size, channels)
    return _torchvision("mnist", "MNIST", folder, size, channels, download)


def fashion_mnist(folder: Path, size: int | None, channels: int, download: bool) -> Source:
    """Fashion-MNIST, 28x28, in torchvision's `FashionMNIST/raw`."""
    return _torchvision("fashion-mnist", "FashionMNIST", folder, size, channels, download)


def cifar10(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    on_error: str = "raise",
    decoder: str = "auto",
    cached: bool = True,
) -> Source:
    """CIFAR-10, 32x32: class folders, an archive of them, or torchvision's files.

    The options are about class folders, as in `imagefolder`; torchvision's files are arrays, for
    which any but the defaults are refused.
    """
    if (folder / "cifar-10-batches-py").is_dir() or download:
        refuse_reading(
            "cifar10: on_error, decoder and cached are about class folders, not torchvision's "
            "files (those of a download too); leave them out",
            on_error, decoder, cached,
        )  # fmt: skip
        return _torchvision("cifar10", "CIFAR10", folder, size, channels, download)
    tree = class_folders("cifar10", folder, "cifar", downloads=True)
    settings = {"on_error": on_error, "decoder": decoder}
    return from_folders("cifar10", tree, size, channels, cached=cached, **settings)


def cifar100(folder: Path, size: int | None, channels: int, download: bool) -> Source:
    """CIFAR-100, 32x32, in torchvision's `cifar-100-python`."""
    return _torchvision("cifar100", "CIFAR100", folder, size, channels, download)


def svhn(folder: Path, size: int | None, channels: int, download: bool) -> Source:
    """Street View House Numbers, 32x32, `train_32x32.mat` and `test_32x32.mat`."""
    return _torchvision("svhn", "SVHN", folder, size, channels, download)


def imagefolder(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    path: str | None = None,
    classes: Sequence[str] | None = None,
    on_error: str = "raise",
    decoder: str = "auto",
    cached: bool = True,
) -> Source:
    """Class folders under train/ and test/ or val/, or an archive of them.

    `path` names the folder (default: the data folder), `classes` the label order. `cached = false`
    leaves images as files, decoded whenever they are needed, for folders too large to unpack.
    `decoder`: see `decode.open_decoder`; `dali-gpu` decodes JPEG on the GPU.
    """
    tree = class_folders("imagefolder", user_path(path) if path else folder)
    settings = {"on_error": on_error, "decoder": decoder}
    return from_folders("imagefolder", tree, size, channels, classes, cached, **settings)


def webdataset(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    path: str | None = None,
    train: str | None = None,
    test: str | None = None,
    classes: Sequence[str] | None = None,
    on_error: str = "raise",
    decoder: str = "auto",
    cached: bool = False,
) -> Source:
    """WebDataset shards: tar files of images with labels in `.cls`, or without any.

    `path` names their folder (default: the data folder); `train` and `test` are patterns of their
    names (default: `*train*.tar` or `train/*.tar`; `*test*.tar`, `*val*.tar`, `test/*.tar` or
    `val/*.tar`). `classes` names the labels, by default their numbers. Images are read where they
    lie, whenever they are needed; `cached = true` decodes them once. `decoder`, `on_error`: as of
    `imagefolder`. Raises `FulaError` for a folder without shards, and as `index_shards`.
    """
    root = user_path(path) if path else folder
    if not root.is_dir():
        raise FulaError(f"'{root}' is no folder; give the one that holds the shards (*.tar)")
    patterns = (
        [train] if train else shard_names("train"),
        [test] if test else shard_names(*TEST_SPLITS),
    )
    indices = index_shards(root, *patterns, classes)
    return _of_indices(
        "webdataset", indices, size, channels, cached, on_error=on_error, decoder=decoder
    )


def shard_names(*splits: str) -> list[str]:
    """Patterns of the shards of a split that is called by any of these names."""
    return [f"*{split}*.tar" for split in splits] + [f"{split}/*.tar" for split in splits]


def from_folders(
    name: str,
    tree: FileTree,
    size: int | None,
    channels: int,
    classes: Sequence[str] | None = None,
    cached: bool = True,
    **settings: str,
) -> Source:
    """A source of the class folders in `tree`, decoded into the cache or left as files."""
    return _of_indices(name, index_splits(tree, classes), size, channels, cached, **settings)


def _of_indices(
    name: str,
    splits: Sequence[FolderIndex],
    size: int | None,
    channels: int,
    cached: bool,
    **settings: str,
) -> Source:
    load: Callable[..., Any] = decoded if cached else file_set
    return Source(name, *(load(index, size, channels, **settings) for index in splits))


def class_folders(
    name: str, folder: Path, prefix: str | None = None, *, downloads: bool = False
) -> FileTree:
    """The tree with class folders: what in `folder` starts with `prefix`, or `folder` itself.

    `downloads`: the source could be downloaded, which the error for missing data then says. Raises
    `FulaError` where there are none.
    """
    other = ", or download = true" if downloads else ""
    if not folder.exists():
        raise FulaError(
            f"data folder '{folder}' for '{name}' does not exist; make it, or give data_dir{other}"
        )
    inside = sorted(folder.glob(f"{prefix}*")) if prefix and folder.is_dir() else []
    places = inside if prefix and not (folder / "train").is_dir() else [folder]
    for place in places or [folder]:
        if place.is_dir() or is_archive(place):
            tree = open_tree(place)
            if splits_of(tree):
                return tree
    raise FulaError(
        f"no '{name}' in '{folder}': it needs train/<class>/ beside test/<class>/ or val/<class>/, "
        f"or an archive of them; point data_dir at it{other}"
    )


def _torchvision(
    name: str, kind: str, folder: Path, size: int | None, channels: int, download: bool
) -> Source:
    """Both splits of a torchvision data set of arrays."""
    from torchvision import datasets

    def load(split: str):
        choice = {"split": split} if kind == "SVHN" else {"train": split == "train"}
        try:
            return getattr(datasets, kind)(str(folder), download=download, **choice)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise FulaError(_not_there(name, folder, reason, download)) from error

    with _no_empty_folders((folder / kind / "raw", folder / kind, folder)):
        train, test = load("train"), load("test")
    classes = _DIGITS if kind in ("MNIST", "SVHN") else train.classes
    return _fitted(name, _arrays(train), _arrays(test), classes, size, channels)


def _not_there(name: str, folder: Path, reason: str, download: bool) -> str:
    if not download:
        return (
            f"no '{name}' in '{folder}' ({reason}); give the data_dir that holds it, or "
            "download = true"
        )
    return (
        f"'{name}' could not be downloaded into '{folder}' ({reason}); bring "
        f"{place_of(name, folder).looked_for} there, or give the data_dir that holds it"
    )


@contextmanager
def _no_empty_folders(folders: Sequence[Path]) -> Iterator[None]:
    """Those that a failed download has made and left empty, inner ones first, are removed."""
    before = [folder for folder in folders if folder.exists()]
    try:
        yield
    except FulaError:
        for folder in folders:
            if folder not in before and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, H, W[, C]) and labels of a torchvision data set."""
    images = np.asarray(dataset.data)
    if images.ndim == 4 and images.shape[1] == 3:  # SVHN is (N, C, H, W)
        images = images.transpose(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return np.ascontiguousarray(images), np.asarray(labels, dtype=np.int64)
