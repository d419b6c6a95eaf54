"""What plans and tables of up to a million cells take: time, memory, bytes on disk.

    python -m fula_fast.bench.suites.planner               JSON and a table
    python -m fula_fast.bench.suites.planner --cells 10000,100000 --rounds 1

`plans`: grids of several forms, about so many cells each. `reading`: a stored plan, opened for one
wave, and for the ids of all cells. `tables`: results.parquet and .csv from synthetic rows of the
usual columns, in shards of a plan's waves; reading the shards is part of it. Every round runs in a
process of its own; memory is its peak above what the imports took.

Targets for 10⁶ cells: planned in 10 s and 1 GB, stored in 30 MB; tables in 60 s; a first look of
`status` in 5 s.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fula_fast.bench.harness.record import (
    RESULTS,
    PeakMemory,
    environment,
    isolated,
    quantiles,
    write,
)
from fula_fast.store import Store
from fula_fast.store.activity import status_of
from fula_fast.store.shards import folder_of, next_stem, write_shard
from fula_fast.store.tables import table
from fula_fast.study.cells import Cells
from fula_fast.study.plan import Plan, plan
from fula_fast.study.spec import load_spec

Row = dict[str, Any]
CELLS = (10_000, 100_000, 1_000_000)
METHODS = ["hint", "slm", "tlm", "fula"]
BUDGET = 60 << 30
TARGETS = {
    "seconds to plan": 10.0,
    "bytes to plan": 1e9,
    "bytes stored": 30e6,
    "table seconds": 60.0,
    "status seconds": 5.0,
}
"""At a million cells."""


def _grid(**grid: Any) -> Row:
    donors = {name: {"model": "resnet18", "seed": seed} for seed, name in enumerate("ab")}
    grid = {"front": "a", "end": "b", "sites": "all-pairs", "methods": METHODS} | grid
    return {"data": {"source": "cifar10"}, "donors": donors, "grid": grid}


def seeds(cells: int) -> Row:
    """9 x 9 sites, four methods, many seeds."""
    return _grid(seeds=list(range(ceil(cells / 324))))


def settings(cells: int) -> Row:
    """The same under attack shares, subsets and axes of the protocol, with fewer seeds."""
    axes = {"lr": [1e-3, 1e-2], "weight_decay": [0.0, 1e-4], "bn": ["train", "eval"]}
    shares = {"alpha": [0.0, 0.5], "subset": [5, "all"]}
    return _grid(seeds=list(range(ceil(cells / 324 / 32))), axes=axes, **shares)


def donors(cells: int) -> Row:
    """Every pair of many donors, one method."""
    names = [f"d{k}" for k in range(ceil((cells / 81) ** 0.5))]
    found = _grid(front=names, end=names, methods=["hint"])
    return found | {"donors": {n: {"model": "resnet18", "seed": k} for k, n in enumerate(names)}}


def protocols(cells: int) -> Row:
    """One pair, one method, many learning rates."""
    rates = [1e-5 * k for k in range(1, ceil(cells / 81) + 1)]
    return _grid(methods=["hint"], axes={"lr": rates})


FORMS: dict[str, Callable[[int], Row]] = {
    form.__name__: form for form in (seeds, settings, donors, protocols)
}


def planned(form: str, cells: int, workers: int) -> Plan:
    """The plan of a grid."""
    spec = load_spec(FORMS[form](cells))
    return plan(spec, budget=BUDGET, precision="bf16", workers=workers)


def timed(function: Callable[[], Any]) -> tuple[Any, Row]:
    """What it returns; its seconds on the clock and of the processor."""
    wall, own = time.perf_counter(), time.process_time()
    found = function()
    return found, {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - own}


def plan_once(form: str, cells: int, workers: int) -> Row:
    """Plan and store a grid."""
    load_spec(FORMS[form](1))
    memory = PeakMemory("cpu")
    found, took = timed(lambda: planned(form, cells, workers))
    peak = memory.bytes()
    with tempfile.TemporaryDirectory(prefix="fula-planner-") as scratch:
        folder = Path(scratch) / "run"
        _, storing = timed(lambda: Store.create(folder, {}, *found.stored()))
        size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "cells": len(found.lanes), "waves": len(found.waves), "plan": took, "plan_bytes": peak,
        "store": storing, "store_bytes": memory.bytes(), "stored_bytes": size,
    }  # fmt: skip


def read_once(folder: Path) -> Row:
    """Open a stored plan, make the cells of one wave, then know all ids."""
    memory = PeakMemory("cpu")
    store, opening = timed(lambda: Store.open(folder))
    found, waves = timed(lambda: Plan.from_stored(store.plan, store.planned))
    cells, wave = timed(lambda: tuple(found.waves[len(found.waves) // 2].cells))
    peak = memory.bytes()
    _, ids = timed(store.missing)
    return {
        "open": opening, "waves": waves, "wave": wave | {"cells": len(cells)},
        "wave_bytes": peak, "all_ids": ids, "all_ids_bytes": memory.bytes(),
    }  # fmt: skip


def write_rows(folder: Path, found: Plan) -> None:
    """A shard of made-up rows for every wave."""
    store, draw = Store.open(folder), np.random.default_rng(0)
    for wave in found.waves:
        rows = list(rows_of(wave.cells, draw))
        stem = next_stem((), wave.id, rows)
        path = folder / "cells" / folder_of(wave.id) / f"{stem}.json"
        write_shard(path, store.id, wave.id, rows, None)


_SAME = {
    "front_accuracy": 0.9331, "end_accuracy": 0.9412, "front_sites": 9, "end_sites": 9,
    "front_hash": "ab" * 32, "end_hash": "cd" * 32, "device": "a GPU", "precision": "bf16",
    "status": "ok", "error": None, "bn": "train", "epochs": 30, "engine_mode": "captured",
    **{f"version_{k}": "2.11.0" for k in ("fula_fast", "python", "torch", "triton", "numpy")},
}  # fmt: skip
_DRAWN = (
    "accuracy", "agreement_top1", "agreement_right_wrong", "agreement_soft", "kappa", "loss",
    "term_stitch", "train_seconds", "shortcut_accuracy", "end_loss",
)  # fmt: skip


def rows_of(cells: Cells, draw: np.random.Generator) -> Sequence[Row]:
    """Rows as a sweep writes them, with drawn numbers."""
    numbers = draw.random((len(cells), len(_DRAWN))).tolist()
    return [
        _SAME | dict(zip(_DRAWN, own, strict=True)) | {
            "cell": c.id, "front": c.front, "end": c.end, "front_site": c.front_site,
            "end_site": c.end_site, "method": c.method, "protocol": c.protocol.preset,
            "alpha": c.alpha, "shortcut": c.shortcut_label, "subset": c.subset, "seed": c.seed,
            "data_seed": c.data_seed, "weighting": c.weighting,
        }
        for c, own in zip(cells, numbers, strict=True)
    ]  # fmt: skip


def tables_once(folder: Path) -> Row:
    """Rebuild the tables as a new process does, and ask how the run stands."""
    table(())  # imports what writes them
    memory = PeakMemory("cpu")
    store = Store.open(folder)
    _, took = timed(store.write_tables)
    peak = memory.bytes()
    found, status = timed(lambda: status_of(Store.open(folder)))
    _, again = timed(lambda: status_of(store))
    files = {path.suffix[1:]: path.stat().st_size for path in folder.glob("results.*")}
    return {"rows": found.done, "tables": took, "tables_bytes": peak, "files": files,
            "status": status, "status_again": again}  # fmt: skip


def tables(cells: int, rounds: int) -> Row:
    """Reading and tables of one run of that size."""
    with tempfile.TemporaryDirectory(prefix="fula-planner-") as scratch:
        folder = Path(scratch) / "run"
        found = planned("seeds", cells, 1)
        Store.create(folder, {}, *found.stored())
        reading = [isolated(read_once, folder) for _ in range(rounds)]
        write_rows(folder, found)
        return {
            "cells": len(found.lanes),
            "reading": spread(reading),
            "tables": spread([isolated(tables_once, folder) for _ in range(rounds)]),
        }


def spread(rounds: Sequence[Row]) -> Row:
    """Rounds as one row: quantiles of times, the largest number of bytes, else what all say."""
    found: Row = {}
    for name, value in rounds[0].items():
        values = [each[name] for each in rounds]
        if name in ("seconds", "cpu"):
            found[name] = quantiles(values)
        elif isinstance(value, dict):
            found[name] = spread(values)
        else:
            found[name] = max(values)
    return found


def run(cells: Sequence[int], rounds: int, workers: int, out: Path) -> Row:
    """All parts at all sizes; writes `planner-cpu.json` under `out` after each."""
    sizes = ",".join(map(str, cells))
    command = f"python -m fula_fast.bench.suites.planner --cells {sizes} --rounds {rounds}"
    report = {"bench": "planner", **environment("cpu", f"{command} --workers {workers}")}
    report |= {"targets": TARGETS, "workers": workers, "plans": [], "tables": []}
    for count in cells:
        for form in FORMS:
            found = [isolated(plan_once, form, count, workers) for _ in range(rounds)]
            report["plans"].append({"form": form} | spread(found))
            write(out / "planner-cpu.json", report)
        report["tables"].append(tables(count, rounds))
        write(out / "planner-cpu.json", report)
    return report


def shown(report: Row) -> Table:
    """A row for each grid and size."""
    found = Table(title="plans and tables: processor seconds (p50), MB of memory, MB on disk")
    for heading in ("what", "cells", "seconds", "memory", "on disk"):
        found.add_column(heading, justify="left" if heading == "what" else "right")
    for row in report["plans"]:
        sizes = (f"{row[name] / 1e6:,.0f}" for name in ("plan_bytes", "stored_bytes"))
        took = f"{row['plan']['cpu']['p50']:.2f} + {row['store']['cpu']['p50']:.2f}"
        found.add_row(f"plan + store, {row['form']}", f"{row['cells']:,}", took, *sizes)
    for row in report["tables"]:
        part = row["tables"]
        took = f"{part['tables']['cpu']['p50']:.1f}"
        sizes = (f"{n / 1e6:,.0f}" for n in (part["tables_bytes"], sum(part["files"].values())))
        found.add_row("tables", f"{row['cells']:,}", took, *sizes)
        looks = (f"{part[name]['cpu']['p50']:.1f}" for name in ("status", "status_again"))
        found.add_row("status, first look and the next", f"{row['cells']:,}", " + ".join(looks))
        wave = row["reading"]
        took = f"{sum(wave[name]['cpu']['p50'] for name in ('open', 'waves', 'wave')):.2f}"
        found.add_row(
            "one wave read", f"{row['cells']:,}", took, f"{wave['wave_bytes'] / 1e6:,.0f}"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default=",".join(map(str, CELLS)), help="sizes of grids")
    parser.add_argument("--rounds", type=int, default=3, help="of each")
    parser.add_argument("--workers", type=int, default=16, help="that end together")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    cells = [int(size) for size in options.cells.split(",")]
    Console().print(shown(run(cells, options.rounds, options.workers, options.out)))


if __name__ == "__main__":
    main()
