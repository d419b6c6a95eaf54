"""A training stream by the name of its backend: `open_stream`."""

from __future__ import annotations

import torch

from ...errors import FulaError, nearest
from ..decode.files import FileSet
from ..decode.images import ImageSet
from ..draws.frame import Frame, Normalisation
from ..draws.randomness import Augmentation
from ..draws.shortcuts import Shortcut
from .base import ReferenceStream, Stream, StreamBase
from .noise import NoiseStream
from .resident import ResidentStream

BACKENDS = ("reference", "resident", "dali")


def open_stream(
    image_set: ImageSet | FileSet,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    backend: str = "resident",
    shortcut: Shortcut | None = None,
    normalisation: Normalisation | None = None,
    frame: Frame | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Stream:
    """A training stream over `image_set` by the named backend; all give the same batches.

    Raises `FulaError` for an unknown backend, a batch larger than the data, and for
    `dali` where it is not installed.
    """
    if not 1 <= batch_size <= len(image_set):
        raise FulaError(
            f"batch size {batch_size} must lie in 1 … {len(image_set)}, the number of images"
        )
    return backend_class(backend, image_set)(
        image_set,
        batch_size,
        seed,
        augmentation,
        shortcut=shortcut,
        normalisation=normalisation,
        frame=frame,
        device=device,
        dtype=dtype,
    )


def backend_class(name: str, image_set: ImageSet | FileSet) -> type[StreamBase]:
    """The stream class of the named backend; made-up samples have the same one for all.

    Raises `FulaError` for another name.
    """
    if name not in BACKENDS:
        raise FulaError(f"unknown stream '{name}'{nearest(name, BACKENDS)}")
    if not isinstance(image_set, ImageSet | FileSet):
        return NoiseStream
    if name == "dali":
        from .dali_stream import DaliStream

        return DaliStream
    return ReferenceStream if name == "reference" else ResidentStream
