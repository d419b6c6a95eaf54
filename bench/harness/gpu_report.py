"""What the GPU check says and keeps: a table, one JSON, one archive. Standard library only.

A machine that is lent may give back only a few files: everything lies in two.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .gpu_parts import Figure, Result, last_line

PGD_TARGETS = {"ours": 1.2, "ours tf32": 3, "ours bf16": 3}
"""PGD-10, times the eager loop's speed: exact float32 is bound by its convolutions."""
RAND_TARGETS = {"8/255": 35, "1/255": 35, "0.25/255": 18}
"""AutoAttack "rand" in exact float32, times pyautoattack's speed, by eps."""


def figures_of(part: str, report: Mapping[str, Any]) -> list[Figure]:
    """The figures of a benchmark's JSON: its own `summary`, or what its rows say."""
    if "summary" in report:
        return list(report["summary"])
    rows = report.get("rows", []) if part == "attack" else []
    return [figure for row in rows for figure in _attack_figures(row)]


def _attack_figures(row: Mapping[str, Any]) -> list[Figure]:
    case = row["case"]
    if "speedup" not in row:
        found = [
            _figure(f"{case}, {name}, times the eager loop's speed", times, PGD_TARGETS.get(name))
            for name, times in row["speedup over eager"].items()
        ]
        theirs = row["speedup over torchattacks"]
        return [*found, _figure(f"{case}, times the speed of torchattacks", theirs, None)]
    least = RAND_TARGETS.get(case.rpartition(" ")[2])
    return [
        _figure(
            f"{case}, {name}, times pyautoattack's speed", times, least if name == "ours" else None
        )
        for name, times in row["speedup"].items()
    ]


def _figure(name: str, value: float, target: float | None) -> Figure:
    return {"figure": name, "value": value, "target": target}


def table(results: Sequence[Result]) -> str:
    """Every part, and its figures beside the least that they should be."""
    lines = [f"{'part':16}{'result':13}{'seconds':>9}  "]
    for result in results:
        shown = "" if result.figures else last_line(result.detail)[:160]
        lines.append(f"{result.name:16}{result.status:13}{result.seconds:9.1f}  {shown}".rstrip())
        lines += [_figure_line(figure) for figure in result.figures]
    return "\n".join(lines)


def _figure_line(figure: Figure) -> str:
    value, target = figure["value"], figure["target"]
    line = f"{'':16}{figure['figure']:64}{value:12,.3g}"
    if target is None:
        return line
    return f"{line}  target {target:<8.3g}{'met' if value >= target else 'MISSED'}"


def save(path: Path, facts: Mapping[str, Any], results: Sequence[Result]) -> Path:
    """The whole check as JSON; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"bench": "gpu-check", **facts, "parts": [asdict(result) for result in results]}
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    return unfinished.replace(path)


def pack(folder: Path, path: Path) -> Path:
    """All logs and JSON so far in one archive, in place of the one before at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with tarfile.open(unfinished, "w:gz", compresslevel=3) as archive:
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".txt", ".json"):
                archive.add(file, file.relative_to(folder))
    return unfinished.replace(path)
