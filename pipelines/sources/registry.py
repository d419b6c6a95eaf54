"""Named sources: a record each, from which loading, options, help, places and tables derive.

A package of one's own adds one with `register`; those that ship are in `catalogue`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import FulaError, nearest

if TYPE_CHECKING:
    from ..decode.images import Source

Finder = Callable[[Path], Path | None]


class Nominal(NamedTuple):
    """What planning needs of a data set that need not be read for it."""

    side: int
    classes: int
    train_images: int
    test_images: int


@dataclass(frozen=True)
class NamedSource:
    """A source of images by name.

    `load`: (folder, size, channels, download, *, options) -> `Source`, or "module:function". Its
    keyword-only arguments are the source's options, the first paragraph of its docstring says
    what it is. `looked_for`: where its files are, in words. `find`: that place in a data folder,
    None where they are not; without a finder the source needs no files. `nominal`: known without
    reading. `at_path`: whether an option `path` may name the files.
    """

    name: str
    load: str | Callable[..., Source]
    looked_for: str
    find: Finder | None = None
    nominal: Nominal | None = None
    at_path: bool = False

    def loader(self) -> Callable[..., Source]:
        """`load` as a function."""
        if not isinstance(self.load, str):
            return self.load
        module, _, function = self.load.partition(":")
        return getattr(import_module(module), function)

    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        return dict(self.loader().__kwdefaults__ or {})


_SOURCES: dict[str, NamedSource] = {}


def register(source: NamedSource) -> NamedSource:
    """Add a source under its name. Raises `FulaError` where another has it."""
    if _SOURCES.get(source.name, source) != source:
        raise FulaError(f"source '{source.name}' is there already; choose another name")
    _SOURCES[source.name] = source
    return source


def sources() -> tuple[NamedSource, ...]:
    """Every registered source, in the order of registration."""
    _ship()
    return tuple(_SOURCES.values())


def source_names() -> tuple[str, ...]:
    """All names that `load_source` knows."""
    return tuple(source.name for source in sources())


def named_source(name: str) -> NamedSource:
    """The source of that name. Raises `FulaError` with the nearest valid one."""
    found = record_of(name)
    if found is None:
        raise FulaError(f"unknown source '{name}'{nearest(name, _SOURCES)}")
    return found


def record_of(name: str) -> NamedSource | None:
    """The source of that name; None where there is none, as for data given from Python."""
    _ship()
    return _SOURCES.get(name)


def _ship() -> None:
    import_module(f"{__package__}.catalogue")
