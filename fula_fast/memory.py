"""Memory budgets of waves."""

from __future__ import annotations

import re

from .errors import FulaError

_UNITS = {"": 1, "b": 1} | {
    p + s: base**n for n, p in enumerate("kmgt", start=1) for s, base in (("b", 1000), ("ib", 1024))
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*")


def budget(amount: str | int, available: int) -> int:
    """Bytes meant by "8GiB", "60%" (of `available` bytes), or a plain number of bytes."""
    found = _AMOUNT.fullmatch(str(amount))
    unit = found[2].lower() if found else None
    if found is None or (unit != "%" and unit not in _UNITS):
        raise FulaError(f"memory '{amount}' is not an amount; write '8GiB', '60%' or bytes")
    if unit == "%":
        if not 0 < float(found[1]) <= 100:
            raise FulaError(f"memory '{amount}' must lie above 0% and at most at 100%")
        return int(available * float(found[1]) / 100)
    size = int(float(found[1]) * _UNITS[unit])
    if size < 1:
        raise FulaError(f"memory '{amount}' must be positive")
    return size
