"""`fula-fast doctor`: what is installed, what this machine can do, and what will be
used and why."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..device import machine
from ..device.memory import available_memory
from ..device.precision import FAST
from ..study import resources
from ..study.show_plan import bytes_text
from ..study.spec import EngineSpec

_PACKAGES = ("torch", "triton", "torchvision", "timm", "numpy", "pyarrow", "safetensors")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
_COMPILERS = ("c++", "g++", "clang++")

Facts = Iterator[tuple[str, str]]


def report() -> dict[str, list[tuple[str, str]]]:
    """Sections of (name, finding) lines. Loads torch."""
    return {
        "versions": list(_versions()),
        "machine": list(_machine()),
        "operators": list(_operators()),
        "defaults": list(_defaults()),
    }


def print_report() -> None:
    """The report on standard output, one table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for section, lines in report().items():
        table.add_row(f"[bold]{section}[/bold]")
        for name, finding in lines:
            table.add_row(f"  {name}", finding)
    Console(soft_wrap=True).print(table)


def _versions() -> Facts:
    yield "fula-fast", __version__
    yield "python", platform.python_version()
    for name in _PACKAGES:
        yield name, _version(name) or "not installed"
    dali = next((f"{name} {v}" for name in _DALI if (v := _version(name))), None)
    yield "DALI", dali or "not installed (data is read by Pillow): pip install 'fula-fast[dali]'"
    yield "C++ compiler", _compiler()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> str:
    """First line of the compiler's own version text; torch.compile needs one on the CPU."""
    path = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if path is None:
        return "none found (torch.compile on the CPU needs one): install g++"
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0] or path


def _machine() -> Facts:
    import torch

    yield "processor", f"{machine.cpu_name()}, {torch.get_num_threads()} threads used by torch"
    features = machine.cpu_features(machine.cpu_flags())
    yield "CPU features", ", ".join(f"{n} {'yes' if on else 'no'}" for n, on in features.items())
    yield "narrow strided convolutions", _convolutions()
    yield "CPU memory", f"{bytes_text(available_memory())} available"
    gpus = machine.gpu_lines()
    for index, line in enumerate(gpus):
        yield f"GPU {index}", line
    if not gpus:
        cuda = torch.version.cuda
        yield "GPU", f"none ({f'torch has CUDA {cuda}' if cuda else 'torch is a CPU build'})"


def _convolutions() -> str:
    import torch

    from ..models.subsampled import VECTOR

    if not torch.backends.mkldnn.is_available():
        return "as they are (torch without oneDNN)"
    return (
        f"1x1 with fewer than {VECTOR} channels: pixels first, then no stride (in torch "
        f"{torch.__version__}'s own, oneDNN issue 6035 may overwrite memory)"
    )


def _operators() -> Facts:
    """Which backend each operator of `fula_fast.kernels` uses, and why."""
    from ..kernels import backend

    yield from backend.explain().items()


def _defaults() -> Facts:
    found = resources.resources(EngineSpec())
    yield "device", found.device
    yield "precision", f"{found.precision} ({_why(found)})"
    yield "memory of a wave", bytes_text(found.budget)


def _why(found: resources.Resources) -> str:
    if found.device != "cpu":
        return "a GPU multiplies bf16 fastest"
    return "the processor has AMX" if found.precision == FAST else "the processor has no AMX"
