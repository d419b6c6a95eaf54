"""Everything that needs a GPU, in one command of at most nine minutes: `make gpu-check`.

    python bench/harness/gpu_check.py  tests marked `gpu`, then the benchmarks, on one GPU
    python bench/harness/gpu_check.py --dry-run
        every part at its smallest, on a CPU: tests this file

It runs with the interpreter that starts it and installs nothing; where the package is not installed
it is made importable through a folder of links. Every part is a process with a time limit, so that
one failure stops no other. Writes `gpu-check-GPU.json`, anew after every part so that a check cut
short leaves what it has, and prints figures beside their targets.
Exit codes: 0 everything ran; 1 a part failed or ran out of time (a missed target is no failure);
2 there is no CUDA device, or a package is missing. Standard library only, so that it can say so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BUDGET = 530
"""Seconds for all parts together; starting and reporting fit in the rest of nine minutes."""
_TAIL = 25
_TO_END = 15
"""Seconds that work in hand may still take."""

_PYTEST = (
    "-m", "gpu and not slow", "-q", "--durations=10", "-p", "no:cacheprovider",
    "--continue-on-collection-errors",
    # What else is installed on a machine with a GPU is its own business: no plugins of it, and its
    # packages' warnings are no failures.
    "-p", "pytest_benchmark.plugin", "-W", "default",
)  # fmt: skip
_OUTCOMES = ("-p", "fula_fast.bench.harness.outcomes", "--outcomes", "{out}/tests.json")
"""Each test's outcome is kept as it comes: a run cut short says what it found."""
_MEMCHECK = (
    "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "86",
    "--target-processes", "all",  # the C library's tests are processes of their own
    "--report-api-errors", "no",  # PyTorch asks the driver for what it may not have, and copes
)  # fmt: skip
_UNPOOLED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Every tensor an allocation: what goes beyond one inside a pool would be nobody's error."""
_SMALL = (
    "(test_lane_norm or test_stitch_hint or test_hint_terms or test_pgd_step or test_augment"
    " or on_the_device) and not own_tiles"
)
_PROCESSES = 8
"""Most of a GPU test's time is the compilation of its kernels, so that several run side by side."""

Figure = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One process: `arguments` of the interpreter, `{out}` standing for its own empty folder,
    `{seconds}` for those in which to begin new work: it takes half of what earlier parts left over.

    `reserve`: seconds kept free for it; it may use all that later parts do not reserve. `modules`,
    `variables`: packages and environment variables without which it is skipped; so is it without
    the program that it runs `under`, of which the first word is the name. `settings`: environment
    variables of its own.
    """

    name: str
    arguments: Sequence[str]
    reserve: float
    modules: Sequence[str] = ()
    variables: Sequence[str] = ()
    under: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def missing(self, environment: Mapping[str, str]) -> str:
        """Why it cannot run here, or nothing."""
        lacking = [f"{name} is not installed" for name in self.modules if find_spec(name) is None]
        lacking += [f"{name} is unset" for name in self.variables if not environment.get(name)]
        if self.under and not shutil.which(self.under[0], path=environment.get("PATH")):
            lacking.append(f"{self.under[0]} is not on PATH")
        return "; ".join(lacking)

    def command(self, out: Path, limit: float) -> list[str]:
        """What is started; `limit`: the seconds it will have at most."""
        seconds = f"{(self.reserve + limit) / 2 - _TO_END:.0f}"
        places = {"{out}": str(out), "{seconds}": seconds}
        arguments = [_filled(argument, places) for argument in self.arguments]
        return [*self.under, sys.executable, *arguments]


def _filled(argument: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        argument = argument.replace(name, value)
    return argument


@dataclass
class Result:
    """How a part ended: `passed`, `failed`, `out of time` or `skipped`; its reason or output."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    figures: list[Figure] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)


def gpu_parts() -> list[Part]:
    """What runs on a GPU: the tests, then the benchmarks from the kernels up; early on, the kernels
    once more under the memory checker."""
    bench = "fula_fast.bench."
    return [
        Part("tests", ("-m", "pytest", *_tests()), 110),
        Part(
            "kernels",
            ("-m", bench + "kernels", "--out", "{out}/kernels.json", "--seconds", "{seconds}"),
            55,
        ),
        Part("memcheck", ("-m", "pytest", *_watched()), 40, under=_MEMCHECK, settings=_UNPOOLED),
        Part("grid", ("-m", bench + "grid", "--out", "{out}"), 190),
        Part("scale", ("-m", bench + "scale", "--counts", "1,4,16,64,324", "--out", "{out}"), 40),
        Part(
            "attack",
            ("-m", bench + "attack", "--images", "512", "--rounds", "3", "--out", "{out}/a.json"),
            40,
            modules=("pyautoattack", "torchattacks", "torchvision"),
            variables=("FULA_TEST_DATA",),
        ),
        Part(
            "agreement",  # one EOT sample: the reference's twenty equal ones take minutes
            ("-m", bench + "agreement", "--images", "512", "--eot", "1", "--out", "{out}/a.json"),
            25,
            modules=("pyautoattack", "torchvision"),
            variables=("FULA_TEST_DATA",),
        ),
        Part("data", ("-m", bench + "data", "{out}/data.json", "3"), 30, modules=("torchvision",)),
    ]


