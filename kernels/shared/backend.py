"""Which implementation serves a call: the one place that decides.

FULA_BACKEND=reference|triton|cpp|auto (read at import; default auto) chooses:

- `reference`: plain PyTorch, traced by `torch.compile` like any other code.
- `triton`: the project's GPU kernels behind registered operators; on CPU tensors only in Triton's
  interpreter (TRITON_INTERPRET=1), for tests. float32, bfloat16, float16.
- `cpp`: the C++ kernels (`fula_fast.kernels._core`) behind the same operators, CPU tensors.
- `auto`: on CUDA `triton`, or `reference` for float64; on a CPU `cpp` where it is built, else
  `reference`. Under `torch.compile` too: Inductor sees nothing inside an operator, but on a CPU
  convolutions are library calls, so what it could fuse is what `lane_norm` has fused already.
  One exception: `stitch_hint` from 128 input channels on is `reference`, because there nearly all
  its time is a matrix product, and PyTorch's library has the faster one. With freed memory kept, as
  sweeps keep it, the C++ version has 0.7 to 1.06 times its speed at 128 channels (one thread of an
  AMD EPYC with AVX-512, batch 128 at 16x16; 15 of 16 cases below 1), and 1.05 to 1.35 times at 64
  with four lanes (`bench cpp` measures all sites).
  Without a compiled backend the reference is traced, and Inductor fuses it.

A named backend that cannot serve a call raises `FulaError`; nothing is replaced silently. It holds
for every noun that the backend has: `gram` has no Triton version, so `triton` leaves it at `auto`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from ...errors import FulaError, nearest

BACKENDS = ("auto", "reference", "triton", "cpp")
NOUNS: dict[str, tuple[str, ...]] = {
    "stitch_hint": ("reference", "triton", "cpp"),
    "hint_terms": ("reference", "triton", "cpp"),
    "lane_norm": ("reference", "triton", "cpp"),
    "lane_conv": ("reference", "triton"),
    "pgd_step": ("reference", "triton", "cpp"),
    "augment": ("reference", "triton", "cpp"),
    "gram": ("reference", "cpp"),
}
"""All nouns, and the backends that each has."""

_MODULES = {"triton": "triton", "cpp": "cpu"}
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
_HAS_TRITON = find_spec("triton") is not None
_HAS_CORE = find_spec("fula_fast.kernels._core") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _core_nouns() -> frozenset[str]:
    """The nouns of this build's C++ module; none without it."""
    if not _HAS_CORE:
        return frozenset()
    core = import_module("fula_fast.kernels._core")
    return frozenset(n for n in NOUNS if hasattr(core, n) or hasattr(core, f"{n}_forward"))


_CORE_NOUNS = _core_nouns()


def _valid(name: str) -> str:
    if name not in BACKENDS:
        raise FulaError(f"FULA_BACKEND = '{name}' is no backend{nearest(name, BACKENDS)}")
    return name


LIBRARY_PRODUCTS = 128
"""Input channels from which `auto` leaves `stitch_hint` on a CPU to the reference."""

_requested = _valid(os.environ.get("FULA_BACKEND") or "auto")


def requested() -> str:
    """What FULA_BACKEND, or the innermost `using`, asks for."""
    return _requested


@contextmanager
def using(name: str) -> Iterator[None]:
    """Ask for a backend inside the block, as FULA_BACKEND does for a process."""
    global _requested
    previous, _requested = _requested, _valid(name)
    try:
        yield
    finally:
        _requested = previous


def choose(noun: str, x: Tensor) -> str:
    """`reference`, `triton` or `cpp` for a call of `noun` on tensors like `x`, of any shape.

    Raises `FulaError` where the requested backend cannot serve.
    """
    if _requested == "auto" or _requested not in NOUNS[noun]:
        wide = noun == "stitch_hint" and _features(x) >= LIBRARY_PRODUCTS
        return _automatic(noun, x.is_cuda, x.dtype, wide)
    reason = _refusal(noun, _requested, x)
    if reason:
        raise FulaError(
            f"FULA_BACKEND = {_requested} cannot serve {noun}: {reason}; use FULA_BACKEND=auto"
        )
    return _requested


@cache
def implementation(noun: str, name: str) -> ModuleType:
    """What computes `noun` behind its operator: the module of the backend `name`, loaded late."""
    return import_module(f"fula_fast.kernels.{noun}.{_MODULES[name]}")


def _features(x: Tensor) -> int:
    """Channels of fronts (S, B, C, H, W), (S, B, T, C) or (S, B, C)."""
    return x.shape[2] if x.dim() == 5 else x.shape[-1]


def _automatic(noun: str, cuda: bool, dtype: torch.dtype, wide: bool = False) -> str:
    if cuda:
        served = _HAS_TRITON and "triton" in NOUNS[noun] and dtype in _TRITON_DTYPES
        return "triton" if served else "reference"
    return "cpp" if noun in _CORE_NOUNS and not wide else "reference"


def _refusal(noun: str, name: str, x: Tensor) -> str | None:
    """Why `name` cannot serve `noun` for tensors like `x`."""
    if name == "triton":
        if not _HAS_TRITON:
            return "the package triton is not installed"
        if x.dtype not in _TRITON_DTYPES:
            return f"it has no {x.dtype}"
        if x.device.type not in ("cuda", "meta") and not _INTERPRETED:  # on `meta` nothing runs
            return f"the tensors are on '{x.device}', it needs CUDA (or TRITON_INTERPRET=1)"
    if name == "cpp":
        if noun not in _CORE_NOUNS:
            return "it is not in this build's fula_fast.kernels._core"
        if x.is_cuda:
            return f"the tensors are on '{x.device}', it needs the CPU"
    return None


def explain() -> dict[str, str]:
    """For each noun, what runs on this machine and why; a line each, for `doctor`."""
    return {noun: _line(noun) for noun in NOUNS}


def _line(noun: str) -> str:
    if _requested != "auto" and _requested in NOUNS[noun]:
        return f"{_requested} (FULA_BACKEND)"
    parts = []
    if torch.cuda.is_available():
        name = _automatic(noun, True, torch.float32)
        parts.append(f"CUDA: {name}" + (", float64: reference" if name == "triton" else ""))
    name = _automatic(noun, False, torch.float32)
    missing = "" if noun in _CORE_NOUNS else " (no C++ version in this build)"
    parts.append(f"CPU: {name}{missing}")
    if noun == "stitch_hint" and name == "cpp":
        parts.append(f"from {LIBRARY_PRODUCTS} channels on reference, as its products are faster")
    return "; ".join(parts)
