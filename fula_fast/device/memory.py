"""Memory of this machine: what a process may take, and amounts as a user writes them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import FulaError

CPU_SHARE, GPU_SHARE = 0.60, 0.85
_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*")


def budget(amount: str | int, available: int) -> int:
    """Bytes meant by "8GiB", "60%" (of `available` bytes), or a plain number of bytes.

    Raises `FulaError` for anything else, and for an amount out of its range.
    """
    found = _AMOUNT.fullmatch(str(amount))
    unit = found[2].lower() if found else None
    if found is None or (unit != "%" and unit not in _UNITS):
        raise FulaError(f"memory '{amount}' is not an amount; write '8GiB', '60%' or bytes")
    if unit == "%" and not 0 < float(found[1]) <= 100:
        raise FulaError(f"memory '{amount}' must lie above 0% and at most at 100%")
    size = float(found[1]) * (available / 100 if unit == "%" else _UNITS[unit])
    if size < 1:
        raise FulaError(f"memory '{amount}' must be positive")
    return int(size)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take on the CPU: free memory, or what a cgroup leaves."""
    meminfo = root / "proc/meminfo"
    if os.name == "nt":
        import psutil

        return psutil.virtual_memory().available
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1])
    limits = [(_number(root / limit), _number(root / used)) for limit, used in _CGROUPS]
    return min([free, *(limit - (used or 0) for limit, used in limits if limit is not None)])


def used_memory(root: Path = Path("/")) -> int | None:
    """Resident bytes of this process; None where the system has no /proc."""
    statm = root / "proc/self/statm"
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_CGROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
