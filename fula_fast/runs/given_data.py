"""Data that a caller of `fula_fast.stitch` gives: a source, its name, or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import pipelines
from ..errors import FulaError
from ..models import Staged
from ..pipelines import ImageSet, Normalisation, Source
from ..pipelines.decode.images import with_channels
from ..pipelines.sources.arrays import image_array, label_array

Data = Source | str | Sequence[Any]
_ARRAYS = "arrays"


def given_source(data: Data, end: Staged) -> Source:
    """The source behind `data`; a named one is resized to the end's input. Raises `FulaError`."""
    if isinstance(data, Source):
        return data
    if isinstance(data, str):
        channels, size = end.input_shape[:2]
        return pipelines.load_source(data, size=size, channels=channels)
    if isinstance(data, Sequence) and len(data) == 2:
        sets = zip(("training", "test"), data, strict=True)
        return Source(_ARRAYS, *(_image_set(part, end, which) for which, part in sets))
    raise FulaError(
        f"data is a {type(data).__name__}; give a Source, the name of one, or (train, test), "
        "each an ImageSet or (images, labels)"
    )


def given_moments(asked: Normalisation | str | None, source: Source) -> Normalisation | None:
    """What images are normalised by: as `asked`, else ("source") as the source was published with.

    Raises `FulaError` for arrays whose normalisation nobody states.
    """
    if asked == "source" and source.name == _ARRAYS:
        raise FulaError(
            "arrays do not say how the donors' images were normalised; give normalisation = "
            "fula_fast.Normalisation(mean, std), or None where they saw pixels in [0, 1]"
        )
    if asked is not None and asked != "source" and not isinstance(asked, Normalisation):
        raise FulaError(
            f"normalisation is a {type(asked).__name__}; give fula_fast.Normalisation(mean, std), "
            "or None for pixels in [0, 1]"
        )
    found = source.normalisation if asked == "source" else asked
    if found is not None and len(found.mean) != source.image_shape[0]:
        raise FulaError(
            f"normalisation has {len(found.mean)} means, but the images have "
            f"{source.image_shape[0]} channels; give one number a channel"
        )
    return found


def _image_set(part: Any, end: Staged, which: str) -> ImageSet:
    """One set as the end takes it: gray images are replicated where it takes three channels."""
    if isinstance(part, ImageSet):
        return part
    if not (isinstance(part, Sequence) and len(part) == 2):
        raise FulaError(
            f"data has a {type(part).__name__} where a set of images belongs; "
            "give an ImageSet or (images, labels)"
        )
    images = image_array(part[0], f"array of {which} images")
    labels = label_array(part[1], len(images), f"array of {which} labels")
    if images.shape[3] == 1:
        images = with_channels(images, end.input_shape[0])
    names = tuple(map(str, range(max(end.num_classes, int(labels.max(initial=0)) + 1))))
    return ImageSet(images, labels, names)
