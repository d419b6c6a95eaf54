"""Precisions: one table of them, and the arithmetic that each asks of a device.

Loads torch only where a tensor's dtype or a device's arithmetic is asked for: planning reads the
table without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import FulaError, nearest

if TYPE_CHECKING:
    import torch

PrecisionName = Literal["fp64", "fp32", "tf32", "bf16"]
ReferencePrecision = Literal["fp32", "fp64"]
"""Of a cell by itself, in plain PyTorch."""


@dataclass(frozen=True)
class Precision:
    """How activations are kept and multiplied: torch's name of their dtype, bytes of an element,
    and whether CUDA may multiply float32 in TF32."""

    dtype_name: str
    bytes: int
    tf32: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        import torch

        return getattr(torch, self.dtype_name)


EXACT: PrecisionName = "fp64"
TF32: PrecisionName = "tf32"
FAST: PrecisionName = "bf16"
"""What `auto` chooses where a device multiplies it fast."""
PLAIN: PrecisionName = "fp32"
"""What `auto` chooses elsewhere."""
PRECISIONS: dict[str, Precision] = {
    EXACT: Precision("float64", 8),
    PLAIN: Precision("float32", 4),
    TF32: Precision("float32", 4, tf32=True),
    FAST: Precision("bfloat16", 2),
}


def precision_of(name: str) -> Precision:
    """The precision of that name; raises `FulaError` for an unknown one."""
    if name not in PRECISIONS:
        raise FulaError(f"unknown precision '{name}'{nearest(name, PRECISIONS)}")
    return PRECISIONS[name]


@contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """Deterministic cuDNN chosen by rule, not by trial, and TF32 on CUDA only where asked for;
    earlier settings come back.

    Left alone, PyTorch's convolutions of float32 tensors use TF32. A captured graph keeps what held
    when it was captured. Raises `FulaError` for an unknown precision.
    """
    import torch

    tf32 = precision_of(name).tf32
    before = torch.get_float32_matmul_precision()
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
    ):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def autocast(device: torch.device, name: str) -> torch.autocast:
    """Autocast to the precision's dtype where that is narrower than float32, else nothing."""
    import torch

    narrow = precision_of(name).bytes < PRECISIONS[PLAIN].bytes
    dtype = precision_of(name).dtype if narrow else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=narrow)
