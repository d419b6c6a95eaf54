"""The project's one error class.

A message names the offending value, the rule it broke, and the fix, on one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FulaError(Exception):
    """A user's mistake or an unusable input; the command line prints it without a traceback."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest valid name, else the list of valid names."""
    valid = sorted(valid)
    close = get_close_matches(name, valid, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(valid)}"
