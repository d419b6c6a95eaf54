"""This machine, read without torch where that can be: processor features, GPU present."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

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
