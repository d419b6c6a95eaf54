"""What `fula-fast data` does: list the sources, verify one, prepare one, show one."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FulaError
from ..files.paths import user_path
from .decode.files import NoFiles
from .decode.images import Source
from .sources.by_name import data_folder, load_source, loader
from .sources.places import Place, place_of
from .sources.registry import sources

CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class SourceInfo:
    """A source's name, what it is, its options with their defaults, and where its files are."""

    name: str
    summary: str
    options: Mapping[str, Any]
    place: Place


def list_sources(data_dir: str | Path | None = None) -> tuple[SourceInfo, ...]:
    """Every source `load_source` knows."""
    found = []
    for each in sources():
        summary = " ".join((inspect.getdoc(each.loader()) or "").partition("\n\n")[0].split())
        place = place_of(each.name, data_dir)
        found.append(SourceInfo(each.name, summary, each.options(), place))
    return tuple(found)


@dataclass(frozen=True)
class SplitReport:
    """One split: images by class name, unreadable files left out, images seen more than once."""

    counts: Mapping[str, int]
    skipped: tuple[str, ...]
    repeated: int

    @property
    def images(self) -> int:
        return sum(self.counts.values())

    @property
    def balance(self) -> float:
        """The smallest class over the largest: 1 is balanced."""
        return min(self.counts.values()) / max(1, *self.counts.values())


@dataclass(frozen=True)
class Verification:
    """What `verify` found: shape (C, H, W), both splits, content hash, and checked files."""

    source: str
    image_shape: tuple[int, ...]
    train: SplitReport
    test: SplitReport
    shared: int
    content_hash: str
    checked_files: tuple[str, ...]


def verify(name: str, **options: Any) -> Verification:
    """Load a source whole and report counts, class balance and repeated images.

    `options` are those of `load_source`; where the source can, unreadable images are left out and
    named. Files listed in a `SHA256SUMS` beside the data are checked: `FulaError` names one whose
    content is not the listed one. `shared` counts test images that are training images too.
    """
    checked = _check_sums(data_folder(options.get("path") or options.get("data_dir")))
    source = _with_the_readable(name, options)
    digests = [_image_digests(images) for images in (source.train, source.test)]
    train, test = (
        _split_report(images, found)
        for images, found in zip((source.train, source.test), digests, strict=True)
    )
    shared = len(set(digests[1]) & set(digests[0]))
    return Verification(
        source.name, source.image_shape, train, test, shared, source.content_hash, checked
    )


def _with_the_readable(name: str, options: Mapping[str, Any]) -> Source:
    """The source without unreadable images, unless told otherwise, where it is made of files."""
    if "on_error" in (loader(name).__kwdefaults__ or {}) and "on_error" not in options:
        with suppress(NoFiles):
            return load_source(name, on_error="skip", **options)
    return load_source(name, **options)


def _split_report(images, digests: list[bytes]) -> SplitReport:
    counts = np.bincount(images.labels, minlength=images.num_classes).tolist()
    skipped = getattr(images, "skipped", ())
    by_class = dict(zip(images.classes, counts, strict=True))
    return SplitReport(by_class, skipped, len(digests) - len(set(digests)))


def _image_digests(images) -> list[bytes]:
    if not hasattr(images, "gather"):
        return []  # made-up samples
    digests = []
    for start in range(0, len(images), 1024):
        part = images.gather(np.arange(start, min(start + 1024, len(images))))
        digests += [hashlib.blake2b(np.ascontiguousarray(x), digest_size=16).digest() for x in part]
    return digests


def _check_sums(place: Path) -> tuple[str, ...]:
    """Names of the files that a `SHA256SUMS` beside the data lists and that are there, checked."""
    folder = place if place.is_dir() else place.parent
    listing = folder / CHECKSUMS
    if not listing.is_file():
        return ()
    checked = []
    for line in listing.read_text().splitlines():
        expected, _, name = line.partition(" ")
        file = folder / name.lstrip(" *")
        if not expected or not file.is_file() or (place.is_file() and file != place):
            continue
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise FulaError(
                f"file '{file}' has SHA-256 {found[:12]}…, {CHECKSUMS} lists {expected[:12]}…; "
                "fetch it again"
            )
        checked.append(file.name)
    return tuple(checked)


def prepare(
    name: str, *, data_dir: str | Path | None = None, imagenet: str | Path | None = None, **options
) -> str:
    """Make a source ready to use and say what was done.

    `ls-imagenet-10` is built from the ImageNet folder `imagenet` into `data_dir/ls-imagenet-10`
    (its one option here: `on_error`); every other source is downloaded if it can be and is not
    there, and decoded into the cache. Raises `FulaError` where `imagenet` is given for another
    source.
    """
    if name == "ls-imagenet-10":
        return _prepare_imagenet(data_folder(data_dir), imagenet, options)
    if imagenet is not None:
        raise FulaError(f"'{name}' is not built from ImageNet; leave imagenet out")
    try:
        source = load_source(name, data_dir=data_dir, **options)
    except FulaError as error:
        if "download = true" not in str(error):
            raise
        source = load_source(name, data_dir=data_dir, download=True, **options)
    counts = f"{len(source.train)} training and {len(source.test)} test images"
    skipped = [name for s in (source.train, source.test) for name in getattr(s, "skipped", ())]
    return f"{source.name}: {counts}, {source.image_shape} (C, H, W){_left_out(skipped)}"


def _left_out(skipped: Sequence[str]) -> str:
    """The end of a report: how many unreadable images there were."""
    if not skipped:
        return ""
    return f"; {len(skipped)} unreadable images left out, first '{skipped[0]}'"


def _prepare_imagenet(folder: Path, imagenet: str | Path | None, options: Mapping[str, Any]) -> str:
    from .sources.imagenet import prepare_ls_imagenet_10

    if imagenet is None:
        raise FulaError(
            "ls-imagenet-10 is built from ImageNet; give its folder as imagenet (--imagenet)"
        )
    other = sorted(set(options) - {"on_error"})
    if other:
        raise FulaError(
            f"ls-imagenet-10 is always made at 32x32 in colour; leave {other[0]} out here"
        )
    out = folder / "ls-imagenet-10"
    made = prepare_ls_imagenet_10(imagenet, out, **options)
    return f"ls-imagenet-10: {made.images} images in {out}{_left_out(made.skipped)}"


def show_grid(source: Source, out: str | Path, **options: Any) -> Path:
    """Draw a labelled contact sheet of `source`; options: `sheet.contact_sheet`."""
    from .sheet import contact_sheet

    return contact_sheet(source, user_path(out), **options)
