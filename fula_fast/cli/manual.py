"""`fula-fast spec`: every key of a spec in words."""

from __future__ import annotations

import json
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
