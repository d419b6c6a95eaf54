"""A whole stitching grid, 9x9 sites x {hint, slm, tlm, fula} of a ResNet-18 pair: the engine
against its peers, in one run: one stitch at a time, as published and as fair as can be, and all
lanes at once by `torch.func.vmap`.

    python -m fula_fast.bench.suites.grid  this machine's usual size, JSON and a table
    python -m fula_fast.bench.suites.grid --width 16 --batch 64 --lanes 12
        smaller, for a busy machine
    fula-fast bench grid                                by pytest-benchmark

CPU: width 32, batch 128, 36 lanes (the nine same-site pairs x 4 methods). CUDA: full width, 324
lanes. Each contender runs in a process of its own, with a ready batch for the peers, while the
engine gathers and augments its own. The engine computes as in a sweep: deterministic convolutions
chosen by rule, no TF32 unless that is its precision. The peers have what an honest user would set
on CUDA: convolutions chosen by trial (cudnn.benchmark) and TF32 products. Initial stitches and
evaluations are nobody's. vmap's peer frees the graph of one end site before it builds the next, so
the engine comes once more, in the waves and turns that a sweep plans for vmap's memory. FORMULA
says how the time of a whole training follows from the steps that are timed. Targets: CPU, 4x the
published peer in fp32, 10x with bf16 on a processor with AMX; CUDA, 25x the published and 8x the
fair peer, and 35% of the measured bf16 matrix rate; on both, 1.5x the vmap peer, and so in no more
memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table

from fula_fast.bench.harness.peer import METHODS, PEERS, Peer
from fula_fast.bench.harness.record import (
    RESULTS,
    PeakMemory,
    device_label,
    environment,
    isolated,
    matrix_rate,
    quantiles,
    seconds_of,
    write,
)
from fula_fast.bench.harness.vmap_peer import VmapPeer
from fula_fast.bench.harness.workload import (
    COUNTED,
    SITES,
    OurWave,
    Setting,
    add_options,
    as_in_a_sweep,
    batch_of,
    command_of,
    donor_facts_of,
    flops_of,
    grid_cells,
    our_flops,
    pairs,
    peer_of,
    prepare_peer,
    setting_of,
    usual_setting,
    vmap_peer_of,
)
from fula_fast.study.cell import Cell
from fula_fast.study.packing import Packer, PairCosts, WaveLanes, turn_of
from fula_fast.study.resources import resources
from fula_fast.study.spec import EngineSpec

FORMULA = (
    "S = 30 epochs x floor(50000 / batch) steps. "
    "Engine: (S - F) x t(short step) + F x t(full step), where the last F steps also move the "
    "statistics of lanes whose loss needs no tail. "
    "Peer: S x sum over methods m and end sites j of n(j) x t(m, j), where n(j) cells of a method "
    "enter at j, and t(m, j) is timed with the front cut at the same site; between timed end sites "
    "it is interpolated linearly in the FLOPs behind the site. With all 81 pairs n(j) = 9: a "
    "step's "
    "cost is a part that depends on the front's site plus one that depends on the end's, so the "
    "pairs' mean is the same-site pairs' mean; `additivity` is t(1,9) + t(9,1) over t(1,1) + "
    "t(9,9), "
    "FuLA, which that makes 1. vmap: S x t(step of all lanes). "
    "The engine within vmap's memory: the sum over its waves, each in its turns; its memory is the "
    "largest wave's. "
    "All t are medians; p20 and p80 are carried through in the same way."
)
TIMED_SITES = (1, 3, 5, 7, 9)
QUANTILES = ("p20", "p50", "p80")
WITHIN = "ours, within vmap's memory"
_BESIDE = 256 * 2**20
"""Peaks up to here are the process's own, no measure of lanes, and nothing is planned for them."""
Row = dict[str, Any]
Isolation = Callable[..., Any]


