"""What a lane costs as lanes grow: 1 to 36 on a CPU, 1 to 324 on CUDA.

    python -m fula_fast.bench.suites.scale  this machine's usual size, JSON and a table
    python -m fula_fast.bench.suites.scale --counts 1,4,16 --width 16 --batch 64
    fula-fast bench scale                               by pytest-benchmark

All lanes are the same cell, FuLA at the middle site (5 to 5) unless `--site` and `--method` say
otherwise, from different starts, so that only their number changes. The cost must fall while the
shared passes of front and end are spread over more lanes, then stay flat. Every count runs in a
process of its own and computes as in a sweep. The JSON is written anew after each count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from fula_fast.bench.harness.peer import METHODS
from fula_fast.bench.harness.record import (
    RESULTS,
    PeakMemory,
    device_label,
    environment,
    isolated,
    quantiles,
    seconds_of,
    write,
)
from fula_fast.bench.harness.workload import (
    OurWave,
    Setting,
    add_options,
    as_in_a_sweep,
    cell,
    command_of,
    our_flops,
    setting_of,
    usual_setting,
)
from fula_fast.bench.suites.grid import Isolation

SITE, METHOD = 5, "fula"
FLAT = 1.15
"""The last count's cost per lane may be this many times the best one."""
Row = dict[str, Any]


def counts_up_to(lanes: int) -> list[int]:
    """1, 2, 4, … and `lanes` itself."""
    powers = [2**k for k in range(lanes.bit_length()) if 2**k < lanes]
    return [*powers, lanes]


def measure(setting: Setting, count: int, site: int = SITE, method: str = METHOD) -> Row:
    """One step of `count` lanes that are the same cell from different starts."""
    with as_in_a_sweep(setting):
        return _measure(setting, count, site, method)


def _measure(setting: Setting, count: int, site: int, method: str) -> Row:
    memory, started = PeakMemory(setting.device), time.perf_counter()
    cells = [cell(number, site, site, method) for number in range(count)]
    ours = OurWave(setting, cells)
    step = ours.stepping(full=False)
    step(0)
    first = time.perf_counter() - started
    seconds = seconds_of(step, setting.timed, setting.device, setting.warmup - 1)
    peak, mode = memory.bytes(), ours.mode
    del ours, step  # the graph's memory is free for what is counted
    return {
        "lanes": count,
        "mode": mode,
        "seconds": quantiles(seconds),
        "seconds_per_lane": quantiles([s / count for s in seconds]),
        "flops_per_lane": our_flops(setting, cells, full=False) / count,
        "peak_bytes": peak,
        "first_step_seconds": first,
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """Whether the cost fell and then stayed flat, as figures with their targets."""
    each = [row["seconds_per_lane"]["p50"] for row in rows]
    return [
        {
            "figure": "one lane's cost over a lane's among the most",
            "value": each[0] / each[-1],
            "target": 1.0,
        },
        {
            "figure": "best cost over the cost among the most",
            "value": min(each) / each[-1],
            "target": 1 / FLAT,
        },
    ]


def run(
    setting: Setting,
    counts: Sequence[int],
    out: Path,
    *,
    site: int = SITE,
    method: str = METHOD,
    isolation: Isolation = isolated,
) -> Row:
    """Measure every count, write `scale-DEVICE.json` under `out`; returns the report."""
    chosen = ",".join(map(str, counts))
    extra = f"--counts {chosen} --site {site} --method {method}"
    report = {
        "bench": "scale",
        **environment(setting.device, f"{command_of('scale', setting)} {extra}"),
        "setting": asdict(setting) | {"site": site, "method": method},
        "rows": [],
    }
    path = out / f"scale-{device_label(setting.device)}.json"
    for count in counts:
        row = isolation(measure, replace(setting, lanes=count), count, site, method)
        report["rows"].append(row)
        report["summary"] = summary(report["rows"])
        write(path, report)
    print(path)
    return report


def table(report: Row) -> Table:
    """A row for each number of lanes."""
    shown = Table(title=f"cost per lane on {report['setting']['device']}")
    for heading in ("lanes", "step p50", "a lane p20 / p50 / p80", "GFLOP a lane", "peak MiB"):
        shown.add_column(heading, justify="right")
    for row in report["rows"]:
        each = " / ".join(f"{1e3 * row['seconds_per_lane'][q]:.2f}" for q in ("p20", "p50", "p80"))
        step = f"{1e3 * row['seconds']['p50']:.1f} ms"
        work, memory = row["flops_per_lane"] / 1e9, row["peak_bytes"] / 2**20
        shown.add_row(str(row["lanes"]), step, f"{each} ms", f"{work:.2f}", f"{memory:,.0f}")
    return shown


@pytest.mark.parametrize("count", counts_up_to(usual_setting().lanes))
def bench_lanes(benchmark, count):
    """One step of `count` equal lanes."""
    setting = usual_setting()
    cells = [cell(number, SITE, SITE, METHOD) for number in range(count)]

    def finished() -> None:
        step(0)
        if setting.device != "cpu":
            torch.cuda.synchronize()

    with as_in_a_sweep(setting):
        step = OurWave(setting, cells).stepping(full=False)
        benchmark.pedantic(finished, rounds=setting.timed, warmup_rounds=setting.warmup)
    benchmark.extra_info["seconds_per_lane"] = benchmark.stats.stats.median / count


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="the cost of a lane as lanes grow")
    add_options(parser)
    parser.add_argument("--counts", help="numbers of lanes, as 1,4,16 (default: 1, 2, 4 … --lanes)")
    parser.add_argument("--site", type=int, default=SITE)
    parser.add_argument("--method", choices=METHODS, default=METHOD)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    setting = setting_of(options)
    counts = [int(c) for c in options.counts.split(",")] if options.counts else None
    counts = counts or counts_up_to(setting.lanes)
    report = run(setting, counts, options.out, site=options.site, method=options.method)
    Console().print(table(report))


if __name__ == "__main__":
    main()