def _tests() -> list[str]:
    """pytest's arguments: the files that hold such tests, so that no other file's needs matter."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    chosen = [str(f.relative_to(ROOT)) for f in files if "mark.gpu" in f.read_text()]
    several = find_spec("xdist") is not None
    processes = ["-p", "xdist.plugin", f"-n{_PROCESSES}"] if several else []
    return [*_PYTEST, *_OUTCOMES, *processes, *chosen]


def _watched() -> list[str]:
    """pytest's arguments for what runs under the memory checker: every noun's Triton kernels on
    tensors of a few numbers, which `tests` has compiled, and then the C library's."""
    files = ("tests/kernels/test_triton.py", "tests/kernels/cpp/test_library.py")
    return [*_PYTEST, *_OUTCOMES, "-p", "no:xdist", "-k", _SMALL, *files]


def dry_parts() -> list[Part]:
    """The same parts on a CPU: tests collected, the engine's benchmarks tiny, others imported."""
    tiny = "--device cpu --precision fp32 --width 2 --batch 4 --timed 2 --warmup 1 --mode eager"
    size = (*tiny.split(), "--image", "8", "--out", "{out}")
    smaller = {
        "tests": ("-m", "pytest", *_tests(), "--collect-only"),
        "memcheck": ("-m", "pytest", *_watched(), "--collect-only"),
        "grid": ("-m", "fula_fast.bench.suites.grid", "--lanes", "4", *size),
        "scale": ("-m", "fula_fast.bench.suites.scale", "--counts", "1,2", *size),
    }
    return [
        Part(
            part.name,
            smaller.get(part.name, ("-c", f"import fula_fast.bench.{part.name}")),
            part.reserve,
            part.modules,
        )
        for part in gpu_parts()
    ]


def check(parts: Sequence[Part], environment: Mapping[str, str], budget: float) -> Iterator[Result]:
    """Run all parts within `budget` seconds; each is yielded when it has ended."""
    end = time.monotonic() + budget
    for number, part in enumerate(parts):
        reserved = sum(later.reserve for later in parts[number + 1 :])
        limit = max(end - time.monotonic() - reserved, part.reserve)
        reason = part.missing(environment)
        if reason:
            yield Result(part.name, "skipped", detail=reason)
        else:
            yield _run(part, environment, min(limit, max(end - time.monotonic(), 1)))


def _run(part: Part, environment: Mapping[str, str], limit: float) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        log = Path(folder) / "log"
        began = time.monotonic()
        code = _finish(part.command(out, limit), {**environment, **part.settings}, log, limit)
        seconds = round(time.monotonic() - began, 1)
        texts = [log, *sorted(out.glob("*.json"))]
        text, *found = (_placeless(file.read_text(errors="replace"), folder) for file in texts)
    reports = [json.loads(report) for report in found]
    status = "out of time" if code is None else "failed" if code else "passed"
    detail = _last_line(text) if status == "passed" else _tail(text)
    if status == "out of time":
        detail = "\n".join(filter(None, [detail, *map(_so_far, reports)]))
    figures = [row for report in reports for row in figures_of(part.name, report)]
    return Result(part.name, status, seconds, detail, figures, reports)


def _finish(
    command: Sequence[str], environment: Mapping[str, str], log: Path, limit: float
) -> int | None:
    """The command's exit code; None where it ran out of time, with all its processes ended."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the command, and what it started
            process.wait()
            return None


def _placeless(text: str, folder: str) -> str:
    """A result names no path of this machine."""
    for place in (folder, str(ROOT), sys.prefix):
        text = text.replace(place, "…")
    return text


def _so_far(report: Mapping[str, Any]) -> str:
    """A line on the tests of a run that was cut short."""
    if "counts" not in report:
        return ""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report["counts"].items())
    failed = ", ".join(failure["test"] for failure in report["failed"])
    return (
        f"until then: {counts or 'no test had ended'}"
        + (f"; failed: {failed}" if failed else "")
        + (f"; running: {', '.join(report['running'])}" if report["running"] else "")
    )


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_TAIL:])


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def figures_of(part: str, report: Mapping[str, Any]) -> list[Figure]:
    """The figures of a benchmark's JSON: its own `summary`, or what its rows say."""
    if "summary" in report:
        return list(report["summary"])
    rows = report["rows"] if part == "attack" else []
    return [figure for row in rows for figure in _attack_figures(row)]


