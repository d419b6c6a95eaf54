"""`fula-fast spec`: every key of a spec in words; `fula-fast guide`: the guide, offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import command

if TYPE_CHECKING:
    from ..study.spec_keys import SpecKey


@command("spec")
def spec(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="A key or a table: lr, protocol.lr, grid; all without."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, one list.")] = False,
) -> None:
    """Print what a spec may hold: each key's type, default, range and meaning."""
    from ..study.spec_keys import find, tables

    found = find(key) if key else tuple(k for some in tables().values() for k in some)
    if as_json:
        print(json.dumps([each.to_json() for each in found], ensure_ascii=False, indent=1))
    else:
        print("\n\n".join(map(_paragraph, found)))


def _paragraph(key: SpecKey) -> str:
    """A key with its words below it."""
    words = key.to_json()
    rest = [f"  {name:<8} {words[name]}" for name in list(words)[1:]]
    return "\n".join((words["key"], *rest))


@command("guide")
def guide(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pages; a cache folder when not given.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the pages in a browser.")
    ] = True,
) -> None:
    """Write the guide's pages for this version, and open them offline in a browser."""
    import webbrowser

    from ..guide.make import build

    site = build(_folder(out))
    print(site)
    if show and not webbrowser.open(site.resolve().as_uri()):
        print("no browser was found; open that file in one", file=sys.stderr)


def _folder(out: Path | None) -> Path:
    from .. import __version__
    from ..files.paths import user_path
    from ..pipelines.decode.cache import cache_folder

    return user_path(out) if out else cache_folder() / f"guide-{__version__}"
