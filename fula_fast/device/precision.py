"""Which arithmetic a device computes in: TF32 or not, and the same bits at every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import FulaError, nearest

PRECISIONS = ("fp64", "fp32", "tf32", "bf16")


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Deterministic cuDNN chosen by rule, not by trial, and TF32 on CUDA only where asked for;
    earlier settings come back.

    Left alone, PyTorch's convolutions of float32 tensors use TF32. A captured graph keeps what held
    when it was captured. Raises `FulaError` for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise FulaError(f"unknown precision '{precision}'{nearest(precision, PRECISIONS)}")
    tf32 = precision == "tf32"
    before = torch.get_float32_matmul_precision()
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
    ):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
