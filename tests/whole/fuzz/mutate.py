"""Inputs that are nearly right: bytes, trees of plain values and TOML, changed by a keyed draw."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

_INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_ODD = (
    None, True, False, 0, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "../../x", "\0", "\ud800", "é" * 300, [], {}, [[]], [None], {"": {}}, "9" * 5000, "nan",
)  # fmt: skip
_TOML = (
    "", "-1", "0", "1", "nan", "inf", "9" * 30, "9" * 5000, "1e999", "true", '"x"', '"8/0"', "[]", "{}",
    '"../x"', '"\\u0000"', "[[[]]]", "[" * 3000, "{a = " * 500, "1979-05-27", "'''", '"\\uD800"',
)  # fmt: skip


def mutated_bytes(draw: random.Random, content: bytes) -> bytes:
    """One to four changes: bits, integers, cuts, doubled and exchanged pieces, other bytes."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        _change_bytes(draw, found)
    return bytes(found)


def _change_bytes(draw: random.Random, found: bytearray) -> None:
    if not found:
        found += draw.randbytes(8)
        return
    early = draw.random() < 0.5  # headers stand at the start
    place = draw.randrange(min(len(found), 128) if early else len(found))
    other, size = draw.randrange(len(found)), draw.choice((1, 2, 4, 8, 64, 512))
    match draw.randrange(7):
        case 0:
            found[place] ^= 1 << draw.randrange(8)
        case 1:
            form = draw.choice(("<I", ">I", "<Q", "<H", ">H", "B"))
            value = draw.choice(_INTEGERS) % (1 << 8 * struct.calcsize(form))
            found[place : place + struct.calcsize(form)] = struct.pack(form, value)
        case 2:
            del found[place:]
        case 3:
            del found[place : place + size]
        case 4:
            found[place:place] = found[other : other + size]
        case 5:
            found[place : place + size] = found[other : other + size]
        case _:
            found[place : place + size] = draw.randbytes(size)


def mutated_tree(draw: random.Random, tree: Any) -> Any:
    """A copy with one or two nodes changed: to something odd, left out, doubled, or wrapped."""
    found = json.loads(json.dumps(tree))
    for _ in range(draw.choice((1, 1, 2))):
        found = _change_node(draw, found)
    return found


def _change_node(draw: random.Random, tree: Any) -> Any:
    holders = [node for node in _nodes(tree) if isinstance(node, dict | list) and node]
    if not holders or draw.random() < 0.02:
        return draw.choice(_ODD)
    holder = draw.choice(holders)
    key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match draw.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [holder[key]]
        case 2 if isinstance(holder, dict):
            holder[f"{key}x"] = holder[key]
        case 3:
            holder[key] = json.loads(json.dumps(draw.choice(_nodes(tree))))
        case _:
            holder[key] = draw.choice(_ODD)
    return tree


def _nodes(tree: Any) -> list[Any]:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tree, *(node for part in inner for node in _nodes(part))]


def mutated_toml(draw: random.Random, text: str) -> str:
    """One to three lines changed: other values, keys and tables, doubled, moved or left out."""
    lines = text.split("\n")
    for _ in range(draw.choice((1, 1, 2, 3))):
        place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
        key, equals, value = lines[place].partition("=")
        match draw.randrange(7):
            case 0 | 1 | 2 if equals:
                lines[place] = f"{key}= {draw.choice(_TOML)}"
            case 3:
                lines.insert(place, lines[other])
            case 4:
                del lines[place]
                lines = lines or [""]
            case 5:
                lines[place] = f"{key[: draw.randrange(len(key) + 1)]}{equals}{value}"
            case _:
                taken = lines[other].partition("=")[2]
                lines[place] = f"{key}={taken}"
    return "\n".join(lines)
