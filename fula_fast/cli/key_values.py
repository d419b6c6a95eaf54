"""`KEY=VALUE`s of the command line as an attack's options. Needs no torch.

attack_options(["eps=4/255", "compaction=off"]) -> {"eps": 4 / 255, "compaction": False}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..attacks.options import SWITCHES, TEXT_NAMES, checked, own_names
from ..errors import FulaError
from ..study.toml import fractions, parse_override

_WORDS = {"on": True, "true": True, "off": False, "false": False}


def attack_options(texts: Iterable[str]) -> dict[str, Any]:
    """Options from `KEY=VALUE`s: numbers, names, fractions for eps and step (8/255), and on, off,
    true or false for switches. Raises `FulaError` as `attacks.options.checked` does."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, _ = text.partition("=")
        if not equals or not name.strip():
            raise FulaError(f"--option '{text}' is not of the form KEY=VALUE, as in eps=8/255")
        parts, value = parse_override(text)
        found[".".join(parts)] = value
    options = {name: _switched(name, value) for name, value in fractions(own_names(found)).items()}
    checked(options, TEXT_NAMES)
    return options


def _switched(name: str, value: Any) -> Any:
    if name in SWITCHES and isinstance(value, str):
        return _WORDS.get(value.lower(), value)
    return value
