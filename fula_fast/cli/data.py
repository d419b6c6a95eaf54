"""`fula-fast data`: look at the sources of images: list, show, prepare, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import FAILED, command, command_group

if TYPE_CHECKING:
    from rich.table import Table

    from ..pipelines.tools import SplitReport, Verification
    from ..study.donor_spec import DataSpec, OneShortcut

group = command_group("data", "Look at the sources of images: list, show, prepare, verify.")

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A source's name; `fula-fast data list` shows all.")
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder of the data; else FULA_DATA, else ./data.")
]
SizeOption = Annotated[
    int | None, typer.Option(min=1, help="Side of the images in pixels; the source's own if unset.")
]
ChannelsOption = Annotated[int | None, typer.Option(min=1, max=3, help="1 or 3.")]
OptionOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Of the source: --option variant=bw"),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Download what is not there, where the source can.")
]


@command("list", group=group)
def list_(data_dir: DataDirOption = None) -> None:
    """Every source: what it is, where it is looked for, and whether it is there."""
    from rich.table import Table

    from ..pipelines.sources.by_name import data_folder
    from ..pipelines.tools import list_sources

    table = Table(title=f"Sources, in '{data_folder(data_dir)}'", title_justify="left")
    for name in ("source", "what it is", "looked for", "found", "options"):
        table.add_column(name, overflow="fold")
    for info in list_sources(data_dir):
        place = info.place
        found = "yes" if not place.needs_files else place.found.name if place.found else "no"
        table.add_row(info.name, info.summary, place.looked_for, found, ", ".join(info.options))
    _print(table)


@command("show", group=group)
def show(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help="The picture to write: grid.png.")],
    data_dir: DataDirOption = None,
    split: Annotated[str, typer.Option(metavar="train|test", help="Which images.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 12,
    classes: Annotated[int, typer.Option(min=1, help="Only the first so many classes.")] = 20,
    shortcut: Annotated[
        str, typer.Option(metavar="PATTERN+LOCATION", help="Marker: pixel+class, aruco+random, …")
    ] = "none",
    marker_set: Annotated[
        str, typer.Option(metavar="shortcut|clean|rolled", help="Markers of the test images.")
    ] = "shortcut",
    crop_padding: Annotated[int, typer.Option(min=0, help="Of training images, in pixels.")] = 4,
    flip: Annotated[bool, typer.Option(help="Flip training images at random.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of images, crops, flips and markers.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: OptionOption = None,
    download: DownloadOption = False,
) -> None:
    """Draw a labelled sheet of a source's images as a network sees them: cropped and marked."""
    from ..pipelines.sheet import check_picture
    from ..study.donor_spec import DataSpec

    check_picture(out)
    marker = _marker(shortcut)
    table = _table(DataSpec, source, data_dir, size, channels, option, download)
    from ..donors.obtain import open_source
    from ..pipelines import Augmentation, Shortcut
    from ..pipelines.tools import show_grid

    written = show_grid(
        open_source(table), out, split=split, columns=count, classes=classes,
        augmentation=Augmentation(crop_padding, flip), marker_set=marker_set,
        shortcut=marker and Shortcut(**marker.model_dump()), seed=seed, epoch=epoch,
    )  # fmt: skip
    print(written)


@command("prepare", group=group)
def prepare(
    source: SourceArgument,
    data_dir: DataDirOption = None,
    imagenet: Annotated[
        Path | None,
        typer.Option(help="For ls-imagenet-10: ImageNet's folder, with train/ and val/."),
    ] = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: OptionOption = None,
) -> None:
    """Build ls-imagenet-10, or fetch a source that can be downloaded and decode it into
    the cache."""
    from ..study.donor_spec import DataSpec

    table = _table(DataSpec, source, data_dir, size, channels, option)
    from ..pipelines import tools

    print(tools.prepare(table.source, imagenet=imagenet, **_arguments(table)))


@command("verify", group=group)
def verify(
    source: SourceArgument,
    data_dir: DataDirOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: OptionOption = None,
) -> int:
    """Read a source whole: checksums, counts, class balance, repeats, unreadable images
    (exit 1)."""
    from ..study.donor_spec import DataSpec

    table = _table(DataSpec, source, data_dir, size, channels, option)
    from ..pipelines import tools

    found = tools.verify(table.source, **_arguments(table))
    _print(_counts(found))
    print(f"images {found.image_shape} (C, H, W); content {found.content_hash}")
    print(f"checked files: {', '.join(found.checked_files) or 'none (no SHA256SUMS beside them)'}")
    if found.shared:
        print(f"{found.shared} test images are training images too")
    broken = (*found.train.skipped, *found.test.skipped)
    for name in broken:
        print(f"unreadable: {name}")
    return FAILED if broken else 0


def _table(
    kind: type[DataSpec], source: str, data_dir: Path | None, size: int | None,
    channels: int | None, option: list[str] | None, download: bool = False,
) -> DataSpec:  # fmt: skip
    """The options of a source, checked as a spec's `[data]` table is."""
    from ..pipelines.sources.by_name import loader
    from ..study.spec import parse_table
    from ..study.toml import apply_overrides

    loader(source)
    folder = None if data_dir is None else str(data_dir)
    values = {"source": source, "data_dir": folder, "size": size, "channels": channels}
    given = {name: value for name, value in values.items() if value is not None}
    options = apply_overrides({}, option or ())
    return parse_table(kind, given | {"options": options, "download": download}, "data")


def _arguments(table: DataSpec) -> dict[str, Any]:
    """What `load_source` takes beside the name, as far as it was given."""
    named = {"data_dir", "size", "channels"}
    return table.model_dump(include=named, exclude_unset=True) | table.options


def _marker(text: str) -> OneShortcut:
    from ..study.donor_spec import Marked
    from ..study.spec import parse_table
    from ..study.toml import apply_overrides

    return parse_table(Marked, apply_overrides({}, [f"shortcut={text}"]), "").shortcut


def _counts(found: Verification) -> Table:
    """Images by class and split; a difference between classes shows in the last row."""
    from rich.table import Table

    table = Table(title=found.source, title_justify="left")
    table.add_column("class")
    splits: tuple[SplitReport, ...] = (found.train, found.test)
    for name in ("training", "test"):
        table.add_column(name, justify="right")
    for name in found.train.counts:
        table.add_row(name, *(str(s.counts[name]) for s in splits))
    table.add_section()
    table.add_row("all", *(str(s.images) for s in splits))
    table.add_row("smallest/largest class", *(f"{s.balance:.3f}" for s in splits))
    table.add_row("seen more than once", *(str(s.repeated) for s in splits))
    table.add_row("unreadable", *(str(len(s.skipped)) for s in splits))
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(table)