def measure_ours(
    setting: Setting,
    cells: Sequence[Cell] | None = None,
    turns: Mapping[str, int] = MappingProxyType({}),
) -> Row:
    """Both phases of a step of the engine's wave of `cells` (all by default), which take `turns`,
    its memory and its work."""
    with as_in_a_sweep(setting):
        return _measure_ours(setting, cells or grid_cells(setting.lanes), turns)


def _measure_ours(setting: Setting, cells: Sequence[Cell], turns: Mapping[str, int]) -> Row:
    memory, started = PeakMemory(setting.device), time.perf_counter()
    ours = OurWave(setting, cells, turns=turns)
    steps = ours.wave.settling_from
    counts = {"short": steps, "full": setting.training_steps - steps}
    phases = {}
    for phase, count in counts.items():
        step = ours.stepping(phase == "full")
        if phase == "short":
            step(0)
            first = time.perf_counter() - started
        taken = seconds_of(step, setting.timed, setting.device, setting.warmup - (phase == "short"))
        phases[phase] = {"steps": count, "seconds": quantiles(taken)}
    peak, mode, count = memory.bytes(), ours.mode, len(ours.wave.turns)
    del ours, step  # the graphs' memory is free for what is counted
    for phase, found in phases.items():
        found["flops"] = our_flops(setting, cells, phase == "full")
    return {
        "name": "ours",
        "mode": mode,
        "precision": setting.precision,
        "turns": count,
        "first_step_seconds": first,
        "peak_bytes": peak,
        "phases": phases,
    }


def waves_within(setting: Setting, budget: int) -> list[tuple[list[Cell], dict[str, int]]]:
    """The grid's cells in the waves that a sweep plans for `budget` bytes, and by id the turn that
    each takes in its wave.

    Raises `FulaError` where a cell alone needs more.
    """
    cells, facts = grid_cells(setting.lanes), donor_facts_of(setting)
    engine = EngineSpec.model_validate({"device": setting.device, "precision": setting.precision})
    pair = PairCosts(facts, facts, setting.batch, setting.training_steps)
    rule = setting.precision, budget, resources(engine).fused, False, setting.device
    each = np.arange(len(cells))  # every cell is a kind of its own
    packer = Packer([pair], cells, *rule)
    waves = map(packer.in_turns, packer.packed(WaveLanes(0, each, each)))
    found = [([cells[i] for i in wave.places], wave.turns) for wave in waves]
    return [(own, turn_of([cell.id for cell in own], turns)) for own, turns in found]


def together(waves: Sequence[Row]) -> Row:
    """One row of several waves: times and work added up, the largest memory."""
    phases = {}
    for name, first in waves[0]["phases"].items():
        found = [wave["phases"][name] for wave in waves]
        seconds = {q: sum(phase["seconds"][q] for phase in found) for q in QUANTILES}
        seconds["n"] = min(phase["seconds"]["n"] for phase in found)
        flops = sum(phase["flops"] for phase in found)
        phases[name] = {"steps": first["steps"], "seconds": seconds, "flops": flops}
    return waves[0] | {
        "name": WITHIN,
        "waves": len(waves),
        "turns": sum(wave["turns"] for wave in waves),
        "first_step_seconds": sum(wave["first_step_seconds"] for wave in waves),
        "peak_bytes": max(wave["peak_bytes"] for wave in waves),
        "phases": phases,
    }


def measure_peer(setting: Setting, name: str) -> Row:
    """A sample of end sites x methods, one step each, with their work; the largest peak memory."""
    prepare_peer(setting)
    memory = PeakMemory(setting.device)
    sites = [site for site in TIMED_SITES if (site, site) in pairs(setting.lanes)]
    # The ends of the range are always timed, so that every other site lies between two timed ones.
    sites = sorted({*sites, pairs(setting.lanes)[0][1], pairs(setting.lanes)[-1][1]})
    cells = [_measure_cell(setting, name, (s, s), method) for method in METHODS for s in sites]
    peak = memory.bytes()
    for cell in cells:
        cell["flops"] = _peer_flops(setting, name, cell["sites"], cell["method"])
    found = {"name": name, "precision": _precision(setting, name), "peak_bytes": peak}
    if len(pairs(setting.lanes)) > SITES:
        found["additivity"] = _additivity(setting, name)
    return found | {"cells": cells}


