"""Sources made from others: colour MNIST, LS-ImageNet-10, spectrograms, stylised images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FulaError
from ...files.paths import user_path
from ..decode.files import decoded, refuse_reading
from ..decode.folders import index_splits, splits_of
from ..decode.images import ImageSet, Source, resized
from ..decode.trees import open_tree
from .by_name import load_source
from .published import class_folders, from_folders, mnist


def colour_mnist(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    variant: str = "correlated",
    seed: int = 0,
) -> Source:
    """Colour MNIST: correlated, digit, colour, colour-only, bw or mix (Smith et al. 2025).

    Raises `FulaError` for other than 3 channels.
    """
    from . import colour

    chosen = colour.variant(variant)
    if channels != 3:
        raise FulaError(f"colour-mnist has 3 channels, not {channels}; leave channels out")
    plain = mnist(folder, None, 1, download)
    sets = [
        colour.colour_set(images, variant, seed, split)
        for split, images in enumerate((plain.train, plain.test))
    ]
    return Source(
        f"colour-mnist/{variant}", *(_at(size, s) for s in sets), normalisation=chosen.normalisation
    )


def _at(size: int | None, images: ImageSet) -> ImageSet:
    if size is None:
        return images
    return ImageSet(resized(images.images, size), images.labels, images.classes)


def ls_imagenet_10(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    on_error: str = "raise",
    decoder: str = "auto",
    cached: bool = True,
) -> Source:
    """Ten ImageNet classes at 32x32, made by `fula-fast data prepare ls-imagenet-10`."""
    tree = class_folders("ls-imagenet-10", folder, "ls-imagenet-10")
    settings = {"on_error": on_error, "decoder": decoder}
    return from_folders("ls-imagenet-10", tree, size, channels, cached=cached, **settings)


def audiofolder(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    path: str | None = None,
    rate: int = 8000,
    duration: float = 1.0,
    test_below: int = 5,
    on_error: str = "raise",
) -> Source:
    """Wav files as log-mel spectrogram images (default 64x64).

    Class folders under train/ and test/ or val/, or flat `<class>_..._<number>.wav` files whose
    numbers under `test_below` are the test split. `rate` Hz and `duration` seconds fit every clip.
    Raises `FulaError` for a rate or duration out of range.
    """
    from .audio import WAV, SpectrogramDecoder, index_flat

    if rate < 1000 or not 0 < duration <= 60:
        raise FulaError(
            f"audiofolder: rate {rate}, duration {duration}; give a rate of at least 1000 Hz and a "
            "duration of 0 ... 60 s"
        )
    tree = open_tree(user_path(path) if path else folder)
    indices = index_splits(tree, None, WAV) if splits_of(tree) else index_flat(tree, test_below)
    reader = SpectrogramDecoder(rate, duration)
    side = 64 if size is None else size
    return Source(
        "audiofolder", *(decoded(index, side, channels, on_error, reader) for index in indices)
    )


def stylized(
    folder: Path,
    size: int | None,
    channels: int,
    download: bool,
    *,
    path: str | None = None,
    base: str | None = None,
    base_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_error: str = "raise",
    decoder: str = "auto",
    cached: bool = True,
) -> Source:
    """Stylised images: a folder at `path`, or the source `base` with its textures exchanged.

    `base_options` are those of the source `base`; `on_error`, `decoder` and `cached` are about the
    folder, as in `imagefolder`. Raises `FulaError` for both or neither, and for a base that stays
    files.
    """
    if (path is None) == (base is None):
        raise FulaError(
            "stylized takes either path (a folder of stylised images) or base (a source whose "
            "textures are exchanged); give one of the two"
        )
    reading = {"on_error": on_error, "decoder": decoder}
    if path:
        if base_options:
            raise FulaError(
                "stylized: base_options are those of a base, not of path; leave them out"
            )
        return from_folders(
            "stylized",
            class_folders("stylized", user_path(path)),
            size,
            channels,
            None,
            cached,
            **reading,
        )
    refuse_reading(
        "stylized: on_error, decoder and cached are about path; give those of base in base_options",
        **reading,
        cached=cached,
    )
    from .stylized import scrambled

    options = {"data_dir": folder, "size": size, "channels": channels, "download": download}
    plain = load_source(base, **options, **_checked_options(base_options))
    for images in (plain.train, plain.test):
        if not isinstance(images, ImageSet):
            raise FulaError(
                f"stylized needs decoded images, those of '{plain.name}' are not; give another "
                "base, or leave cached = false out"
            )
    sets = (scrambled(images, seed) for images in (plain.train, plain.test))
    return Source(f"stylized/{plain.name}", *sets, normalisation=plain.normalisation)


def _checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a base source; what the outer source gives cannot be among them."""
    given = dict(options or {})
    for name in ("data_dir", "size", "channels", "download"):
        if name in given:
            raise FulaError(f"base_options has {name}, which stylized has itself; give it there")
    return given
