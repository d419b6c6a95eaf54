"""A caller's own data as a series of parts: arrays, torch data sets and loaders, Hugging Face data
sets, and whatever else can be iterated, each read once and in order.

A part is a stack of images (B, …) and one of labels (B, …), or None where there are no labels.
Hugging Face's library is not imported: its data sets are known by their `features`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import FulaError

_IMAGES = ("image", "img", "images", "pixel_values")
_LABELS = ("label", "labels", "target")
_CHUNK = 4096
_TWICE = 16
"""Samples that are read twice, to see whether the data draw at random: a flip of half of the
images escapes once in 65,536 times."""

Part = tuple[Any, Any]


@dataclass(frozen=True)
class Samples:
    """`parts`: of the data, in order. `count`: images that are expected, None where nothing says.
    `classes`: names of the classes by label, where the data have them. `notes`: for the user."""

    parts: Iterable[Part]
    count: int | None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def is_array(data: Any) -> bool:
    """Whether these are numbers in one block: a NumPy array, a tensor, or alike."""
    return hasattr(data, "dtype") and hasattr(data, "shape")


def is_picture(image: Any) -> bool:
    """Whether this is a Pillow image."""
    return hasattr(image, "convert") and hasattr(image, "mode")


def on_host(values: Any) -> np.ndarray:
    """An array of a tensor on any device, or of whatever NumPy takes."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # which NumPy does not have
            values = values.float()
    return np.asarray(values)


def samples_of(data: Any, where: str) -> Samples:
    """The parts of `data`, which messages call `where`. Raises `FulaError` for what is no data, for
    a loader that shuffles, and for samples that are not the same when read again."""
    if is_array(data):
        return _of_arrays(data, None)
    if isinstance(data, tuple | list) and len(data) == 2 and is_array(data[0]):
        return _of_arrays(*data)
    if _is_loader(data):
        return _of_loader(data, where)
    if not (hasattr(data, "__getitem__") or hasattr(data, "__iter__")) or isinstance(data, str):
        raise FulaError(
            f"{where} has a {type(data).__name__} where a set of images belongs; give an ImageSet, "
            "(images, labels), a torch Dataset or DataLoader, or a Hugging Face data set"
        )
    _check_same_again(data, where)
    split = _Split(_features(data), where)
    items = _items(data, where)
    return Samples((split.sample(item) for item in items), _length(data), class_names(data))


def _of_arrays(images: Any, labels: Any) -> Samples:
    count = len(images) if np.ndim(images) else 0
    step = max(count, 1) if str(images.dtype).endswith("uint8") else _CHUNK
    whole = None if labels is None else on_host(labels)

    def parts() -> Iterator[Part]:
        for start in range(0, max(count, 1), step):
            stop = start + step if start + step < count else None  # all labels left: too many show
            yield images[start:stop], None if whole is None else whole[start:stop]

    return Samples(parts(), count)


# Loaders


def _is_loader(data: Any) -> bool:
    from torch.utils.data import DataLoader

    return isinstance(data, DataLoader)


def _of_loader(loader: Any, where: str) -> Samples:
    _check_order(loader, where)
    dataset, size = loader.dataset, loader.batch_size
    _check_same_again(dataset, where)
    split = _Split(_features(dataset), where)
    batched = size is not None or loader.batch_sampler is not None
    items = _items(loader, where)
    count = _length(dataset)
    lost = count % size if loader.drop_last and size and count else 0
    notes = (f"{where}: drop_last = True leaves its last {lost} images out",) if lost else ()
    parts = (split.batch(item) if batched else split.sample(item) for item in items)
    return Samples(parts, count, class_names(dataset), notes)


def _check_order(loader: Any, where: str) -> None:
    from torch.utils import data

    sampler = getattr(loader.batch_sampler, "sampler", None) or loader.sampler
    if isinstance(
        sampler, data.RandomSampler | data.SubsetRandomSampler | data.WeightedRandomSampler
    ):
        raise FulaError(
            f"{where}: the DataLoader shuffles ({type(sampler).__name__}), but data are read once, "
            "in order, and shuffled by data_seed; give shuffle=False, or the data set itself"
        )


# Data sets


def class_names(data: Any) -> tuple[str, ...] | None:
    """Names of the classes by label: `classes` as torchvision's data sets have them, through
    subsets, or those of a Hugging Face label; None where there are none."""
    label = _labels_among(_features(data))
    names = getattr(_features(data)[label], "names", None) if label else None
    names = names or getattr(data, "classes", None)
    if isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names):
        return tuple(names)
    inner = getattr(data, "dataset", None)
    return None if inner is None else class_names(inner)


