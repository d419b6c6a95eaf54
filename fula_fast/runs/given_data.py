"""Data that a caller of `fula_fast.stitch` or `sweep` gives: a source, or what becomes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import pipelines
from ..errors import FulaError
from ..models import Staged
from ..pipelines import ImageSet, Normalisation, Source
from ..pipelines.sources.given import GIVEN, ImageForm, Read, at_hand, every_fifth, image_set, read
from ..pipelines.sources.samples import is_array, is_picture
from ..study.spec import Spec, load_spec
from ..study.toml import Overrides, read_toml

SpecSource = str | Path | Mapping[str, Any]
Data = Any
"""A `Source`, the name of one, or sets of images: see `given_source`."""

_TRAIN, _TEST = ("train", "training"), ("test", "validation", "val", "valid")


@dataclass(frozen=True)
class Given:
    """A source, and what the user should know of how it came about."""

    source: Source
    notes: tuple[str, ...] = ()


def given_source(data: Data, end: Staged, *, answers: bool = True) -> Given:
    """The source behind the `data` of a stitch into `end`, whose own classes are those of the data
    where its own `answers` are asked for.

    A named one and Pillow images are resized to the end's input; arrays are taken as they are.
    Raises `FulaError` for what cannot become a source.
    """
    channels, size = end.input_shape[:2]
    if isinstance(data, str):
        return Given(pipelines.load_source(data, size=size, channels=channels))
    known = end.num_classes if answers and end.classifies else 0
    return source_of(data, ImageForm(channels, size), known)


def source_of(data: Data, form: ImageForm, classes: int = 0) -> Given:
    """The source of `data`: a `Source`, or sets of images as (train, test), as a mapping of splits,
    or as one set, of which every fifth image of a class becomes a test image.

    A set is an `ImageSet`, (images, labels), images alone, a torch `Dataset` or `DataLoader`, a
    Hugging Face data set, or any iterable of (image, label) or images. `classes`: how many there
    are at least. Raises `FulaError` for anything else.
    """
    if isinstance(data, Source):
        return Given(data)
    parts = {w: _one_set(part, form, f"the {w} data") for w, part in _splits(data).items()}
    notes = tuple(note for part in parts.values() for note in part.notes)
    if len(parts) == 1:
        return _split(next(iter(parts.values())), notes, classes)
    train, test = parts.values()
    if (train.labels is None) != (test.labels is None):
        bare = "training" if train.labels is None else "test"
        raise FulaError(f"the {bare} data have no labels, the others do; give both, or neither")
    names = [_names(part, parts.values(), classes) for part in (train, test)]
    return Given(Source(GIVEN, image_set(train, names[0]), image_set(test, names[1])), notes)


@contextmanager
def given_spec(
    data: Data | None, spec: SpecSource, overrides: Overrides
) -> Iterator[tuple[Spec, tuple[str, ...]]]:
    """The checked spec with `data` (None: its own), which are at hand inside the block, and notes.

    They are read as the [data] table says (size, channels). Raises `FulaError`.
    """
    if data is None:
        yield load_spec(spec, overrides), ()
        return
    if isinstance(data, str):
        raise FulaError(f"data is the name '{data}'; name a source in the spec: [data] source")
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    asked = load_spec(_with_data(spec, None), overrides).data
    found = source_of(data, ImageForm(asked.channels, asked.size, resizes=True))
    with at_hand(replace(found.source, name=GIVEN)) as content:
        yield load_spec(_with_data(spec, content), overrides), found.notes


def _with_data(spec: SpecSource, content: str | None) -> dict[str, Any]:
    """The spec's tables with a [data] table that names data at hand by their content."""
    table = dict(spec) if isinstance(spec, Mapping) else read_toml(spec)
    own = dict(table.get("data", {}))
    if clash := _OF_SOURCES & set(own):
        raise FulaError(
            f"[data] sets {min(clash)}, but data gives the images themselves; keep one of them"
        )
    return table | {"data": own | {"source": GIVEN, "options": {"content": content}}}


_OF_SOURCES = {"source", "data_dir", "download", "options"}


def _splits(data: Data) -> dict[str, Any]:
    """The sets by what they are for; one set alone is called "given"."""
    if isinstance(data, Mapping):
        return _named_splits(data)
    if isinstance(data, tuple | list):
        if len(data) == 2 and not _is_one_set(data):
            return dict(zip(("training", "test"), data, strict=True))
        if len(data) != 2 and isinstance(data, tuple):
            raise FulaError(f"data is a {type(data).__name__} of {len(data)}; {_WANTED}")
    elif not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")) or isinstance(data, str):
        raise FulaError(f"data is a {type(data).__name__}; {_WANTED}")
    return {"given": data}


