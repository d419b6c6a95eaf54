"""A shard: the rows of one write, in one JSON file that is never changed afterwards.

Which cells it holds stands before the rows, which are verified with it but parsed when they are
wanted: a run of a million cells tells in seconds what is done. What all rows say stands there once.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator
from typing_extensions import TypedDict

from ..errors import FulaError, not_none
from ..files import sealed
from ..files.sealed import SHARD

STATUSES = ("ok", "failed")
_NAME = re.compile(r"(?P<wave>.+)-(?P<order>\d{4,})-[0-9a-f]{12}\.json")


def _moment(text: str) -> str:
    datetime.fromisoformat(text)  # raises ValueError
    return text


Moment = Annotated[str, AfterValidator(_moment)]
"""A time: ISO 8601."""


class _Stitches(TypedDict):
    file: str
    bytes: int
    digest: str


class _Content(TypedDict):
    run: str
    wave: str
    written: Moment
    cells: list[str]
    ok: list[bool]
    donors: list[tuple[str, str]]
    seconds: float
    stitches: _Stitches | None
    rows: str


@dataclass(frozen=True, eq=False)
class Shard:
    """One shard as read, without its rows: their cells and whether each is `ok`, the content hashes
    of the donors of those (name, hash), the seconds of their training, and the file of their
    stitches with its digest (`None`, "": no stitches)."""

    path: Path
    written: str
    cells: tuple[str, ...]
    ok: tuple[bool, ...]
    donors: frozenset[tuple[str, str]]
    seconds: float
    stitches: Path | None
    digest: str

    @property
    def done(self) -> Sequence[str]:
        """The cells that are `ok`."""
        return self.cells if all(self.ok) else list(compress(self.cells, self.ok))

    @property
    def failed(self) -> Sequence[str]:
        """The others."""
        return (
            () if all(self.ok) else [c for c, ok in zip(self.cells, self.ok, strict=True) if not ok]
        )


def folder_of(wave_id: str) -> str:
    """The hashed sub-folder (two hex digits) of a wave's files."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", wave_id):
        raise ValueError(f"wave id {wave_id!r} cannot be a file name")
    return hashlib.sha256(wave_id.encode()).hexdigest()[:2]


def check_there(run: Path) -> None:
    """Refuse (`FulaError`) to make a folder anew that was moved or deleted during its run."""
    if not (run / "spec.json").is_file():
        raise FulaError(
            f"'{run}' is no longer the folder of this run: it was moved, deleted or emptied "
            "meanwhile; move it back and go on with --resume"
        )


def wave_of(path: Path) -> str | None:
    """The wave that a shard's file name tells, or `None` for a foreign file."""
    match = _NAME.fullmatch(path.name)
    return match["wave"] if match else None


def next_stem(taken: Iterable[Path], wave_id: str, rows: list[dict[str, Any]]) -> str:
    """Name of the wave's next shard; the digest keeps apart two processes that count alike."""
    names = (_NAME.fullmatch(path.name) for path in taken if wave_of(path) == wave_id)
    orders = [int(not_none(name)["order"]) for name in names]
    return f"{wave_id}-{max(orders, default=-1) + 1:04d}-{sealed.digest_of(rows)[:12]}"


def clean_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as JSON values: 0-d tensors and NumPy scalars unwrapped, NaN and infinity as null."""
    return [{name: _json_value(value) for name, value in row.items()} for row in rows]


def write_shard(
    path: Path,
    run: str,
    wave_id: str,
    rows: list[dict[str, Any]],
    stitches: tuple[Path, str] | None,
) -> None:
    """Write a shard of the run `run`; its stitches (file, digest) must lie in their
    place already."""
    entry = None
    if stitches is not None:
        file, digest = stitches
        entry = {"file": file.name, "bytes": file.stat().st_size, "digest": digest}
    good = [row for row in rows if row["status"] == "ok"]
    head = {
        "run": run, "wave": wave_id, "written": datetime.now(UTC).isoformat(), "stitches": entry,
        "cells": [row["cell"] for row in rows],
        "ok": [row["status"] == "ok" for row in rows],
        "donors": sorted(_donors(good)),
        "seconds": sum(row.get("train_seconds") or 0.0 for row in good),
    }  # fmt: skip
    sealed.write_json_rows(path, SHARD, head, _packed(rows))


def read_shard(path: Path, run: str, stitches_folder: Path) -> tuple[Shard, bytes]:
    """Read and verify a shard of the run `run`, and that its stitches have their size; its rows,
    for `rows_of`.

    Raises `sealed.Damaged`, `sealed.Newer`, `sealed.Older` and `FileNotFoundError`.
    """
    content, rows = sealed.read_json_rows(path, SHARD, _Content)
    if content["run"] != run:
        raise sealed.Damaged(path, SHARD, "it is of another run")
    entry = content["stitches"]
    file = entry and _stitches(path, stitches_folder / Path(entry["file"]).name, entry["bytes"])
    cells, ok = tuple(content["cells"]), tuple(content["ok"])
    if len(cells) != len(ok):
        raise sealed.Damaged(path, SHARD, f"it tells of {len(cells)} cells and {len(ok)} outcomes")
    donors, digest = frozenset(content["donors"]), entry["digest"] if entry else ""
    known = content["written"], cells, ok, donors, content["seconds"], file, digest
    return Shard(path, *known), rows


def rows_of(shard: Shard, rows: bytes) -> list[dict[str, Any]]:
    """The rows that `read_shard` gives, parsed.

    Raises `FulaError` where they are not those of the shard's cells, which no accident makes: the
    digest is right.
    """
    try:
        packed = sealed.parsed_rows(rows)
        found = [packed["same"] | own for own in packed["each"]]
        told = [(row["cell"], row["status"]) for row in found]
    except (ValueError, KeyError, TypeError, AttributeError):
        found, told = [], None
    expected = [(c, STATUSES[not ok]) for c, ok in zip(shard.cells, shard.ok, strict=True)]
    if told != expected:
        raise FulaError(
            f"'{shard.path}' tells of other rows than it holds: somebody changed it and its "
            "digest; delete it, and its cells are done again with --resume"
        )
    return found


def _packed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows with what is the same in all of them, to the last bit, once."""
    first, others = rows[0] if rows else {}, rows[1:]
    same = {
        name: value
        for name, value in first.items()
        if all(name in row and repr(row[name]) == repr(value) for row in others)
    }
    return {"same": same, "each": [{k: v for k, v in r.items() if k not in same} for r in rows]}


def _donors(rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Names and content hashes of the donors of all rows that tell them."""
    sides = ("front", "front_hash"), ("end", "end_hash")
    return {(row[n], row[h]) for n, h in sides for row in rows if row.get(h) and row.get(n)}


def _stitches(shard: Path, path: Path, expected: int) -> Path:
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size} bytes"
        reason = f"its stitches '{path.name}' {found}, not {expected} bytes"
        raise sealed.Damaged(shard, SHARD, reason)
    return path


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy or torch, without importing either
        return _json_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
