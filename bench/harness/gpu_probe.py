"""What an interpreter sees, as one line of JSON: hardware, versions and tools, or a `problem`, or
the `missing` package without which nothing can run.

    python bench/harness/gpu_probe.py [--dry-run]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata

TOOLS = ("nvcc", "compute-sanitizer", "ncu", "cuobjdump")
PACKAGES = (
    "pydantic", "pydantic-core", "tomli-w", "pytest", "pytest-benchmark", "pytest-xdist",
    "hypothesis", "safetensors", "pyarrow", "scikit-learn", "pyautoattack", "torchattacks",
    "nvidia-dali-cuda130",
)  # fmt: skip


def facts(dry_run: bool) -> dict:
    """See above."""
    try:
        import torch

        if not (torch.cuda.is_available() or dry_run):
            return {"problem": "there is no CUDA device that torch can use"}
        import fula_fast.kernels  # noqa: F401  a package that the checkout keeps elsewhere
        from fula_fast.bench.harness.record import device_label, environment
    except ModuleNotFoundError as error:
        return {"missing": error.name}
    device = "cpu" if dry_run else "cuda"
    found = {"label": device_label(device)} | environment(device, "make gpu-check")
    tools = {name: bool(shutil.which(name)) for name in TOOLS}
    return found | {"packages": packages(), "tools": tools, "driver": driver()}


def packages() -> dict[str, str | None]:
    """Versions of what parts need; None: not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The driver's version and the GPU's, as nvidia-smi says them; None without it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    print(json.dumps(facts("--dry-run" in sys.argv)))
