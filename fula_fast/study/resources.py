"""This machine, read without torch where that can be: processor features, memory, GPU present."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..errors import FulaError
from . import wave_memory
from .spec import EngineSpec

_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512_BF16"}


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Feature flags of the processor, as the Linux kernel names them; empty elsewhere."""
    file = root / "proc/cpuinfo"
    text = file.read_text() if file.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()


def cpu_features(flags: frozenset[str]) -> dict[str, bool]:
    """Which of the instruction sets that matter here the processor has."""
    known = {name: flag in flags for flag, name in _FLAGS.items()}
    return known | {"AMX": has_amx(flags)}


def has_amx(flags: frozenset[str]) -> bool:
    """bf16 matrix instructions: tiles and the bf16 product."""
    return {"amx_tile", "amx_bf16"} <= flags


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's model name."""
    file = root / "proc/cpuinfo"
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu_present() -> bool:
    """Whether a CUDA device can be used; loads torch only where a driver is installed."""
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return False
    import torch

    return torch.cuda.is_available()


@dataclass(frozen=True)
class Resources:
    """Where and how cells are computed: torch device, precision, bytes per wave; whether compiled
    kernels serve there, as memory is predicted with them or without."""

    device: str
    precision: Literal["fp64", "fp32", "tf32", "bf16"]
    budget: int
    fused: bool = True


def resources(engine: EngineSpec, flags: frozenset[str] | None = None) -> Resources:
    """What an `[engine]` table means on this machine.

    `auto`: a GPU where there is one; bf16 there and on processors with AMX, else fp32. Raises
    `FulaError` for a GPU that is not there, for tf32 without one, and for a mode that the executor
    does not have.
    """
    device = _device(engine.device)
    if engine.executor == "solo" and engine.mode not in ("auto", "eager"):
        raise FulaError(
            f"engine mode '{engine.mode}' is the wave executor's; the solo executor runs eagerly: "
            "use mode 'auto' or executor 'wave'"
        )
    if engine.precision == "tf32" and device == "cpu":
        raise FulaError("precision 'tf32' needs a CUDA device; use 'fp32' on the CPU")
    amx = has_amx(cpu_flags() if flags is None else flags)
    usual = "bf16" if device != "cpu" or amx else "fp32"
    precision = usual if engine.precision == "auto" else engine.precision
    budget = _budget(engine.memory, device)
    return Resources(device, precision, budget, _fused(device, precision))


def why_not_captured(device: str, dropout: str) -> str:
    """Why a wave's step cannot be one CUDA graph on `device`; empty where it can."""
    if not device.startswith("cuda"):
        return "it needs a CUDA device"
    if dropout == "train":
        return "dropout masks are keyed by the epoch on the host"
    return ""


def check_mode(mode: str, device: str, dropout: str) -> None:
    """`FulaError` for a mode that waves cannot run in there."""
    if mode == "captured" and (reason := why_not_captured(device, dropout)):
        raise FulaError(
            f"engine mode 'captured' is not possible: {reason}; use 'compiled' or 'eager'"
        )


def _device(asked: str) -> str:
    if asked == "cpu":
        return "cpu"
    if gpu_present():
        return "cuda" if asked == "auto" else asked
    if asked == "auto":
        return "cpu"
    raise FulaError(f"device '{asked}' is not available: no CUDA device found; use --device cpu")


def _fused(device: str, precision: str) -> bool:
    """What `kernels.backend` will choose for `lane_norm`, told without loading torch."""
    asked = os.environ.get("FULA_BACKEND") or "auto"
    if device != "cpu":
        return asked != "reference" and precision != "fp64" and find_spec("triton") is not None
    folders = find_spec("fula_fast.kernels").submodule_search_locations
    built = any(found for folder in folders for found in Path(folder).glob("_core.*"))
    return built and asked in ("auto", "cpp")


def _budget(asked: str | int | None, device: str) -> int:
    if device == "cpu":
        free, share = wave_memory.available_memory(), wave_memory.CPU_SHARE
    else:
        import torch

        free, share = torch.cuda.mem_get_info(device)[0], wave_memory.GPU_SHARE
    return int(free * share) if asked is None else wave_memory.budget(asked, free)


def gpu_lines() -> Sequence[str]:
    """One line per GPU: name, capability, free and total memory. Loads torch."""
    import torch

    lines = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        lines.append(
            f"{torch.cuda.get_device_name(index)}, capability {major}.{minor}, "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        )
    return lines
