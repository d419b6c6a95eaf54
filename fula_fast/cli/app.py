"""What every command of `fula-fast` is made with: the application, errors as one line, exit codes.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__, stops
from ..errors import FulaError, FulaWarning

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SCARCE = (
    "can't allocate memory", "can't start new thread", "Cannot allocate memory",
    "failed to map segment",
)  # fmt: skip
"""In the messages of a `RuntimeError`, or of an `ImportError` of a library, where the machine has
no more to give."""


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
            with _plain_warnings(), _stoppable():
                code = _guarded(lambda: _extended(function, arguments), resume)
            raise typer.Exit(code or 0)

        return guarded

    return register


def _extended(function: Callable[..., int | None], arguments: dict[str, Any]) -> int | None:
    """The command, with the extensions that are installed."""
    _load_extensions()
    return function(**arguments)


def _guarded(work: Callable[[], int | None], resume: str) -> int | None:
    """The exit code of `work`; what went wrong is told in one line."""
    try:
        code = _asked_first(work)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except FulaError as error:
        _complain(f"error: {error}")
    except _Stopped as stopped:
        _complain(f"{stopped}{'; ' if resume else ''}{resume}")
        return 128 + stopped.number
    except KeyboardInterrupt:
        _complain(f"interrupted{'; ' if resume else ''}{resume}")
        return INTERRUPTED
    except UnicodeEncodeError as error:
        _complain(
            f"error: {error.object[:100]!r} cannot be written in the system's encoding "
            f"'{error.encoding}'; set PYTHONUTF8=1, or use other names"
        )
    except (OSError, MemoryError) as error:
        _complain(f"error: the machine refused ({_told(error)}); free what it lacks, and try again")
        if isinstance(error, OSError):
            _let_go_of_output()
    except (RuntimeError, ImportError) as error:
        if not any(text in str(error) for text in _SCARCE):
            raise
        _complain(f"error: the machine refused ({_told(error)}); free memory, or raise the limit")
    return BAD_INPUT


def _asked_first(work: Callable[[], int | None]) -> int | None:
    """`work`, whose failure after it was asked to stop is that it stopped."""
    try:
        return work()
    except Exception:
        stops.check()
        raise


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": '{error.filename}'" if error.filename else "")
    return str(error).split("\n")[0][:200] or type(error).__name__


def _let_go_of_output() -> None:
    """Where nothing can be printed any more, Python's own last flush must not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Stopped(KeyboardInterrupt):
    """The system asks the process to end: as Ctrl-C, but for the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does; one that is ignored (nohup) stays so."""

    def stop(number: int, frame: Any) -> None:
        stops.ask(KeyboardInterrupt() if number == signal.SIGINT else _Stopped(number))

    usual = dict.fromkeys(_STOPS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    heard = {n: found for n, found in usual.items() if signal.getsignal(n) == found}
    for number in heard:
        signal.signal(number, stop)
    try:
        with stops.heard():
            yield
    finally:
        for number, found in heard.items():
            signal.signal(number, found)


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
    with suppress(OSError, ValueError):  # closed: the exit code says it
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
ParentOption = Annotated[int | None, typer.Option(metavar="PID", help="End when this process has.")]
EngineOption = Annotated[
    str | None, typer.Option(metavar="local|slurm|ray", help="What runs the waves.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="At once; one for each GPU when not given.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Only the cells that failed, once more.")
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")
]