def measure_vmap(setting: Setting) -> Row:
    """A step of all lanes by `torch.func.vmap`, its memory and its work."""
    prepare_peer(setting)
    memory = PeakMemory(setting.device)
    peer = vmap_peer_of(setting)
    x, y = batch_of(setting)
    x, y = x.to(setting.device, setting.dtype), y.to(setting.device)
    step = partial(_peer_step, peer, x, y)
    taken = seconds_of(step, setting.timed, setting.device, setting.warmup)
    peak = memory.bytes()
    del peer, step
    return {
        "name": "vmap",
        "precision": setting.precision,
        "peak_bytes": peak,
        "seconds": quantiles(taken),
        "flops": _flops_of_step(setting, vmap_peer_of(replace(setting, precision="fp32"))),
    }


def _precision(setting: Setting, name: str) -> str:
    usual = "tf32" if setting.device != "cpu" else "fp32"
    return usual if name == "published" else setting.precision


def _measure_cell(setting: Setting, name: str, sites: Sequence[int], method: str) -> Row:
    peer = peer_of(setting, name, sites, method)
    x, y = batch_of(setting)
    if name == "fair":
        x = x.to(setting.device, setting.dtype, memory_format=torch.channels_last)
        y = y.to(setting.device)
    step = partial(_peer_step, peer, x, y)
    taken = seconds_of(step, setting.timed, setting.device, setting.warmup)
    return {"method": method, "sites": list(sites), "seconds": quantiles(taken)}


def _peer_flops(setting: Setting, name: str, sites: Sequence[int], method: str) -> int:
    return _flops_of_step(setting, peer_of(replace(setting, precision="fp32"), name, sites, method))


def _flops_of_step(setting: Setting, peer: Peer | VmapPeer) -> int:
    x, y = (t.to(setting.device) for t in batch_of(setting, COUNTED))
    return flops_of(lambda: peer.step(x, y)) * setting.batch // COUNTED


def _additivity(setting: Setting, name: str) -> float:
    """How well corner pairs are told from same-site pairs; 1 where costs add up."""
    taken = {
        sites: _measure_cell(setting, name, sites, "fula")["seconds"]["p50"]
        for sites in ((1, 9), (9, 1), (1, 1), (9, 9))
    }
    return (taken[1, 9] + taken[9, 1]) / (taken[1, 1] + taken[9, 9])


def our_total(row: Row) -> Row:
    """Seconds and FLOPs of the whole grid's training by the engine."""
    phases = row["phases"].values()
    seconds = {q: sum(p["steps"] * p["seconds"][q] for p in phases) for q in QUANTILES}
    return seconds | {"flops": sum(p["steps"] * p["flops"] for p in phases)}


def vmap_total(row: Row, setting: Setting) -> Row:
    """Seconds and FLOPs of the whole grid's training by the vmap peer."""
    steps = setting.training_steps
    return {q: steps * row["seconds"][q] for q in QUANTILES} | {"flops": steps * row["flops"]}


def peer_total(row: Row, setting: Setting) -> Row:
    """Seconds and FLOPs of the whole grid's training by a peer, extrapolated; see FORMULA."""
    cells = [c | {f"seconds_{q}": c["seconds"][q] for q in QUANTILES} for c in row["cells"]]
    sums = {
        what: sum(
            _over_sites([c for c in cells if c["method"] == m], what, setting) for m in METHODS
        )
        for what in (*(f"seconds_{q}" for q in QUANTILES), "flops")
    }
    return {name.removeprefix("seconds_"): setting.training_steps * v for name, v in sums.items()}


