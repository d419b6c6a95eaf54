"""Cells per hour of several workers against the ideal, what a worker and a wave cost beside their
work, and a simulation of many.

    python -m fula_fast.bench.suites.scale_out                one and two workers, and the rest
    python -m fula_fast.bench.suites.scale_out --only simulated    (measures the overheads first)

`measured`: one grid by one process, by two workers, and twice by two processes side by side that
share nothing, each with one thread, each three times. Efficiency is the time of one over twice that
of two, start of workers included; what two cores lose to each other (memory, clock) is in it, and
is not in the second figure, the time of the pair that shares nothing over twice that of two.
Target: 0.95 on two cores. `overhead`: what the folder costs a wave of a run of so many waves
(taking it, storing one row), and the time from the start of a worker to its first wave; both are of
the worker, whichever engine starts it. `simulated`: the planner's own waves, dealt out by list
scheduling at the rate of one GPU (`--flops-per-s`), with the overheads measured: no cluster was
there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from fula_fast.bench.harness.record import RESULTS, environment, quantiles, write
from fula_fast.models import build, save_checkpoint
from fula_fast.store import Store
from fula_fast.store.writers import Writers
from fula_fast.study.plan import Plan, plan, plan_here
from fula_fast.study.schedule import schedule
from fula_fast.study.spec import load_spec

Row = dict[str, Any]
METHODS = ["hint", "slm", "tlm", "fula"]
PARTS = ("measured", "overhead", "simulated")
WORKERS = (1, 2, 8, 32, 128, 512, 1000)
SEEDS = (1, 3, 31, 309, 3087)
"""Of 324 cells each: 10² to 10⁶."""
H100_FLOPS = 2.67e14
"""A 324-lane step's FLOPs over its seconds, measured (`grid-nvidia-h100-80gb-hbm3.json`)."""


def spec_of(folder: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """A grid of 36 cells a seed on images of 16 x 16, with untrained donors in `folder`."""
    donors = {name: {"checkpoint": str(folder / f"{name}.safetensors")} for name in "ab"}
    for donor in donors.values():
        model = build("resnet18", num_classes=10, input_shape=(3, 16, 16), width=8)
        save_checkpoint(model.eval(), donor["checkpoint"])
    return {
        "data": {"source": "digits", "size": 16},
        "donors": donors,
        "grid": {
            "front": "a", "end": "b", "sites": "same", "methods": METHODS,
            "seeds": list(range(seeds)),
        },
        "protocol": {"epochs": epochs, "batch_size": 128, "crop_padding": 1},
        "engine": {"device": "cpu", "precision": "fp32", "mode": "eager"},
    }  # fmt: skip


def measured(epochs: int, seeds: int, rounds: int) -> list[Row]:
    """The same grid by one process, by two workers, and by two processes apart, in turn."""
    seconds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    with tempfile.TemporaryDirectory(prefix="fula-scale-out-") as scratch:
        folder = Path(scratch)
        spec = folder / "spec.toml"
        spec.write_text(tomli_w.dumps(spec_of(folder, epochs, seeds)))
        for number in range(rounds):
            names = {"one": ["one"], "two": ["two"], "apart": ["left", "right"]}
            for kind, taken in seconds.items():
                runs = [folder / f"{name}-{number}" for name in names[kind]]
                taken.append(_sweep(spec, runs, 2 if kind == "two" else 1))
                for run in runs:
                    _check(run, 36 * seeds)
    return _rows(seconds, 36 * seeds)


def _check(run: Path, cells: int) -> None:
    if (done := len(Store.open(run).done())) != cells:
        raise RuntimeError(f"{done} of {cells} cells are done in {run}")


def _rows(seconds: dict[str, list[float]], cells: int) -> list[Row]:
    """Rates of one and of two workers, and the efficiencies."""
    rows: list[Row] = []
    for workers, kind in ((1, "one"), (2, "two")):
        rate = quantiles([3600 * cells / s for s in seconds[kind]])
        taken = quantiles(seconds[kind])
        rows.append({"workers": workers, "cells": cells, "seconds": taken, "cells_per_hour": rate})
    for figure, kind in (
        ("efficiency of two workers", "one"),
        ("the same against two processes that share nothing", "apart"),
    ):
        pairs = zip(seconds[kind], seconds["two"], strict=True)
        value = quantiles([other / (2 * two) for other, two in pairs])
        rows.append({"figure": figure, "value": value, "target": 0.95})
    return rows


def _sweep(spec: Path, runs: Sequence[Path], workers: int) -> float:
    """Seconds until the sweeps into `runs`, side by side, have ended."""
    began = time.perf_counter()
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fula_fast",
                "sweep",
                str(spec),
                "--out",
                str(run),
                "--workers",
                str(workers),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for run in runs
    ]
    ends = [process.wait() for process in started]
    if any(ends):
        raise RuntimeError(f"a sweep of {[run.name for run in runs]} failed")
    return time.perf_counter() - began


