"""What an `[engine]` table means on this machine: device, precision, memory of a wave."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..device import memory
from ..device.machine import cpu_flags, gpu_present, has_amx
from ..device.mode import CAPTURED, EAGER
from ..device.precision import EXACT, FAST, PLAIN, PRECISIONS, PrecisionName
from ..errors import FulaError, not_none
from .spec import EngineSpec


@dataclass(frozen=True)
class Resources:
    """Where and how cells are computed: torch device, precision, bytes per wave; whether compiled
    kernels serve there, as memory is predicted with them or without; how many workers at once."""

    device: str
    precision: PrecisionName
    budget: int
    fused: bool = True
    workers: int = 1


def resources(engine: EngineSpec, flags: frozenset[str] | None = None) -> Resources:
    """What an `[engine]` table means on this machine.

    `auto`: a GPU where there is one; bf16 there and on processors with AMX, else fp32. Raises
    `FulaError` for a GPU that is not there, for tf32 without one, and for a mode that the executor
    does not have.
    """
    elsewhere = engine.kind != "local"
    device = engine.device if elsewhere and engine.device != "auto" else _device(engine.device)
    if engine.executor == "solo" and engine.mode not in ("auto", EAGER):
        raise FulaError(
            f"engine mode '{engine.mode}' is the wave executor's; the solo executor runs eagerly: "
            "use mode 'auto' or executor 'wave'"
        )
    if engine.compile and (engine.mode == EAGER or engine.executor == "solo"):
        raise FulaError(
            "engine compile = true has nothing to compile in eager steps: leave it out, or use "
            "mode 'auto', 'compiled' or 'captured' of the wave executor"
        )
    if device == "cpu" and engine.precision in PRECISIONS and PRECISIONS[engine.precision].tf32:
        raise FulaError(
            f"precision '{engine.precision}' needs a CUDA device; use '{PLAIN}' on the CPU"
        )
    amx = has_amx(cpu_flags() if flags is None else flags)
    usual = FAST if device != "cpu" or amx else PLAIN
    precision = usual if engine.precision == "auto" else engine.precision
    workers = engine.workers or (1 if elsewhere else _devices(engine.device, device))
    budget = _budget(engine.memory, device, 1 if elsewhere else workers)
    return Resources(device, precision, budget, _fused(device, precision), workers)


def _devices(asked: str, device: str) -> int:
    """This machine's GPUs, where none is named; one processor."""
    if device == "cpu" or ":" in asked:
        return 1
    import torch

    return torch.cuda.device_count()


def why_not_captured(device: str, dropout: str) -> str:
    """Why a wave's step cannot be one CUDA graph on `device`; empty where it can."""
    if not device.startswith("cuda"):
        return "it needs a CUDA device"
    if dropout == "train":
        return "dropout masks are keyed by the epoch on the host"
    return ""


def check_mode(mode: str, device: str, dropout: str) -> None:
    """`FulaError` for a mode that waves cannot run in there."""
    if mode == CAPTURED and (reason := why_not_captured(device, dropout)):
        raise FulaError(
            f"engine mode 'captured' is not possible: {reason}; use 'compiled' or 'eager'"
        )


def present(device: str) -> str:
    """`device`, or the processor where this machine has no GPU and only hands its work over."""
    return device if gpu_present() else "cpu"


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
        return asked != "reference" and precision != EXACT and find_spec("triton") is not None
    folders = not_none(find_spec("fula_fast.kernels")).submodule_search_locations or ()
    built = any(found for folder in folders for found in Path(folder).glob("_core.*"))
    return built and asked in ("auto", "cpp")


def _budget(asked: str | int | None, device: str, workers: int) -> int:
    """Bytes of a wave: processors' workers share the memory, GPUs have their own."""
    if device == "cpu":
        free, share = memory.available_memory() // workers, memory.CPU_SHARE
    elif gpu_present():
        import torch

        free, share = torch.cuda.mem_get_info(device)[0], memory.GPU_SHARE
    else:
        free, share = _told(asked), memory.GPU_SHARE
    return int(free * share) if asked is None else memory.budget(asked, free)


def _told(asked: str | int | None) -> int:
    """Bytes of a GPU that is elsewhere."""
    if asked is None or str(asked).endswith("%"):
        raise FulaError(
            f"memory {asked!r} is of a GPU that this machine does not have; give the bytes of a "
            "wave there: --memory 60GiB"
        )
    return memory.budget(asked, 1 << 62)