_WANTED = (
    "give a Source, the name of one, one set of images, or (train, test), each an ImageSet, "
    "(images, labels), a torch Dataset or DataLoader, or a Hugging Face data set"
)


def _is_one_set(pair: Any) -> bool:
    """Whether these are images and their labels: labels have fewer axes than images."""
    images, labels = pair
    if isinstance(labels, list | tuple | range):
        return is_array(images) and not any(map(_is_no_label, labels))
    return is_array(images) and is_array(labels) and len(labels.shape) <= 2


def _is_no_label(value: Any) -> bool:
    return isinstance(value, tuple) or getattr(value, "ndim", 0) > 1 or is_picture(value)


def _named_splits(data: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a mapping, such as Hugging Face's: a training split, and a test split if any."""
    train = next((name for name in _TRAIN if name in data), None)
    test = next((name for name in _TEST if name in data), None)
    if train is None:
        raise FulaError(
            f"data has the splits {', '.join(map(str, data)) or '(none)'}, but none is called "
            "'train'; give (train, test), or {'train': ..., 'test': ...}"
        )
    if test is None:
        return {"given": data[train]}
    return {"training": data[train], "test": data[test]}


def _one_set(part: Any, form: ImageForm, where: str) -> Read:
    if isinstance(part, ImageSet):
        labels = part.labels if part.labelled else None
        return Read(part.images, labels, part.classes or None)
    return read(part, form, where)


def _split(part: Read, notes: tuple[str, ...], classes: int) -> Given:
    """Train and test images out of one set."""
    test = every_fifth(part.labels, len(part.images))
    if not test.any():
        raise FulaError(
            f"the given data are {len(part.images)} images, too few to take every fifth of a class "
            "for testing; give (train, test)"
        )
    names = _names(part, [part], classes)
    source = Source(GIVEN, *(image_set(part, names, kept) for kept in (~test, test)))
    each = "every fifth image" + (" of a class" if part.labels is not None else "")
    return Given(
        source,
        (
            *notes,
            f"one set of data: {each} is a test image ({test.sum()} of {len(test)}), the others "
            "train; give (train, test) for another choice",
        ),
    )


def _names(part: Read, parts: Any, classes: int) -> tuple[str, ...]:
    """A set's class names: its own, else numbers for the labels of all sets."""
    if part.labels is None:
        return ()
    count = 1 + max(int(each.labels.max(initial=-1)) for each in parts)
    named = part.classes or next((each.classes for each in parts if each.classes), None)
    if named is None:
        return tuple(map(str, range(max(classes, count))))
    if len(named) < count:
        raise FulaError(
            f"the data name {len(named)} classes, but labels run to {count - 1}; give one name a "
            "class, or labels from 0"
        )
    return named


def given_moments(
    asked: Normalisation | str | None, source: Source, front: Staged, end: Staged
) -> Normalisation | None:
    """What images are normalised by: as `asked`, else ("source") as the source was published with;
    not at all where a donor has an input of its own.

    Raises `FulaError` for given data whose normalisation nobody states.
    """
    own = [donor.name for donor in (front, end) if donor.preparation is not None]
    if own:
        published = asked == "source" and source.normalisation is not None and len(own) == 1
        if published or isinstance(asked, Normalisation):
            raise FulaError(
                f"model '{own[0]}' has an input of its own, so normalisation would be done twice; "
                "give both donors by with_input, and leave normalisation out"
            )
        return None
    if asked == "source" and source.name == GIVEN:
        raise FulaError(
            "data of your own do not say how the donors' images were normalised; give "
            "normalisation = fula_fast.Normalisation(mean, std), or None where they saw pixels in "
            "[0, 1]"
        )
    if asked is not None and asked != "source" and not isinstance(asked, Normalisation):
        raise FulaError(
            f"normalisation is a {type(asked).__name__}; give fula_fast.Normalisation(mean, std), "
            "or None for pixels in [0, 1]"
        )
    found = source.normalisation if isinstance(asked, str) else asked
    if found is not None and len(found.mean) != source.image_shape[0]:
        raise FulaError(
            f"normalisation has {len(found.mean)} means, but the images have "
            f"{source.image_shape[0]} channels; give one number a channel"
        )
    return found
