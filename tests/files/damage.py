"""Ways to damage a file of ours, by name: what the tests of every kind share."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[dict[str, Any]], Any]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def one_bit(path: Path) -> None:
    """The middle bit of what follows the head: a number, in most files."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def another_form(path: Path) -> None:
    path.write_text("[" * 5000 + "]" * 5000)


def changed(path: Path, change: Change) -> None:
    """Replace the head of a JSON or a safetensors file by what `change` returns."""
    if path.suffix == ".safetensors":
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        head = json.loads(content[8 : 8 + length])
        found = change(dict(head.get("__metadata__", {})))
        head.pop("__metadata__", None)
        text = json.dumps(({"__metadata__": found} if found is not None else {}) | head).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    else:
        path.write_text(text_of(change(json.loads(path.read_text()))))


def text_of(found: Any) -> str:
    """JSON as a file of ours has it: rows apart, behind what holds no blanks."""
    if not isinstance(found, dict) or "rows" not in found:
        return json.dumps(found)
    head = json.dumps({k: v for k, v in found.items() if k != "rows"}, separators=(",", ":"))
    rows = json.dumps(found["rows"], sort_keys=True, separators=(",", ":"))
    return f'{head[:-1]}, "rows": {rows}}}\n'


def newer(path: Path) -> None:
    changed(path, lambda head: head | {"format": "99" if path.suffix == ".safetensors" else 99})


def missing_key(path: Path) -> None:
    changed(path, lambda head: {k: v for k, v in head.items() if k != "digest"})


def extra_key(path: Path) -> None:
    changed(path, lambda head: head | {"new": "x"})


def wrong_type(path: Path) -> None:
    name = "meta" if path.suffix == ".safetensors" else "content"
    changed(path, lambda head: head | {name: "null" if name == "meta" else None})


def without_head(path: Path) -> None:
    changed(path, lambda head: None)


BYTES = (cut, zeroed, one_bit, last_bit, emptied, removed, folder)
HEADS = (another_form, newer, missing_key, extra_key, wrong_type, without_head)


def exchanged(path: Path, other: Path) -> None:
    """The place taken by another file of the same kind."""
    shutil.copyfile(other, path)
