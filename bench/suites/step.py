"""One training step of the grid, captured: five timed replays, and one replay by kernel.

    python -m fula_fast.bench.suites.step --way plain --model
    python -m fula_fast.bench.suites.step --way compiled --counts 36

`--way plain` runs a stage's operators as they are, `compiled` each through `torch.compile`; on CUDA
both are captured in one graph. Prints the kernels of a replay, the longest first, beside the parts
that `bench.suites.roofline` models. The JSON is written as figures come (times, kernels, and for
all numbers of lanes at the end the model), so that a run cut short leaves them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fula_fast.bench.harness.record import (
    RESULTS,
    PeakMemory,
    environment,
    parser_of,
    quantiles,
    seconds_of,
    write,
)
from fula_fast.bench.harness.workload import (
    OurWave,
    Setting,
    add_options,
    as_in_a_sweep,
    command_of,
    grid_cells,
    setting_of,
)
from fula_fast.bench.suites import roofline
from fula_fast.engine.modes import CompiledRunner
from fula_fast.engine.network import Runner, run_plain

WAYS: dict[str, Callable[[], Runner]] = {"plain": lambda: run_plain, "compiled": CompiledRunner}
SHOWN = 40
"""Kernels in a table."""
Row = dict[str, Any]


def measure(setting: Setting, way: str) -> Iterator[Row]:
    """The row of this number of lanes: with its times, then with its kernels."""
    memory, started = PeakMemory(setting.device), time.perf_counter()
    ours = OurWave(setting, grid_cells(setting.lanes), WAYS[way]())
    _say(setting, started, "wave built")
    step = ours.stepping(full=False)
    step(0)
    _say(setting, started, f"first step taken, {ours.stepper.mode}")
    row: Row = {
        "lanes": setting.lanes,
        "way": way,
        "mode": ours.mode,
        "first_step_seconds": time.perf_counter() - started,
    }
    taken = seconds_of(step, setting.timed, setting.device, setting.warmup - 1)
    row |= {"seconds": quantiles(taken), "peak_bytes": memory.bytes()}
    # what runs now, not what was asked for: a refused capture goes on without a graph
    row["mode"] = ours.stepper.mode
    yield row
    row["kernels"] = kernels_of(partial(step, 0), setting.device)
    yield row


def _say(setting: Setting, started: float, what: str) -> None:
    """How far it is, for the log of a run that is cut short."""
    print(f"{setting.lanes} lanes, {time.perf_counter() - started:.1f} s: {what}", flush=True)


def kernels_of(step: Callable[[], object], device: str) -> list[Row]:
    """What one step ran on the device, by name, the longest first: calls and microseconds."""
    cuda = device != "cpu"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as recorder:
        step()
        if cuda:
            torch.cuda.synchronize()
    time_of = "self_device_time_total" if cuda else "self_cpu_time_total"
    found = [
        {"kernel": event.key, "calls": event.count, "us": getattr(event, time_of)}
        for event in recorder.key_averages()
    ]
    return sorted(found, key=lambda row: -row["us"])


def modelled(setting: Setting) -> Row:
    """The same step as the roofline model has it."""
    return roofline.report(roofline.measure(replace(setting, device="cuda")))


def table(row: Row) -> str:
    """Kernels, and the model's parts."""
    kernels = row["kernels"]
    total = sum(k["us"] for k in kernels) / 1e3
    lines = [
        f"{row['lanes']} lanes, {row['way']}, {row['mode']}: {row['seconds']['p50'] * 1e3:.2f} ms "
        f"a step, {total:.2f} ms in {sum(k['calls'] for k in kernels)} kernels",
        f"{'kernel':72}{'calls':>7}{'ms':>9}",
    ]
    lines += [f"{k['kernel'][:71]:72}{k['calls']:7}{k['us'] / 1e3:9.3f}" for k in kernels[:SHOWN]]
    model = row.get("model")
    if not model:
        return "\n".join(lines)
    lines += [f"model: {model['line']}", f"{'part':72}{'kernels':>7}{'ms':>9}"]
    lines += [
        f"{part:72}{found['kernels']:7}{found['seconds'] * 1e3:9.3f}"
        for part, found in model["parts"].items()
    ]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Milliseconds of a step, measured and modelled; no targets: less is better."""
    found = []
    for row in rows:
        name = f"{row['lanes']} lanes, {row['way']}, {row['mode']}"
        found.append(_figure(f"{name}, ms a step", row["seconds"]["p50"] * 1e3))
        found.append(_figure(f"{name}, s until the first step", row["first_step_seconds"]))
        if row.get("model"):
            found.append(_figure(f"{name}, ms modelled", row["model"]["total"]["seconds"] * 1e3))
    return found


def _figure(name: str, value: float) -> Row:
    return {"figure": name, "value": value, "target": None}


def run(settings: Sequence[Setting], way: str, model: bool) -> Iterator[list[Row]]:
    """The rows so far: all that is measured, and then, where asked, the model beside it."""
    rows: list[Row] = []
    for setting in settings:
        rows.append({})
        with as_in_a_sweep(setting):
            for rows[-1] in measure(setting, way):
                yield rows
    for setting, row in zip(settings, rows, strict=True) if model else ():
        row["model"] = modelled(setting)
        yield rows


def main(arguments: Sequence[str]) -> None:
    """Measure every number of lanes, print, write."""
    parser = parser_of(__doc__)
    add_options(parser)
    parser.set_defaults(timed=5, warmup=3)
    parser.add_argument("--way", choices=WAYS, default="plain")
    parser.add_argument("--model", action="store_true", help="the roofline model beside it")
    parser.add_argument("--out", type=Path, default=RESULTS / "step.json")
    parser.add_argument("--counts", default="36,324", help="numbers of lanes, comma-separated")
    options = parser.parse_args(arguments)
    counts = [int(count) for count in options.counts.split(",")]
    setting = setting_of(options)
    command = f"{command_of('step', setting)} --way {options.way}"
    report = {"bench": "step", **environment(setting.device, command), "setting": asdict(setting)}
    settings = [replace(setting, lanes=count) for count in counts]
    rows = []
    for rows in run(settings, options.way, options.model):
        write(options.out, report | {"summary": summary(rows), "rows": rows})
    print("\n\n".join(map(table, rows)))
    print(options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
