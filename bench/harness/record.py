"""Rows of a benchmark, and what makes them figures: hardware, versions, n and spread.

Every bench file that writes JSON itself times with `seconds_of`, sums up with `quantiles` and
writes with `write`, so that all results look alike.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fula_fast import __version__
from fula_fast.device import machine
from fula_fast.device.memory import available_memory

RESULTS = Path("bench/results")
_PACKAGES = ("torch", "triton", "torchvision", "numpy")


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's arguments; `doc`: its docstring, whose first line it shows."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def environment(device: str | torch.device, command: str) -> dict[str, Any]:
    """What a figure depends on beside the code: hardware, versions, commit, time (UTC); and the
    `command` that gives it again."""
    return {
        "hardware": hardware(torch.device(device)),
        "versions": versions(),
        "commit": _commit(),
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, threads, memory and load; the GPU too when `device` is one."""
    features = machine.cpu_features(machine.cpu_flags())
    found = {
        "cpu": machine.cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": [name for name, there in features.items() if there],
        "available_bytes": available_memory(),
        "load": os.getloadavg()[0],
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        capability = f"{facts.major}.{facts.minor}"
        found |= {"gpu": facts.name, "capability": capability, "gpu_bytes": facts.total_memory}
    return found


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of what computes."""
    found = {"python": platform.python_version(), "fula_fast": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _commit() -> str | None:
    """The checkout's commit, with `+` where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        done = [
            subprocess.run([*git, *rest], capture_output=True, text=True, check=True).stdout.strip()
            for rest in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return done[0] + ("+" if done[1] else "")


def seconds_of(
    step: Callable[[int], object], count: int, device: str | torch.device, warmup: int = 1
) -> list[float]:
    """Seconds of each of `count` calls step(k), after `warmup` untimed ones.

    On CUDA the marks are events between the calls: a step that waits for the host's launches is
    charged for the wait, and no step waits for a synchronisation.
    """
    for k in range(warmup):
        step(k)
    if torch.device(device).type == "cuda":
        return _cuda_seconds(step, count, warmup)
    marks = [time.perf_counter()]
    for k in range(warmup, warmup + count):
        step(k)
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def _cuda_seconds(step: Callable[[int], object], count: int, warmup: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for k, mark in enumerate(marks[1:], warmup):
        step(k)
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def captured(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """The run captured in a CUDA graph after two warm-ups: what replays it, and its output, which
    every replay writes anew."""
    aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    with torch.cuda.graph(graph, stream=aside):
        output = run()
    return graph.replay, output


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """n, p20, p50 and p80 of a sample."""
    p20, p50, p80 = np.quantile(np.asarray(seconds, dtype=np.float64), (0.2, 0.5, 0.8))
    return {"n": len(seconds), "p20": float(p20), "p50": float(p50), "p80": float(p80)}


class PeakMemory:
    """Bytes that this process took from now on, at their peak.

    CPU: the peak of the resident set above its size at the start, so one such measurement belongs
    in a process of its own (`isolated`). CUDA: what the allocator took from the
    device, graphs' own pools included.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.cuda = torch.device(device).type == "cuda"
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        self.start = torch.cuda.memory_reserved(device) if self.cuda else _resident("VmRSS")

    def bytes(self) -> int:
        """The peak so far."""
        peak = torch.cuda.max_memory_reserved() if self.cuda else _resident("VmHWM")
        return max(peak - self.start, 0)


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process; getrusage would count the parent that forked it, too."""
    text = Path("/proc/self/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(field + ":")]
    return 1024 * int(line.split()[1])


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a fresh process: its memory is its own, its end frees everything."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


def matrix_rate(
    device: str | torch.device, dtype: torch.dtype, size: int, count: int = 10
) -> float:
    """FLOP/s of a square matrix product of random numbers: what the device can do at best."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    taken = quantiles(seconds_of(lambda _: a @ b, count, device, warmup=3))
    return 2 * size**3 / taken["p50"]


def copy_rate(device: str, size: int = 1 << 28) -> float:
    """Bytes a second, read and written, of copying `size` bytes."""
    a = torch.empty(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    taken = quantiles(seconds_of(lambda _: b.copy_(a), 10, device, warmup=3))
    return 2 * size / taken["p50"]


def device_label(device: str | torch.device) -> str:
    """The device in a file's name: `cpu`, or the GPU's model (`nvidia-h100-80gb-hbm3`)."""
    device = torch.device(device)
    if device.type == "cpu":
        return "cpu"
    return "-".join(torch.cuda.get_device_name(device).lower().split())


def write(path: Path, report: Mapping[str, Any]) -> Path:
    """The report as JSON, in place of an older one at once; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return unfinished.replace(path)
