"""A shard: the rows of one write, in one JSON file that is never changed afterwards."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from typing_extensions import TypedDict

from ..errors import not_none
from ..files import sealed
from ..files.sealed import SHARD

STATUSES = ("ok", "failed")
_NAME = re.compile(r"(?P<wave>.+)-(?P<order>\d{4,})-[0-9a-f]{12}\.json")


class Row(TypedDict):
    """What every row has; measures and settings stand beside."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    cell: str
    status: Literal["ok", "failed"]


class _Stitches(TypedDict):
    file: str
    bytes: int
    digest: str


class _Content(TypedDict):
    run: str
    wave: str
    written: str
    stitches: _Stitches | None
    rows: list[Row]


@dataclass(frozen=True)
class Shard:
    """One shard as read: its rows, and the file of their stitches with its digest (`None`, "": no
    stitches)."""

    path: Path
    written: str
    rows: tuple[dict[str, Any], ...]
    stitches: Path | None
    digest: str


def folder_of(wave_id: str) -> str:
    """The hashed sub-folder (two hex digits) of a wave's files."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", wave_id):
        raise ValueError(f"wave id {wave_id!r} cannot be a file name")
    return hashlib.sha256(wave_id.encode()).hexdigest()[:2]


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
    head = {"run": run, "wave": wave_id, "written": datetime.now(UTC).isoformat()}
    sealed.write_json(path, SHARD, head | {"stitches": entry, "rows": rows}, indent=None)


def read_shard(path: Path, run: str, stitches_folder: Path) -> Shard:
    """Read and verify a shard of the run `run`, and that its stitches have their size.

    Raises `sealed.Damaged`, `sealed.Newer`, and `FileNotFoundError`.
    """
    content = sealed.read_json(path, SHARD, _Content)
    if content["run"] != run:
        raise sealed.Damaged(path, SHARD, "it is of another run")
    entry = content["stitches"]
    file = entry and _stitches(path, stitches_folder / Path(entry["file"]).name, entry["bytes"])
    return Shard(
        path, content["written"], tuple(content["rows"]), file, entry["digest"] if entry else ""
    )


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
