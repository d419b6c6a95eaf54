"""What differs between two specs, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = object()
SHOWN = 8


def describe_differences(stored: Any, given: Any) -> str:
    """`key: stored -> given` for the differing leaves, on one line; at most `SHOWN` of them."""
    old, new = dict(_leaves(stored)), dict(_leaves(given))
    keys = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    lines = [f"{key}: {_text(old, key)} -> {_text(new, key)}" for key in keys[:SHOWN]]
    more = [f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return "; ".join(lines + more)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of nested keys; a list counts as one value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _text(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "unset"
