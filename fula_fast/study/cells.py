"""Cells as columns: a grid's cells without an object for each, until one is asked for.

A column holds a number per cell; `Words` says what the numbers of names and settings stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, overload

import numpy as np

from ..methods.staging import SUM, Stages
from .cell import Cell, course_json, course_of
from .donor_spec import ShortcutSpec
from .protocol import Protocol

Columns = Mapping[str, np.ndarray]
Rows = Callable[[int, int], Columns]
"""The columns of the cells from one position to another."""

CODES = (
    "front", "end", "front_site", "end_site", "treatment", "alpha", "shortcut", "subset",
    "position",
)  # fmt: skip
SEEDS = ("seed", "data_seed")
COLUMNS = dict.fromkeys(CODES, "int32") | dict.fromkeys(SEEDS, "int64") | {"id": "S16"}
"""Names and types of all columns. `position`: in the plan."""

_AT_ONCE = 4096
"""Cells that are made from columns together."""


@dataclass(frozen=True)
class Treatment:
    """How a stitch is found: a method's name, its weights at the sites, and the protocol; stages
    and combination as of a `Cell`."""

    method: str
    objective: Mapping[str, float]
    protocol: Protocol
    stages: Stages = ()
    combine: str = SUM


@dataclass(frozen=True)
class Words:
    """What the numbers in columns stand for: positions in these."""

    donors: tuple[str, ...] = ()
    treatments: tuple[Treatment, ...] = ()
    alpha: tuple[float, ...] = ()
    shortcut: tuple[ShortcutSpec | None, ...] = ()
    subset: tuple[int | None, ...] = ()


@dataclass(frozen=True, eq=False)
class Held:
    """Columns in memory, as rows."""

    columns: Columns

    def __call__(self, start: int, stop: int) -> Columns:
        return {name: column[start:stop] for name, column in self.columns.items()}


@dataclass(frozen=True, eq=False, slots=True)
class Cells(Sequence[Cell]):
    """The cells from `start` to `stop` of those that `rows` gives; each is made when asked for."""

    words: Words
    rows: Rows
    start: int
    stop: int

    @classmethod
    def of(cls, words: Words, columns: Columns) -> Cells:
        """All cells of some columns."""
        return cls(words, Held(columns), 0, len(columns["id"]))

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, place: int) -> Cell: ...

    @overload
    def __getitem__(self, place: slice) -> Cells: ...

    def __getitem__(self, place: Any) -> Any:
        found = range(self.start, self.stop)[place]
        if isinstance(found, int):
            (cell,) = Cells(self.words, self.rows, found, found + 1)
            return cell
        if found.step != 1:
            return self.take(np.arange(len(self))[place])
        return Cells(self.words, self.rows, found.start, max(found.stop, found.start))

    def __iter__(self) -> Iterator[Cell]:
        for start in range(self.start, self.stop, _AT_ONCE):
            columns = self.rows(start, min(start + _AT_ONCE, self.stop))
            yield from _made(self.words, columns)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Sequence) and len(self) == len(other)
        return same and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def columns(self) -> Columns:
        """The columns of these cells."""
        return self.rows(self.start, self.stop)

    def take(self, places: np.ndarray) -> Cells:
        """The cells at places (n,), in their order."""
        return Cells.of(self.words, {name: c[places] for name, c in self.columns.items()})

    @property
    def ids(self) -> list[str]:
        """The cells' ids."""
        text = self.columns["id"].tobytes().decode("ascii")
        return [text[k : k + 16] for k in range(0, len(text), 16)]

    def named(self, cell_id: str) -> Cell:
        """The cell of an id; `KeyError` without one."""
        (found,) = np.nonzero(self.columns["id"] == cell_id.encode())
        if not found.size:
            raise KeyError(cell_id)
        return self[int(found[0])]

    def treatments(self) -> list[Treatment]:
        """The treatments of these cells, each once."""
        return [self.words.treatments[t] for t in np.unique(self.columns["treatment"])]


NO_CELLS = Cells.of(Words(), {name: np.empty(0, kind) for name, kind in COLUMNS.items()})


def _made(words: Words, columns: Columns) -> Iterator[Cell]:
    names = [name for name in COLUMNS if name != "position"]
    for front, end, i, j, how, alpha, shortcut, subset, seed, data_seed, name in zip(
        *(columns[name].tolist() for name in names), strict=True
    ):
        treatment = words.treatments[how]
        yield Cell(
            words.donors[front], words.donors[end], i, j,
            treatment.method, treatment.objective, treatment.protocol,
            words.alpha[alpha], words.shortcut[shortcut], words.subset[subset],
            seed, data_seed, name.decode(), treatment.stages, treatment.combine,
        )  # fmt: skip


def ids_of(digests: np.ndarray) -> np.ndarray:
    """Ids (S16) of digests (uint64), as hex digits."""
    return np.frombuffer(digests.astype(">u8").tobytes().hex().encode(), "S16")


def combined(*columns: np.ndarray) -> np.ndarray:
    """A number below their count for every distinct combination of the columns' values."""
    code = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, number = np.unique(column, return_inverse=True)
        if len(values) > 1:
            _, code = np.unique(code * len(values) + number, return_inverse=True)
    return code


def words_json(words: Words) -> dict[str, Any]:
    """Plain values; each protocol is listed once and treatments refer to it by position."""
    protocols: dict[Protocol, int] = {}
    treatments = [
        [
            how.method, dict(how.objective), protocols.setdefault(how.protocol, len(protocols)),
            *course_json(how.stages, how.combine),
        ]
        for how in words.treatments
    ]  # fmt: skip
    return {
        "donors": list(words.donors),
        "protocols": [each.model_dump(mode="json") for each in protocols],
        "treatments": treatments,
        "alpha": list(words.alpha),
        "shortcut": [mark and mark.model_dump() for mark in words.shortcut],
        "subset": list(words.subset),
    }


def words_of(values: Mapping[str, Any]) -> Words:
    """The inverse of `words_json`."""
    protocols = [Protocol.model_validate(each) for each in values["protocols"]]
    return Words(
        tuple(values["donors"]),
        tuple(
            Treatment(name, weights, protocols[k], *course_of(more))
            for name, weights, k, *more in values["treatments"]
        ),
        tuple(values["alpha"]),
        tuple(mark and ShortcutSpec(**mark) for mark in values["shortcut"]),
        tuple(values["subset"]),
    )