def _over_sites(cells: Sequence[Row], what: str, setting: Setting) -> float:
    """Sum of `what` over one method's cells of the grid, interpolated between timed end sites."""
    flops = [site.flops for site in setting.description.sites]
    behind = [sum(flops[site:]) for site in range(SITES + 1)]
    known = sorted((behind[c["sites"][1]], c[what]) for c in cells)
    ends = [behind[end] for _, end in pairs(setting.lanes)]
    return float(np.interp(ends, *zip(*known, strict=True)).sum())


def compare(setting: Setting, command: str, isolation: Isolation = isolated) -> Iterator[Row]:
    """Measure all contenders and put them side by side: the report so far, after each of them.

    `isolation(f, *args)` runs f(*args).
    """
    report: Row = {
        "bench": "grid",
        **environment(setting.device, command),
        "setting": asdict(setting),
        "formula": FORMULA,
        "rows": [],
        "totals": {},
    }

    def joined(row: Row, total: Row) -> Row:
        report["rows"].append(row)
        passes = total["flops"] / _one_pass(setting)
        report["totals"][row["name"]] = total | {"passes": passes}
        report["summary"] = _summary(setting, report)
        return report

    report["matrix_rate"] = isolation(measured_rate, setting)
    ours = isolation(measure_ours, setting)
    yield joined(ours, our_total(ours))
    for name in PEERS:
        peer = isolation(measure_peer, setting, name)
        yield joined(peer, peer_total(peer, setting))
    lanes = isolation(measure_vmap, setting)
    yield joined(lanes, vmap_total(lanes, setting))
    if ours["peak_bytes"] > lanes["peak_bytes"] > _BESIDE:
        waves = waves_within(setting, lanes["peak_bytes"])
        within = together([isolation(measure_ours, setting, *wave) for wave in waves])
        yield joined(within, our_total(within))


def _one_pass(setting: Setting) -> float:
    """FLOPs of one forward pass of a whole donor for every lane and step."""
    return setting.description.flops * setting.batch * setting.training_steps * setting.lanes


def measured_rate(setting: Setting) -> float:
    """FLOP/s of a large matrix product in the engine's precision."""
    with as_in_a_sweep(setting):
        return matrix_rate(setting.device, setting.dtype, 8192 if setting.device != "cpu" else 2048)


def _summary(setting: Setting, report: Row) -> list[Row]:
    """Figures with their targets (None: no target at this setting), as far as they are known."""
    totals = report["totals"]
    main = max(report["rows"][0]["phases"].values(), key=lambda phase: phase["steps"])
    cuda = setting.device != "cpu"
    targets = {"published": 25 if cuda else 10 if setting.precision == "bf16" else 4}
    targets |= {"fair": 8 if cuda else None, "vmap": 1.5}
    share = main["flops"] / main["seconds"]["p50"] / report["matrix_rate"]
    return [
        *(
            figure(
                f"times the {name} peer's speed", totals[name]["p50"] / totals["ours"]["p50"], least
            )
            for name, least in targets.items()
            if name in totals
        ),
        *_within(report),
        figure("share of the measured matrix rate", share, 0.35 if cuda else None),
        figure("passes of a donor per lane and step", totals["ours"]["passes"], None),
    ]


def _within(report: Row) -> list[Row]:
    """The vmap peer's peak memory over the engine's, once both are measured; and its time and
    memory over those of the engine in waves that need no more."""
    peaks, totals = {row["name"]: row["peak_bytes"] for row in report["rows"]}, report["totals"]
    if "vmap" not in peaks or not peaks["ours"]:  # too small to move the resident set
        return []
    found = [figure("times the engine's memory by vmap", peaks["vmap"] / peaks["ours"], None)]
    if WITHIN in peaks:
        speed, memory = totals["vmap"]["p50"] / totals[WITHIN]["p50"], peaks["vmap"] / peaks[WITHIN]
        found += [
            figure("times the vmap peer's speed, within its memory", speed, 1.5),
            figure("times that engine's memory by vmap", memory, 1),
        ]
    return found


