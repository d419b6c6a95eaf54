"""The project's one error class, and the base of its warnings.

A message names the offending value, the rule it broke, and the fix, on one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")

_LISTED = 20
_MEANT = {
    "epsilon": "eps",
    "step_size": "step",
    "iterations": "steps",
    "learning_rate": "lr",
    "num_epochs": "epochs",
}
"""Names of the field's that are near to ours in meaning, not in letters."""


class FulaError(Exception):
    """A user's mistake or an unusable input; the command line prints it without a traceback."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))  # it goes to terminals, logs and tables


class FulaWarning(UserWarning):
    """Something that went on, but that the user should know; the command line prints one line."""


def not_none(value: T | None) -> T:
    """`value`, which the caller knows to be there; `AssertionError` where it is not."""
    assert value is not None
    return value


def nearest(name: str, valid: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest valid name, else the first valid names."""
    valid = sorted(valid)
    meant = _MEANT.get(name)
    close = [meant] if meant in valid else get_close_matches(name, valid, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    rest = f" … ({len(valid)} in all)" if len(valid) > _LISTED else ""
    return f"; valid: {', '.join(valid[:_LISTED])}{rest}"


def printable(text: str) -> str:
    """`text` with escapes for what cannot be written as UTF-8: bytes of another encoding in the
    name of a file."""
    return text.encode(errors="backslashreplace").decode()


def check_text(text: str, what: str) -> str:
    """`text`, if it can be written as UTF-8; else `FulaError` that says so of `what`.

    Bytes of another encoding come in as lone surrogates: from file names and arguments.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FulaError(
            f"{what} {text!r} is not UTF-8 text, which tables and checkpoints need; rename it "
            "(convmv -f latin1 -t utf8 --notest FILE), or give another"
        ) from None
    return text


def check_name(name: str, what: str) -> str:
    """`name`, if it can be the name of a file or folder; else `FulaError` that says so
    of `what`."""
    check_text(name, f"{what} =")
    long = len(name.encode()) > 100
    if re.fullmatch(r"[^./\\\0-\x1f][^/\\\0-\x1f]*", name) and not long:
        return name
    shown = name if len(name) <= 100 else f"{name[:20]}… ({len(name)} characters)"
    raise FulaError(
        f"{what} = {shown!r} cannot be the name of a file; use up to 100 bytes without '/' and "
        "control characters, and no '.' at the start"
    )
