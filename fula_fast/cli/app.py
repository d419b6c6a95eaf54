"""What every command of `fula-fast` is made with: the application, errors as one line, exit codes.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import FulaError, FulaWarning

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


class _LightHelp:
    """Newer typer validates an absent --help with pydantic; a plain default spares its import."""

    def get_help_option(self, ctx: typer.Context) -> Any:
        option = super().get_help_option(ctx)
        if option is not None and option.default is None:
            option.default = False
        return option


class _Command(_LightHelp, TyperCommand):
    pass


class _Group(_LightHelp, TyperGroup):
    pass


app = typer.Typer(
    name="fula-fast",
    cls=_Group,
    help="Model stitching: how functionally similar are these networks, layer by layer?",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def command(
    name: str, resume: str = "", group: typer.Typer = app
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command whose mistakes are one line on standard error, never a traceback.

    `resume`: how to go on after Ctrl-C. `group`: the application, or a group of its commands.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @group.command(name, cls=_Command)
        @functools.wraps(function)
        def guarded(**arguments: Any) -> None:
            try:
                with _plain_warnings():
                    _load_extensions()
                    code = function(**arguments)
            except FulaError as error:
                _complain(f"error: {error}")
                code = BAD_INPUT
            except KeyboardInterrupt:
                _complain(f"interrupted{'; ' if resume else ''}{resume}")
                code = INTERRUPTED
            raise typer.Exit(code or 0)

        return guarded

    return register


def command_group(name: str, help: str) -> typer.Typer:
    """A group of commands within the application: `fula-fast NAME COMMAND`."""
    group = typer.Typer(name=name, cls=_Group, help=help, no_args_is_help=True)
    app.add_typer(group)
    return group


def _load_extensions() -> None:
    """Import what installed packages add (methods, measures, attacks): their entry points in the
    group `fula_fast`, modules that register at import."""
    for entry in entry_points(group="fula_fast"):
        entry.load()


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """The project's own warnings as one line each, without the place in the code."""

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, FulaWarning):
            _complain(f"warning: {message}")
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        yield


def _complain(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fula-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A spec file (.toml), or a shipped recipe's name.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set protocol.epochs=5"),
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")
]
