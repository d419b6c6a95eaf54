"""A shard: the rows of one write, in one JSON file that is never changed afterwards."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .files import replacing

FORMAT = 1
STATUSES = ("ok", "failed")
_NAME = re.compile(r"(?P<wave>.+)-(?P<order>\d{4,})-[0-9a-f]{12}\.json")


@dataclass(frozen=True)
class Shard:
    """One shard as read: its rows, and the file of their stitches (`None`: no stitches)."""

    path: Path
    written: str
    rows: tuple[dict[str, Any], ...]
    stitches: Path | None


class ShardError(ValueError):
    """A shard that is truncated or corrupt; the message says in what way."""


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
    orders = [
        int(_NAME.fullmatch(path.name)["order"]) for path in taken if wave_of(path) == wave_id
    ]
    return f"{wave_id}-{max(orders, default=-1) + 1:04d}-{_digest(rows)[:12]}"


def clean_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as JSON values: 0-d tensors and NumPy scalars unwrapped, NaN and infinity as null."""
    return [{name: _json_value(value) for name, value in row.items()} for row in rows]


def write_shard(
    path: Path, wave_id: str, rows: list[dict[str, Any]], stitches: Path | None
) -> None:
    """Write a shard atomically; its stitches, if any, must lie in their place already."""
    head = {
        "format": FORMAT,
        "wave": wave_id,
        "written": datetime.now(UTC).isoformat(),
        "stitches": stitches and {"file": stitches.name, "bytes": stitches.stat().st_size},
        "digest": _digest(rows),
    }
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    with replacing(path) as temporary:
        temporary.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n', "utf-8")


def read_shard(path: Path, stitches_folder: Path) -> Shard:
    """Read and verify a shard and the size of its stitches; raises `ShardError`."""
    try:
        content = json.loads(path.read_text("utf-8"))
        rows, entry = content["rows"], content["stitches"]
        if content["digest"] != _digest(rows):
            raise ShardError("its rows do not match their digest")
        stitches = _stitches(stitches_folder, entry) if entry else None
        return Shard(path, content["written"], tuple(rows), stitches)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ShardError("it is no complete JSON shard") from error


def _stitches(folder: Path, entry: dict[str, Any]) -> Path:
    path = folder / entry["file"]
    size = path.stat().st_size if path.is_file() else None
    if size != entry["bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ShardError(f"its stitches '{path.name}' {found}, not {entry['bytes']} bytes")
    return path


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


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