def figure(name: str, value: float, target: float | None) -> Row:
    """A figure beside the least value that it should have."""
    return {"figure": name, "value": value, "target": target}


def table(report: Row) -> Table:
    """Contenders as rows: time (p20 … p80) of the whole grid and of a step; work, memory."""
    size = "{lanes} lanes, width {width}, batch {batch}, {device}".format(**report["setting"])
    shown = Table(title=f"ResNet-18 grid: {size}")
    for heading in (
        "",
        "precision",
        "hours",
        "p20 … p80",
        "s a step",
        "GFLOP",
        "passes",
        "peak MiB",
    ):
        shown.add_column(heading, justify="right" if shown.columns else "left", no_wrap=True)
    steps = Setting(**report["setting"]).training_steps
    for row in report["rows"]:
        total = report["totals"][row["name"]]
        p20, p50, p80 = (total[q] / 3600 for q in QUANTILES)
        step = f"{total['p50'] / steps:.3f}", f"{total['flops'] / steps / 1e9:,.1f}"
        rest = *step, f"{total['passes']:.2f}", f"{row['peak_bytes'] / 2**20:,.0f}"
        spread = f"{p20:,.2f} … {p80:,.2f}"
        shown.add_row(row["name"], row["precision"], f"{p50:,.2f}", spread, *rest)
    return shown


def summary_lines(report: Row) -> list[str]:
    """The figures with their targets, a line each."""
    lines = []
    for row in report["summary"]:
        beside = "" if row["target"] is None else f" (target {row['target']:g})"
        lines.append(f"{row['figure']}: {row['value']:.3g}{beside}")
    return lines


@pytest.mark.parametrize("contender", ["ours", *PEERS, "vmap"])
def bench_step(benchmark, contender):
    """One step: all lanes of the engine or by vmap, or one FuLA cell at the middle site."""
    setting = usual_setting()
    rounds = {"rounds": setting.timed, "warmup_rounds": setting.warmup}
    if contender == "ours":
        with as_in_a_sweep(setting):
            step = OurWave(setting, grid_cells(setting.lanes)).stepping(full=False)
            benchmark.pedantic(_finished, (setting, step), **rounds)
        return
    prepare_peer(setting)
    lone = (setting, contender, (5, 5), "fula")
    peer = vmap_peer_of(setting) if contender == "vmap" else peer_of(*lone)
    x, y = (t.to(setting.device) for t in batch_of(setting))
    benchmark.pedantic(_finished, (setting, partial(_peer_step, peer, x, y)), **rounds)


def _peer_step(peer: Peer | VmapPeer, x: torch.Tensor, y: torch.Tensor, number: int) -> None:
    peer.step(x, y)


def _finished(setting: Setting, step: Callable[[int], object]) -> None:
    step(0)
    if setting.device != "cpu":
        torch.cuda.synchronize()


def bench_grid(benchmark):
    """The comparison once, into its JSON; the figures stand in `extra_info`."""
    setting = usual_setting()
    report = benchmark.pedantic(run, (setting, RESULTS), rounds=1)
    benchmark.extra_info |= {row["figure"]: row["value"] for row in report["summary"]}


def run(setting: Setting, out: Path) -> Row:
    """Measure, write `grid-DEVICE.json` under `out` after each contender, print the table; returns
    the report."""
    path = out / f"grid-{device_label(setting.device)}.json"
    report: Row = {}
    for report in compare(setting, command_of("grid", setting)):
        write(path, report)
    Console().print(table(report))
    print("\n".join(summary_lines(report)))
    print(path)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="the engine against its peers over a whole grid")
    add_options(parser)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    run(setting_of(options), options.out)


if __name__ == "__main__":
    main()
