"""What the GPU check runs, in plans: which parts, in which order, how long. Standard library only.

`first` asks whether everything is right and what a step takes; `second` measures against the peers
and runs the remaining tests; `dali` looks at the data pipeline, which is too large to be carried
each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .gpu_parts import ROOT, Part

PLANS = {"first": 230.0, "second": 400.0, "dali": 200.0}
"""Seconds of each plan's parts together; starting and reporting come on top."""
PROCESSES = 6
"""Most of a GPU test's time is the compilation of its kernels, so that several run side by side."""

PYTEST = (
    "-m", "gpu and not slow", "-q", "--durations=10", "-p", "no:cacheprovider",
    "--continue-on-collection-errors",
    # What else is installed on a machine with a GPU is its own business: no plugins of it, and its
    # packages' warnings are no failures.
    "-p", "pytest_benchmark.plugin", "-W", "default",
)  # fmt: skip
OUTCOMES = ("-p", "fula_fast.bench.harness.outcomes", "--outcomes", "{out}/tests.json")
"""Each test's outcome is kept as it comes: a run cut short says what it found."""
CAPTURED = (
    "graph_equals or second_phase or compiled_graph or captured_pgd or captured_autoattack"
    " or captured_attack or refused or running_out_of_memory"
)
"""Captured equals eager, clean and attacked; and what follows a capture that was refused."""
SMALL = (
    "(test_lane_norm or test_lane_conv or test_stitch_hint or test_hint_terms or test_pgd_step"
    " or test_augment or on_the_device) and not own_tiles"
)
_MEMCHECK = (
    "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "86",
    "--target-processes", "all",  # the C library's tests are processes of their own
    "--report-api-errors", "no",  # PyTorch asks the driver for what it may not have, and copes
)  # fmt: skip
_UNPOOLED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Every tensor an allocation: what goes beyond one inside a pool would be nobody's error."""
_SUITES = "fula_fast.bench.suites."
_TESTED = ("pytest", "pytest_benchmark")
_ENGINE = ("pydantic",)
_DATA = ("FULA_TEST_DATA",)


def _pytest(*files: str, among: str = "", several: bool = True) -> tuple[str, ...]:
    """The interpreter's arguments for the `gpu` tests of files."""
    parallel = several and find_spec("xdist") is not None
    processes = ("-p", "xdist.plugin", f"-n{PROCESSES}") if parallel else ()
    names = ("-k", among) if among else ()
    return ("-m", "pytest", *PYTEST, *OUTCOMES, *processes, *names, *files)


def gpu_files() -> list[str]:
    """Test files that hold such tests, so that no other file's needs matter."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if "mark.gpu" in f.read_text()]


def _kernel_files() -> list[str]:
    return [file for file in gpu_files() if Path(file).is_relative_to("tests/kernels")]


def _other_files() -> list[str]:
    return [file for file in gpu_files() if file not in _kernel_files()]


def _suite(name: str, *options: str) -> tuple[str, ...]:
    return ("-m", _SUITES + name, *options)


def first() -> list[Part]:
    """Right, then how long a step takes: plain, and compiled stage by stage."""
    return [
        Part("ceilings", _suite("ceilings", "--out", "{out}/ceilings.json"), 10),
        Part("nouns", _suite("nouns", "--out", "{out}/nouns.json"), 65),
        Part("kernel-tests", _pytest(*_kernel_files()), 65, _TESTED, beside=True),
        Part(
            "captured", _pytest(*_other_files(), among=CAPTURED), 65, (*_TESTED, *_ENGINE),
            beside=True,
        ),
        _step("36", 45, "--way", "plain", "--model"),
        _step("324", 30, "--way", "plain", "--model"),
        _step("36", 45, "--way", "compiled"),
        _step("324", 35, "--way", "compiled"),
    ]  # fmt: skip


def _step(lanes: str, reserve: float, *options: str) -> Part:
    size = ("--counts", lanes, "--timed", "5", "--out", "{out}/step.json")
    return Part(f"{options[1]}-{lanes}", _suite("step", *options, *size), reserve, _ENGINE)


def second() -> list[Part]:
    """Against the peers, kernels by graph replay, the remaining tests; the memory checker last."""
    attack = (*_ENGINE, "pyautoattack", "torchvision")
    out = ("--out", "{out}/a.json")
    kernels = ("--lanes", "16,324", "--tune", "heaviest", "--seconds", "{seconds}")
    data = _suite("data", "{out}/data.json", "3")
    return [
        # Five steps of each sample, so that three peers fit where two had ten.
        Part(
            "grid", _suite("grid", "--timed", "5", "--warmup", "3", "--out", "{out}"), 100, _ENGINE
        ),
        Part("kernels", _suite("kernels", *kernels, "--out", "{out}/kernels.json"), 65),
        Part(
            "attack", _suite("attack", "--images", "512", "--rounds", "1", *out), 50,
            (*attack, "torchattacks"), _DATA,
        ),
        Part(  # one EOT sample: the reference's twenty equal ones take minutes
            "agreement", _suite("agreement", "--images", "512", "--eot", "1", *out), 25,
            attack, _DATA,
        ),
        Part("data", data, 30, (*_ENGINE, "torchvision")),
        Part(
            # the captured ones again: the first plan may have run out of time among them
            "tests", _pytest(*_other_files()), 45, (*_TESTED, *_ENGINE),
        ),
        Part("scale", _suite("scale", "--counts", "1,16,324", "--out", "{out}"), 20, _ENGINE),
        Part(
            "similarity", _suite("similarity", "--lanes", "36", "--timed", "5", "--out", "{out}"),
            25, (*_ENGINE, "scipy"),
        ),
        Part("memcheck", _watched(), 40, _TESTED, under=_MEMCHECK, settings=_UNPOOLED),
    ]  # fmt: skip


def _watched() -> tuple[str, ...]:
    """What runs under the memory checker: every noun's Triton kernels on tensors of a few numbers,
    which earlier parts have compiled, and then the C library's."""
    ours = ("tests/kernels/test_triton.py", "tests/kernels/test_lane_conv.py")
    files = (*ours, "tests/kernels/cpp/test_library.py")
    return _pytest(*files, among=SMALL, several=False)


