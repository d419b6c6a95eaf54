"""Memory that a CPU run frees and takes again: kept, instead of given back to the system.

glibc maps every tensor above 32 MB anew and unmaps it when it is freed, so that each step touches
fresh pages: a fault and 4 KB of zeros for every page of every activation.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_holders = 0


def free_memory() -> None:
    """Give a GPU's memory that nothing refers to back to it."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def keeping_memory(wanted: bool = True) -> Iterator[None]:
    """While it lasts, freed memory stays with the process; afterwards it goes back to the system.

    Only glibc can; elsewhere, and where not `wanted`, nothing happens. Of nested ones the outermost
    counts.
    """
    global _holders
    libc = _glibc() if wanted else None
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1
        if not _holders:
            for parameter, value in _USUAL.items():
                libc.mallopt(parameter, value)
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    this = ctypes.CDLL(None)
    return this if hasattr(this, "gnu_get_libc_version") and hasattr(this, "mallopt") else None
