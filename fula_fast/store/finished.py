"""The finished cells of a run: which of its shards holds the row that counts, and those rows.

Of a shard only what tells its cells apart is kept in memory; its rows are read again when they are
wanted, but for those of the last few.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import FulaWarning
from ..files import sealed
from ..files.atomic import writing
from .shards import Shard, read_shard, rows_of, wave_of

Row = dict[str, Any]
_AT_HAND = 20_000
"""Rows that are kept in memory."""


class StoreWarning(FulaWarning):
    """A file of the run is damaged; what it held counts as missing and will be done again."""


def warn(error: Exception) -> None:
    """Say that a file is damaged."""
    warnings.warn(str(error), StoreWarning, stacklevel=4)


class FinishedCells:
    """The shards of the run `run` in `folder`; each damaged one is named once and left out."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self._shards: dict[Path, Shard] = {}  # shards never change: each is read once
        self._damaged: set[Path] = set()
        self._rows: OrderedDict[Path, list[Row]] = OrderedDict()
        self._held = 0  # rows in it
        self._counting: dict[str, tuple[Shard, int]] | None = None

    def paths(self, sub: str = "??") -> list[Path]:
        """The files of all shards, or of those in one sub-folder."""
        return [path for path in (self.folder / "cells").glob(f"{sub}/*.json") if wave_of(path)]

    def shards(self) -> list[Shard]:
        """All sound shards, oldest first."""
        for path in self.paths():
            if path not in self._shards and path not in self._damaged:
                with suppress(FileNotFoundError):  # set aside by another process
                    self._read(path)
        return sorted(self._shards.values(), key=lambda shard: (shard.written, shard.path.name))

    def counting(self) -> dict[str, tuple[Shard, int]]:
        """Where each cell's row stands: its first `ok` one, else its last `failed` one."""
        shards = self.shards()
        if self._counting is None:
            found: dict[str, tuple[Shard, int]] = {}
            for shard in shards:
                for place, (cell, _) in enumerate(zip(shard.cells, shard.ok, strict=True)):
                    known = found.get(cell)
                    if known is None or not known[0].ok[known[1]]:
                        found[cell] = shard, place
            self._counting = found
        return self._counting

    def done(self) -> set[str]:
        """The cells with an `ok` row."""
        return set[str]().union(*(shard.done for shard in self.shards()))

    def failed(self) -> set[str]:
        """The cells whose only rows are `failed`."""
        found = set[str]().union(*(shard.failed for shard in self.shards()))
        return found - self.done() if found else found

    def measured(self) -> dict[str, tuple[int, float]]:
        """Of each wave with `ok` rows, how many there are and the seconds that their training
        took; cells that were done twice count twice in both."""
        found: dict[str, tuple[int, float]] = {}
        for shard in self.shards():
            count, seconds = found.get(name := wave_of(shard.path) or "", (0, 0.0))
            found[name] = count + sum(shard.ok), seconds + shard.seconds
        return found

    def rows(self, cells: Container[str] | None = None) -> Iterator[list[Row]]:
        """The rows that count (of `cells` alone, where given), those of a shard together."""
        counting = self.counting()
        for shard in self.shards():
            places = [
                k for k, cell in enumerate(shard.cells)
                if (cells is None or cell in cells) and counting.get(cell) == (shard, k)
            ]  # fmt: skip
            if places:
                rows = self._rows_of(shard)
                yield [rows[k] for k in places]

    def every_row(self) -> Iterator[tuple[Shard, list[Row]]]:
        """Every shard with all its rows, those too that do not count; each is read once for it."""
        for path in self.paths():
            rows = None
            if path not in self._shards and path not in self._damaged:
                with suppress(FileNotFoundError):
                    rows = self._read(path)
            if path in self._shards:
                shard = self._shards[path]
                yield shard, self._rows_of(shard) if rows is None else rows_of(shard, rows)

    def drop(self, shard: Shard, error: Exception) -> None:
        """Its cells count as missing from now on."""
        del self._shards[shard.path]
        self._spoil(shard.path, error)

    def set_aside(self, wave_id: str) -> None:
        """Rename the damaged shards of a wave to `*.damaged`."""
        for path in [path for path in self._damaged if wave_of(path) == wave_id]:
            with writing(path), suppress(FileNotFoundError):
                path.rename(path.with_suffix(".json.damaged"))
            self._damaged.discard(path)

    def _read(self, path: Path) -> bytes | None:
        """Know a shard; its rows, None where it is damaged."""
        try:
            self._shards[path], rows = read_shard(path, self.run, self._stitches(path))
        except sealed.Damaged as error:
            self._spoil(path, error)
            return None
        self._counting = None
        return rows

    def _rows_of(self, shard: Shard) -> list[Row]:
        if shard.path not in self._rows:
            _, rows = read_shard(shard.path, self.run, self._stitches(shard.path))
            self._keep(shard.path, rows_of(shard, rows))
        return self._rows[shard.path]

    def _keep(self, path: Path, rows: list[Row]) -> None:
        self._rows[path] = rows
        self._held += len(rows)
        while len(self._rows) > 1 and self._held > _AT_HAND:
            self._held -= len(self._rows.popitem(last=False)[1])

    def _spoil(self, path: Path, error: Exception) -> None:
        self._counting = None
        self._held -= len(self._rows.pop(path, ()))
        self._damaged.add(path)
        warn(error)

    def _stitches(self, path: Path) -> Path:
        return self.folder / "stitches" / path.parent.name
