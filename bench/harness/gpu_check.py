"""Everything that needs a GPU, in plans that end on time: `make gpu-check`.

    python -m bench.harness.gpu_check --plan first      is it right, and what does a step take
    python -m bench.harness.gpu_check --plan second     against the peers; all other tests
    python -m bench.harness.gpu_check --plan dali       the data pipeline of NVIDIA DALI
    python -m bench.harness.gpu_check                   first and second
    python -m bench.harness.gpu_check --dry-run         every part at its smallest, on a CPU

`--only NAMES` runs these parts alone, `--budget SECONDS` is for all together. It runs in the
checkout's root with the interpreter that starts it and installs nothing (`make gpu-visit` prepares
what a bare machine lacks); where the package is not installed it is made importable through a
folder of links. Every part is a process with a time limit, so that one failure stops no other.
Writes `gpu-check-PLAN-GPU.json` and `….tar.gz` (all logs and JSON) into --out, anew every few
seconds, so that a check cut short leaves what it has; prints figures beside their targets.
Exit codes: 0 everything ran; 1 a part failed or ran out of time (a missed target is no failure);
2 there is no CUDA device, or no torch. Standard library only, so that it can say so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import gpu_plans
from .gpu_parts import ROOT, Part, Result, check, last_line
from .gpu_report import figures_of, pack, save, table

_BAD = ("failed", "out of time")


def probe(environment: Mapping[str, str], dry_run: bool) -> dict[str, Any]:
    """What the interpreter sees: see `gpu_probe`."""
    script = Path(__file__).parent / "gpu_probe.py"
    command = [sys.executable, str(script), *(["--dry-run"] if dry_run else [])]
    answer = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        return {"problem": last_line(answer.stderr)}
    return json.loads(last_line(answer.stdout))


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
    # Without the first the checkout's root comes first, and hides an installed package by its half.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment["PYTHONUNBUFFERED"] = "1"  # a log is read while it grows
    environment["PYTHONFAULTHANDLER"] = "1"  # one that runs out of time says where it was
    facts = probe(environment, dry_run)
    if str(facts.get("missing", "")).startswith("fula_fast"):
        paths = [str(link_package(folder)), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        facts = probe(environment, dry_run)
    return environment, facts


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GPU tests and benchmarks, in plans that end")
    parser.add_argument("--plan", choices=(*gpu_plans.PLANS, "all"), default="all")
    parser.add_argument("--only", default="", help="comma-separated names of parts")
    parser.add_argument("--budget", type=float, help="seconds for all parts together")
    parser.add_argument("--dry-run", action="store_true", help="smallest sizes, on a CPU")
    parser.add_argument("--commit", help="of this tree, where git cannot say")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print, write; returns the exit code."""
    options = _options(arguments)
    parts = gpu_plans.chosen(options.plan, options.only.split(",") if options.only else ())
    budget = options.budget or gpu_plans.budget(options.plan)
    with tempfile.TemporaryDirectory() as folder:
        environment, facts = prepared(Path(folder), options.dry_run)
        problem = facts.get("problem") or (
            f"the package {facts['missing']} is missing" if "missing" in facts else ""
        )
        if problem:
            print(f"gpu-check cannot run with {sys.executable}: {problem}", file=sys.stderr)
            return 2
        facts |= {"plan": options.plan, "commit": options.commit or facts["commit"]}
        print(json.dumps(facts, indent=1), flush=True)
        parts = gpu_plans.dry(parts) if options.dry_run else parts
        place = options.out / f"gpu-check-{options.plan}-{facts['label']}"
        results = _run(parts, environment, budget, Path(folder) / "parts", place, facts)
    print(table(results))
    print(f"{place}.json")
    return int(any(result.status in _BAD for result in results))


def _run(
    parts: Sequence[Part],
    environment: Mapping[str, str],
    budget: float,
    folder: Path,
    place: Path,
    facts: Mapping[str, Any],
) -> list[Result]:
    """All parts' results, printed and kept as they come."""
    results: list[Result] = []
    archive, report = place.with_name(place.name + ".tar.gz"), place.with_name(place.name + ".json")
    keep = partial(pack, folder, archive)
    folder.mkdir()
    save(report, facts, results)
    for result in check(parts, environment, budget, folder, keep):
        print(f"{result.name}: {result.status} after {result.seconds:.0f} s", flush=True)
        if result.status in _BAD:
            print(result.detail, flush=True)
        found = [figure for row in result.reports for figure in figures_of(result.name, row)]
        result.figures = found
        results.append(result)
        save(report, facts, results)
        keep()
    return results


if __name__ == "__main__":
    sys.exit(main())