def dali() -> list[Part]:
    """Batches and captured steps fed by DALI, JPEG decoded on the GPU, a sweep like another's."""
    needs = (*_TESTED, *_ENGINE, "nvidia.dali")
    streams = ("tests/pipelines/test_gpu.py",)
    return [
        Part("dali-streams", _pytest(*streams, among="dali", several=False), 50, needs),
        Part(
            "dali-captured", _pytest("tests/engine/test_gpu.py", among="dali", several=False), 40,
            needs,
        ),
        Part(
            "dali-jpeg", _pytest(*streams, among="jpeg", several=False), 20, needs, _DATA,
        ),
        Part("dali-sweep", _pytest("tests/runs/test_sweep_streams.py", several=False), 45, needs),
        Part(
            "data", _suite("data", "{out}/data.json", "3"), 45,
            (*_ENGINE, "torchvision", "nvidia.dali"),
        ),
    ]  # fmt: skip


_PARTS = {"first": first, "second": second, "dali": dali}


def chosen(plan: str, only: Sequence[str] = ()) -> list[Part]:
    """The parts of a plan (`all`: first and second), or those named. Raises `SystemExit` for a
    name that the plan lacks."""
    plans = ("first", "second") if plan == "all" else (plan,)
    parts = [part for name in plans for part in _PARTS[name]()]
    unknown = sorted(set(only) - {part.name for part in parts})
    if unknown:
        names = ", ".join(part.name for part in parts)
        raise SystemExit(f"--only {','.join(unknown)}: plan {plan} has {names}")
    return [part for part in parts if part.name in only or not only]


def budget(plan: str) -> float:
    """Seconds for a plan's parts."""
    return PLANS["first"] + PLANS["second"] if plan == "all" else PLANS[plan]


def dry(parts: Sequence[Part]) -> list[Part]:
    """The same parts on a CPU: tests collected, the engine's benchmarks tiny, others imported."""
    return [replace(part, arguments=_dry(part), under=(), variables=()) for part in parts]


def _dry(part: Part) -> tuple[str, ...]:
    tiny = "--device cpu --precision fp32 --width 2 --batch 4 --timed 2 --warmup 1 --mode eager"
    size = (*tiny.split(), "--image", "8", "--out")
    small = ("--images", "16", "--samples", "16", "--cka-images", "8")
    smaller = {
        "nouns": _suite("nouns", "--device", "cpu", "--out", "{out}/nouns.json"),
        "plain-36": _suite("step", "--counts", "4", *size, "{out}/step.json"),
        "grid": _suite("grid", "--lanes", "4", *size, "{out}"),
        "scale": _suite("scale", "--counts", "1,2", *size, "{out}"),
        "similarity": _suite("similarity", "--lanes", "4", *small, *size, "{out}"),
    }
    if part.name in smaller:
        return smaller[part.name]
    if "pytest" in part.arguments:
        return (*part.arguments, "--collect-only")
    return ("-c", f"import {part.arguments[1]}")
