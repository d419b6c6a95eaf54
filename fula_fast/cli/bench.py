"""`fula-fast bench`: the suite in `fula_fast.bench`, run by pytest-benchmark."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import FulaError, nearest


def bench_files() -> dict[str, Path]:
    """The suite's modules that hold benchmarks, by name."""
    from .. import bench

    folders = [Path(folder) for folder in bench.__path__]
    files = (file for folder in folders for file in sorted((folder / "suites").glob("*.py")))
    return {file.stem: file for file in files if "\ndef bench_" in file.read_text()}


def run_benchmarks(
    name: str | None = None, *, compare: Path | None = None, save: Path | None = None
) -> int:
    """Run one benchmark module, or all; returns 0 when every one of them ran.

    `compare`, `save`: JSON files of pytest-benchmark. Raises `FulaError` for an unknown name, a
    missing file, and where pytest-benchmark is not installed.
    """
    files = bench_files()
    if name is not None and name not in files:
        raise FulaError(f"unknown benchmark '{name}'{nearest(name, files)}")
    if find_spec("pytest_benchmark") is None:
        raise FulaError("bench needs pytest-benchmark: pip install 'fula-fast[test]'")
    if compare is not None and not compare.is_file():
        raise FulaError(f"no results file {compare}; make one with --save")
    chosen = [files[name]] if name else list(files.values())
    return subprocess.run(_pytest(chosen, compare, save), check=False).returncode


def _pytest(files: list[Path], compare: Path | None, save: Path | None) -> list[str]:
    """The command; it reads no project's pytest settings, so that a wheel gives the same run."""
    root = files[0].parent
    options = ["--benchmark-only", "--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
    options += ["-c", "/dev/null", f"--rootdir={root}"]
    options += ["-o", "python_files=*.py", "-o", "python_functions=bench_* test_*"]
    options += ["--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=name"]
    options += [f"--benchmark-compare={compare.absolute()}"] if compare else []
    options += [f"--benchmark-json={save.absolute()}"] if save else []
    return [sys.executable, "-m", "pytest", *options, *map(str, files)]