def overhead(counts: Sequence[int] = (10, 100, 1000)) -> list[Row]:
    """What the folder costs a wave, and the time from the start of a worker to its first wave."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fula-scale-out-") as scratch:
        folder = Path(scratch)
        for count in counts:
            store, planned = _run_of(folder / f"run-{count}", spec_of(folder, 1, 1), count)
            rows.append({"waves": count, "seconds_a_wave": quantiles(_waves(store, planned))})
        starts = [_start(folder / f"start-{k}", spec_of(folder, 1, 1)) for k in range(3)]
    return [*rows, {"engine": "local", "seconds_of_a_start": quantiles(starts)}]


def _solo(table: Row, waves: int) -> Row:
    """The spec of so many waves of one cell."""
    grid = {"sites": [[5, 5]], "methods": ["hint"], "seeds": list(range(waves))}
    return table | {"grid": table["grid"] | grid, "engine": {"device": "cpu", "executor": "solo"}}


def _run_of(folder: Path, table: Row, waves: int) -> tuple[Store, Plan]:
    """A run's folder with so many waves, of which none is done."""
    spec = load_spec(_solo(table, waves))
    planned = plan_here(spec)
    return Store.create(folder, spec.dump(), *planned.stored()), planned


def _waves(store: Store, planned: Plan) -> list[float]:
    """Seconds of taking each wave and of storing its row."""
    taken = []
    for wave in planned.waves:
        began = time.perf_counter()
        if not store.writers.claim(wave.id):
            raise RuntimeError(f"wave {wave.id} is taken")
        store.settled(None)
        store.write(
            wave.id, [{"cell": id_, "status": "ok", "accuracy": 0.5} for id_ in wave.cells.ids]
        )
        taken.append(time.perf_counter() - began)
    return taken


def _start(folder: Path, table: Row) -> float:
    """Seconds from a worker's start until it takes its first wave."""
    spec, notes = folder.with_suffix(".toml"), Writers(folder / "writers").alive
    spec.write_text(tomli_w.dumps(_solo(table, 2)))
    began = time.perf_counter()
    worker = subprocess.Popen(
        [sys.executable, "-m", "fula_fast", "sweep", str(spec), "--out", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not any(note["wave"] for note in notes()):
        if worker.poll() is not None:
            raise RuntimeError(f"the worker ended without a wave: {worker.communicate()[1]}")
        time.sleep(0.01)
    taken = time.perf_counter() - began
    worker.terminate()
    worker.communicate()
    return taken


def simulated(flops_per_s: float, wave_s: float, start_s: float) -> list[Row]:
    """The planner's waves on so many workers: hours, efficiency, idle and paid hours."""
    rows = []
    for seeds in SEEDS:
        for workers in WORKERS:
            planned = plan(load_spec(_full_grid(seeds)), device="cuda", precision="bf16",
                           budget=60 << 30, workers=workers)  # fmt: skip
            costs = [wave.flops / flops_per_s + wave_s for wave in planned.waves]
            found = schedule(costs, workers)
            hours = (found.makespan + start_s) / 3600
            idle = workers * hours - sum(costs) / 3600
            rows.append({
                "cells": len(planned.cells), "workers": workers, "waves": len(costs),
                "hours": hours, "efficiency": found.efficiency, "idle_worker_hours": idle,
                "worker_hours": workers * hours,
            })  # fmt: skip
    return rows


def _full_grid(seeds: int) -> dict[str, Any]:
    """9 x 9 sites, four methods: the grid of the published figures, of so many seeds."""
    donors = {n: {"model": "resnet18", "seed": s} for s, n in enumerate("ab")}
    return {
        "data": {"source": "cifar10"},
        "donors": donors,
        "grid": {
            "front": "a", "end": "b", "sites": "all-pairs", "methods": METHODS,
            "seeds": list(range(seeds)),
        },
        "engine": {"device": "cpu"},
    }  # fmt: skip


def run(parts: Sequence[str], out: Path, options: argparse.Namespace) -> list[Path]:
    """Do the parts; a file under `out` for what was measured, and one for what is simulated (with
    the overheads that it was simulated with), after each part."""
    write_part = partial(_write, out, environment("cpu", ""))  # with the load before the work
    paths = []
    if "measured" in parts:
        sizes = {name: getattr(options, name) for name in ("epochs", "seeds", "rounds")}
        given = " ".join(f"--{name} {value}" for name, value in sizes.items())
        paths.append(write_part(f"--only measured {given}", measured=measured(**sizes)))
    if "overhead" in parts:
        paths.append(write_part("--only overhead", overhead=overhead()))
    if "simulated" in parts:
        rows, rate = overhead(), options.flops_per_s
        names = "seconds_a_wave", "seconds_of_a_start"
        beside = {name: row[name]["p50"] for row in rows for name in names if name in row}
        found = {
            "note": "a simulation: the planner's waves dealt out by list scheduling",
            "flops_per_s": rate, **beside, "rows": simulated(rate, *beside.values()),
        }  # fmt: skip
        how = f"--only simulated --flops-per-s {rate:g}"
        paths.append(write_part(how, simulated=found, overhead=rows))
    return paths


def _write(out: Path, place: Row, how: str, **found: Any) -> Path:
    command = {"command": f"python -m fula_fast.bench.suites.scale_out {how}"}
    report = {"bench": "scale-out", **place, **command, **found}
    return write(out / f"scale-out-{next(iter(found))}-cpu.json", report)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="several workers against one")
    parser.add_argument("--only", default="measured,simulated", help="of " + ", ".join(PARTS))
    parser.add_argument("--epochs", type=int, default=30, help="of the measured grid")
    parser.add_argument("--seeds", type=int, default=2, help="of the measured grid, 36 cells each")
    parser.add_argument("--rounds", type=int, default=3, help="of the measured grid")
    parser.add_argument("--flops-per-s", type=float, default=H100_FLOPS, help="of a simulated GPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    print(*run(options.only.split(","), options.out, options), sep="\n")


if __name__ == "__main__":
    main()