def _attack_figures(row: Mapping[str, Any]) -> list[Figure]:
    if "speedup" not in row:
        return [
            _figure(f"{row['case']}, times the {other}", row[f"speedup over {name}"], target)
            for name, other, target in (
                ("eager", "eager loop's speed", 3),
                ("torchattacks", "speed of torchattacks", 10),
            )
        ]
    return [
        _figure(
            f"{row['case']}, {name}, times pyautoattack's speed",
            times,
            60 if "bf16" in name else 25,
        )
        for name, times in row["speedup"].items()
    ]


def _figure(name: str, value: float, target: float | None) -> Figure:
    return {"figure": name, "value": value, "target": target}


def table(results: Sequence[Result]) -> str:
    """Every part, and its figures beside the least that they should be."""
    lines = [f"{'part':10}{'result':13}{'seconds':>9}  "]
    for result in results:
        shown = "" if result.figures else _last_line(result.detail)
        lines.append(f"{result.name:10}{result.status:13}{result.seconds:9.1f}  {shown}".rstrip())
        lines += [_figure_line(figure) for figure in result.figures]
    return "\n".join(lines)


def _figure_line(figure: Figure) -> str:
    value, target = figure["value"], figure["target"]
    line = f"{'':10}{figure['figure']:64}{value:12,.3g}"
    if target is None:
        return line
    return f"{line}  target {target:<8.3g}{'met' if value >= target else 'MISSED'}"


_PROBE = """
import json, sys
try:
    import torch
    if not (torch.cuda.is_available() or "--dry-run" in sys.argv):
        print(json.dumps({"problem": "there is no CUDA device that torch can use"}))
        sys.exit()
    import fula_fast.kernels
    import pytest, pytest_benchmark
    from fula_fast.bench.harness.record import device_label, environment
except ModuleNotFoundError as error:
    print(json.dumps({"missing": error.name}))
    sys.exit()
device = "cuda" if torch.cuda.is_available() and "--dry-run" not in sys.argv else "cpu"
print(json.dumps({"label": device_label(device)} | environment(device, "make gpu-check")))
"""


def probe(environment: Mapping[str, str], dry_run: bool) -> dict[str, Any]:
    """What the interpreter sees: hardware and versions, or a `problem`, or a `missing` package."""
    command = [sys.executable, "-c", _PROBE, *(["--dry-run"] if dry_run else [])]
    answer = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        return {"problem": _last_line(answer.stderr)}
    return json.loads(_last_line(answer.stdout))


def link_package(folder: Path) -> Path:
    """The package as an install lays it out, made of links to this checkout; for PYTHONPATH."""
    package = folder / "fula_fast"
    package.mkdir()
    for entry in (ROOT / "fula_fast").iterdir():
        (package / entry.name).symlink_to(entry)
    for name in ("kernels", "pipelines", "bench"):
        (package / name).symlink_to(ROOT / name)
    return folder


def prepared(folder: Path, dry_run: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """An environment in which the package is found, and what `probe` sees there."""
    # Without this the checkout's root comes first, and hides an installed package by its half.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    facts = probe(environment, dry_run)
    if str(facts.get("missing", "")).startswith("fula_fast"):
        paths = [str(link_package(folder)), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        facts = probe(environment, dry_run)
    return environment, facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description="GPU tests and benchmarks within nine minutes")
    parser.add_argument("--dry-run", action="store_true", help="smallest sizes, on a CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        environment, facts = prepared(Path(folder), options.dry_run)
        problem = facts.get("problem") or (
            f"the package {facts['missing']} is missing" if "missing" in facts else ""
        )
        if problem:
            print(f"gpu-check cannot run with {sys.executable}: {problem}", file=sys.stderr)
            return 2
        results: list[Result] = []
        path = options.out / f"gpu-check-{facts['label']}.json"
        for result in check(dry_parts() if options.dry_run else gpu_parts(), environment, BUDGET):
            print(f"{result.name}: {result.status} after {result.seconds:.0f} s", flush=True)
            if result.status in ("failed", "out of time"):
                print(result.detail, flush=True)
            results.append(result)
            save(path, facts, results)
    print(table(results))
    print(path)
    return int(any(result.status in ("failed", "out of time") for result in results))


def save(path: Path, facts: Mapping[str, Any], results: Sequence[Result]) -> Path:
    """The whole check as JSON; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"bench": "gpu-check", **facts, "parts": [asdict(result) for result in results]}
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    return unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