def _features(data: Any) -> Mapping[str, Any]:
    found = getattr(data, "features", None)
    return found if isinstance(found, Mapping) else {}


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # an iterable of unknown length
        return None


def _items(data: Any, where: str) -> Iterator[Any]:
    """Each item once, in order; an error of the data's own names the item."""
    number = 0
    try:
        for item in _iterator(data):
            yield item
            number += 1
    except FulaError:
        raise
    except Exception as error:  # whatever a caller's data set raises
        raise _unreadable(where, number, error) from error


def _unreadable(where: str, number: int, error: Exception) -> FulaError:
    reason = str(error).split("\n")[0][:200]
    return FulaError(
        f"item {number} of {where} cannot be read ({type(error).__name__}: {reason}); repair the "
        "data set, or leave that item out"
    )


def _iterator(data: Any) -> Iterator[Any]:
    """In the order of the index where the data have a length: torch's sets need not end."""
    count = _length(data)
    if hasattr(data, "__iter__") or count is None:
        return iter(data)
    return (data[i] for i in range(count))


def _check_same_again(data: Any, where: str) -> None:
    """Refuse a data set whose first samples differ when read again: its transform draws."""
    count = _length(data)
    if not hasattr(data, "__getitem__") or not count:
        return
    for i in range(min(count, _TWICE)):
        try:
            first, second = (_flat(data[i]) for _ in range(2))
        except NotImplementedError:  # an iterable that inherits an index
            return
        except Exception as error:
            raise _unreadable(where, i, error) from error
        if len(first) != len(second) or not all(map(_equal, first, second)):
            raise FulaError(
                f"{where}: item {i} differs when it is read again, so a transform draws at random; "
                "leave that out: crops and flips are options of the protocol, keyed by data_seed"
            )


def _flat(item: Any) -> list[np.ndarray]:
    """An item's parts as arrays."""
    if isinstance(item, Mapping):
        item = tuple(item.values())
    parts = item if isinstance(item, tuple | list) else (item,)
    return [on_host(part) for part in parts]


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object or b.dtype == object:
        return True  # nothing that can be compared; it is refused, or unused, later
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


# Items


@dataclass(frozen=True)
class _Split:
    """How an item falls into image and label; `features` say what a column holds."""

    features: Mapping[str, Any]
    where: str

    def batch(self, item: Any) -> Part:
        """Of a loader's batch: images (B, …), labels (B, …) or None."""
        return self._parts(item)

    def sample(self, item: Any) -> Part:
        """Of one sample, as a batch of one."""
        image, label = self._parts(item)
        images = [image] if is_picture(image) else on_host(image)[None]
        return images, None if label is None else on_host(label)[None]

    def _parts(self, item: Any) -> Part:
        if isinstance(item, Mapping):
            return self._columns(item)
        if isinstance(item, tuple | list):
            if len(item) in (1, 2):
                return item[0], item[1] if len(item) == 2 else None
            raise FulaError(
                f"{self.where} gives items of {len(item)} parts; give (image, label), or the image "
                "alone"
            )
        if item is None or not (is_array(item) or is_picture(item)):
            raise FulaError(
                f"{self.where} gives a {type(item).__name__} where an image belongs; give (image, "
                "label), or the image alone"
            )
        return item, None

    def _columns(self, row: Mapping[str, Any]) -> Part:
        image = next((n for n, f in self.features.items() if type(f).__name__ == "Image"), None)
        image = image or next((n for n in _IMAGES if n in row), None)
        if image not in row:
            raise FulaError(
                f"{self.where} has the columns {', '.join(map(str, row))}; the images' must be "
                f"called {', '.join(_IMAGES)}: rename it (rename_column)"
            )
        label = _labels_among(self.features)
        label = label or next((n for n in _LABELS if n in row), None)
        return row[image], row.get(label) if label else None


def _labels_among(features: Mapping[str, Any]) -> str | None:
    """The column of labels: called so, or the only one that holds classes."""
    named = next((name for name in _LABELS if name in features), None)
    classes = [n for n, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if named is None and len(classes) > 1:
        raise FulaError(
            f"the data have the labels {', '.join(classes)}; leave one (remove_columns), or call "
            "it 'label' (rename_column)"
        )
    return named or next(iter(classes), None)
