"""The project's one error class, and the base of its warnings.

A message names the offending value, the rule it broke, and the fix, on one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 20


class FulaError(Exception):
    """A user's mistake or an unusable input; the command line prints it without a traceback."""


class FulaWarning(UserWarning):
    """Something that went on, but that the user should know; the command line prints one line."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest valid name, else the first valid names."""
    valid = sorted(valid)
    close = get_close_matches(name, valid, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    rest = f" … ({len(valid)} in all)" if len(valid) > _LISTED else ""
    return f"; valid: {', '.join(valid[:_LISTED])}{rest}"
