"""Does bfloat16 change a study's result? The same grid twice: bf16 compiled, and fp32 eager.

    python -m fula_fast.bench.suites.precision --data data/cifar10        JSON and a table
    python -m fula_fast.bench.suites.precision --data DATA --images 2000 --sites 1,9   smaller

CIFAR-10, two ResNet-18 of width 16 trained to at least 80%, sites x {hint, slm, tlm, fula} x seeds.
A cell has the same start, order, crops and flips in both runs. Reported: the differences in test
accuracy between the precisions, beside the spread between seeds of one precision.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fula_fast
from fula_fast.bench.harness.peer import METHODS
from fula_fast.bench.harness.record import RESULTS, device_label, environment, write

WAYS = {
    "fp32-eager": {"precision": "fp32", "mode": "eager"},
    "bf16-compiled": {"precision": "bf16", "mode": "compiled"},
}
Row = Mapping[str, Any]
Key = tuple[int, str, int]


def spec(options: argparse.Namespace, engine: Mapping[str, str]) -> dict[str, Any]:
    """The grid as a sweep's dictionary."""
    data = {"source": "cifar10", "data_dir": str(options.data)}
    donor = {"model": "resnet18", "width": 16, "epochs": 10, "min_accuracy": 0.80, "data": data}
    return {
        "name": "precision",
        "data": data | {"train_images": options.images},
        "donors": {"a": donor | {"seed": 0}, "b": donor | {"seed": 1}},
        "grid": {
            "front": ["a"],
            "end": ["b"],
            "sites": options.sites,
            "methods": list(METHODS),
            "seeds": list(range(options.seeds)),
        },
        "protocol": {"epochs": options.epochs},
        "engine": {"device": options.device, **engine},
    }


def accuracies(options: argparse.Namespace, way: str, folder: Path) -> dict[Key, float]:
    """Test accuracy of every cell by (site, method, seed)."""
    out = folder / way
    results = fula_fast.sweep(spec(options, WAYS[way]), out=out)
    modes = {(row["precision"], row["engine_mode"]) for row in results.rows}
    if modes != {tuple(WAYS[way].values())}:
        raise RuntimeError(f"{way} ran as {modes}")
    return {(r["end_site"], r["method"], r["seed"]): r["accuracy"] for r in results.rows}


def compared(found: Mapping[str, Mapping[Key, float]]) -> list[dict[str, Any]]:
    """A row for every site and method: mean accuracies, differences, spread between seeds."""
    exact, fast = (found[way] for way in WAYS)
    rows = []
    for site, method in sorted({key[:2] for key in exact}):
        keys = [key for key in sorted(exact) if key[:2] == (site, method)]
        rows.append(
            {
                "site": site,
                "method": method,
                "fp32": mean(exact[k] for k in keys),
                "bf16": mean(fast[k] for k in keys),
                "largest_difference": max(abs(exact[k] - fast[k]) for k in keys),
                "mean_difference": mean(fast[k] - exact[k] for k in keys),
                "seed_deviation": pstdev(exact[k] for k in keys),
            }
        )
    return rows


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Over all sites and methods."""
    return {
        "mean_absolute_difference_of_means": mean(abs(r["mean_difference"]) for r in rows),
        "mean_largest_difference": mean(r["largest_difference"] for r in rows),
        "largest_difference": max(r["largest_difference"] for r in rows),
        "mean_seed_deviation": mean(r["seed_deviation"] for r in rows),
        "bias": mean(r["mean_difference"] for r in rows),
    }


def _table(rows: Sequence[Row], console: Console) -> None:
    names = ("site", "method", "fp32", "bf16", "mean difference", "largest", "seeds' deviation")
    table = Table(*names)
    for r in rows:
        values = (r["mean_difference"], r["largest_difference"], r["seed_deviation"])
        shown = [f"{100 * r['fp32']:.2f}", f"{100 * r['bf16']:.2f}"]
        table.add_row(str(r["site"]), r["method"], *shown, *(f"{100 * v:+.2f}" for v in values))
    console.print(table)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="bf16 against fp32: accuracy of the same cells")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: folder or archive")
    parser.add_argument("--sites", type=_numbers, default="1,3,5,7,9")
    parser.add_argument("--images", type=int, default=10_000, help="of the training set")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    sites = ",".join(map(str, options.sites))
    command = (
        f"python -m fula_fast.bench.suites.precision --data DATA --sites {sites} "
        f"--images {options.images} --epochs {options.epochs} --seeds {options.seeds}"
    )
    with tempfile.TemporaryDirectory() as folder:
        found = {way: accuracies(options, way, Path(folder)) for way in WAYS}
    rows = compared(found)
    report = environment(options.device, command) | {
        "bench": "precision",
        "rows": rows,
        "summary": summary(rows),
    }
    console = Console()
    _table(rows, console)
    console.print(report["summary"])
    place = options.out / f"precision-{device_label(options.device)}.json"
    console.print(f"{write(place, report)}")


if __name__ == "__main__":
    main()
