"""A host program of fula_core on the stand-in driver: its `main`, with Triton's interpreter behind
it.

TRITON_INTERPRET=1 FULA_LIBCUDA=libfake_cuda.so python emulated_host.py libprogram.so
"""

from __future__ import annotations

import ctypes
import os
import sys

from emulated_cuda import Emulator


def main(path: str) -> int:
    """Load the program, a shared library with a `main`, and run it; its exit code."""
    emulator = Emulator(ctypes.CDLL(os.environ["FULA_LIBCUDA"]))
    code = ctypes.CDLL(path).main()
    if emulator.failure:
        raise emulator.failure
    print(f"{sum(emulator.launched.values())} launches of {len(emulator.launched)} kernels")
    assert emulator.fake.fake_live() == 0, "device memory was kept"
    assert emulator.fake.fake_retained(0) == 0, "the primary context was kept"
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
