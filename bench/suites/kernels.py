"""Every noun at ResNet-18's sites: eager PyTorch, `torch.compile`, ours; forward, backward, both.

    fula-fast bench kernels                                   (pytest-benchmark)
    python -m fula_fast.bench.suites.kernels --out kernels.json
        (JSON: n, p20, p50, p80 of each case)
    python -m fula_fast.bench.suites.kernels --tune  (measure tiles on this GPU first)

Where `--seconds` do not suffice for all, the most telling come first (`ranked`): `stitch_hint` and
`lane_norm`, bf16, 32x32. `torch.compile`, which tunes for seconds, has the second half of the time,
and begins with a case for each noun and each resolution (`covering`). A figure of the summary says
how many of its cases were measured; `left_out` names the others, with those that no memory holds.

Bytes and FLOPs are counted, not measured: what the noun must read and write once, each shared
tensor once. `floor` is the larger of bytes over the measured copy bandwidth and FLOPs over the
measured matrix rate; `of_floor` is its share of the time taken. On CUDA a case is captured and its
replays are timed between events.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fula_fast.bench.harness.kernel_cases import (
    DTYPES,
    FLOOR_TARGET,
    LANES,
    PLAIN_SHARE,
    SITES,
    TARGETS,
    WAYS,
    Case,
    no_room,
    ranked,
    schedule,
)
from fula_fast.bench.harness.kernel_work import NOUNS, Work, lane_norm, pixels, stitch_hint
from fula_fast.bench.harness.record import (
    RESULTS,
    captured,
    copy_rate,
    environment,
    matrix_rate,
    parser_of,
    quantiles,
    seconds_of,
    write,
)
from fula_fast.kernels import backend


def runs(work: Work, way: str, device: str) -> dict[str, Callable[[], object]]:
    """The work's parts done one way; the backward pass runs over one kept graph, which what
    `torch.compile` makes does not allow: it reuses what the graph has saved."""
    name = ("triton" if device == "cuda" else "cpp") if way == "ours" else "reference"
    call = work.call
    if way == "compile":
        mode = "max-autotune-no-cudagraphs" if device == "cuda" else None
        call = torch.compile(call, fullgraph=True, mode=mode)
    kept: list[Tensor] = []

    def forward() -> list[Tensor]:
        with backend.using(name):
            return call(*work.inputs)

    def backward(outputs: list[Tensor], keep: bool = False) -> object:
        with backend.using(name):
            return torch.autograd.grad(outputs, work.inputs, work.incoming, retain_graph=keep)

    def again() -> object:
        if not kept:
            kept.extend(forward())
        return backward(kept, keep=True)

    if not work.inputs:
        return {"forward": forward}
    parts = {"forward": forward, "both": lambda: backward(forward())}
    # `backward` keeps its graph from then on, so that it comes last.
    return parts if way == "compile" else parts | {"backward": again}


@dataclass(frozen=True)
class Rates:
    """What the device reaches: bytes/s copied, FLOP/s by dtype."""

    copy: float
    matrix: dict[str, float]


def measured_rates(device: str) -> Rates:
    """Copy bandwidth and matrix rates of this device."""
    size = 8192 if device == "cuda" else 512
    matrix = {name: matrix_rate(device, dtype, size) for name, dtype in DTYPES.items()}
    return Rates(copy_rate(device, 1 << (30 if device == "cuda" else 26)), matrix)


def timed(run: Callable[[], object], rounds: int, device: str) -> list[float]:
    """Seconds of each round; on CUDA of a replay of the run's graph, as in a captured step, where
    a launch costs the host nothing."""
    step = captured(run)[0] if device == "cuda" else run
    return seconds_of(lambda _: step(), rounds, device, warmup=2)


def rows(
    noun: str, label: dict[str, Any], way: str, work: Work, rates: Rates, device: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row a part; a way that cannot run says why instead of a time. The backward pass of what
    `torch.compile` makes is what both take less what forward takes."""
    taken: dict[str, dict[str, float]] = {}

    def row(part: str) -> dict[str, Any]:
        floor = _floor(work, part, label.get("dtype", "fp32"), rates, taken[part])
        return {"noun": noun, **label, "way": way, "part": part, "seconds": taken[part], **floor}

    try:
        for part, run in runs(work, way, device).items():
            taken[part] = quantiles(timed(run, rounds, device))
            yield row(part)
        if "both" in taken and "backward" not in taken:
            taken["backward"] = _difference(taken["both"], taken["forward"])
            yield row("backward") | {"derived": "both less forward"}
    except Exception as error:  # noqa: BLE001  of any library below: it shall cost no other row
        reason = " ".join(str(error).split())[:300]
        what = "left_out" if "out of memory" in str(error).lower() else "failed"
        yield {"noun": noun, **label, "way": way, what: f"{type(error).__name__}: {reason}"}
    finally:
        torch._dynamo.reset()


def _difference(both: dict[str, float], forward: dict[str, float]) -> dict[str, float]:
    return {"n": both["n"]} | {q: both[q] - forward[q] for q in ("p20", "p50", "p80")}


def _floor(work: Work, part: str, dtype: str, rates: Rates, taken: dict) -> dict[str, Any]:
    floor = max(work.bytes[part] / rates.copy, work.flops[part] / rates.matrix[dtype])
    counted = {"bytes": work.bytes[part], "flops": work.flops[part]}
    share = floor / taken["p50"] if taken["p50"] > 0 else None  # a difference may be anything
    return counted | {"floor": floor, "of_floor": share}


def report(
    device: str, lanes: list[int], sites: list[str], batch: int, rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """The report so far, after each case, until `seconds` are spent; `left_out` names what there
    was no time or no memory for."""
    torch.manual_seed(0)
    began = time.monotonic()
    rates, found, left = measured_rates(device), [], []
    head = {
        "benchmark": "kernels",
        **environment(device, "python -m fula_fast.bench.suites.kernels"),
        "copy_bytes_per_second": rates.copy,
        "matrix_flops_per_second": rates.matrix,
    }

    def spent() -> float:
        return time.monotonic() - began

    def so_far() -> dict[str, Any]:
        figures = summary(found, len(lanes) * len(sites)) if device == "cuda" else []
        return {**head, "summary": figures, "left_out": left, "rows": found}

    places = ranked(device, lanes, sites, batch)
    for way, (noun, case) in schedule(places, lambda: spent() < PLAIN_SHARE * seconds):
        label = case.label if case else {}
        reason = "no time" if spent() > seconds else no_room(noun, way, case)
        if reason:
            left.append({"noun": noun, **label, "way": way, "left_out": reason})
            continue
        work = NOUNS[noun](case) if case else pixels(noun, device, batch)
        measured = list(rows(noun, label, way, work, rates, device, rounds))
        del work
        left += [row for row in measured if "left_out" in row]
        found += [row for row in measured if "left_out" not in row]
        yield so_far()
    yield so_far()


def summary(found: list[dict[str, Any]], cases: int) -> list[dict[str, Any]]:
    """Least speed-up over the bf16 cases of every noun with a target, and `stitch_hint`'s least
    share of the floor at the first resolution, forward and backward; of so many `cases` (sites x
    lanes), those that were measured."""
    chosen = [r for r in found if r.get("part") == "both" and r.get("dtype") == "bf16"]
    times = {(r["noun"], r["site"], r["lanes"], r["way"]): r["seconds"]["p50"] for r in chosen}
    lines = []
    for (noun, other), target in TARGETS.items():
        ratios = [
            taken / times[key[:3] + ("ours",)]
            for key, taken in times.items()
            if key[0] == noun and key[3] == other and key[:3] + ("ours",) in times
        ]
        if ratios:
            figure = f"{noun}, times {other}'s speed, worst of {len(ratios)} of {cases} cases"
            lines.append({"figure": figure, "value": min(ratios), "target": target})
    (noun, site), target = FLOOR_TARGET
    ours = [r for r in chosen if (r["noun"], r["site"], r["way"]) == (noun, site, "ours")]
    if ours:
        figure = f"{noun} at {site}, share of the floor, worst of {len(ours)} cases"
        share = min(r["of_floor"] for r in ours)
        lines.append({"figure": figure, "value": share, "target": target})
    return lines


HEAVIEST = ("normalise", "norm_gradient", "sums", "fused_gradient")
"""The kernels that take most of a step: `--tune heaviest`, in bf16 alone."""


def tune(lanes: int, batch: int, which: str) -> Iterator[str]:
    """Measure kernels' tiles at every site on this GPU and remember the fastest; a line each.

    A kernel is timed by graph replay through the noun that launches it, forward and backward.
    which: `all`, or the `heaviest` in bf16.
    """
    from fula_fast.kernels.shared import tiles

    launched = {
        lane_norm: ("stats", "normalise", "sums", "norm_gradient"),
        partial(stitch_hint, write=True): ("stitch", "fused_gradient", "weight_gradient"),
    }

    def measure(run: Callable[[], object]) -> float:
        return quantiles(timed(run, 10, "cuda"))["p50"]

    heavy = which == "heaviest"
    chosen = {"bf16": DTYPES["bf16"]} if heavy else DTYPES
    for make, all_names in launched.items():
        names = [name for name in all_names if name in HEAVIEST or not heavy]
        for site, (channels, _) in SITES.items():
            for dtype, precision in chosen.items():
                work = make(Case(site, lanes, dtype, "cuda", batch))
                run = runs(work, "ours", "cuda")["both"]
                for name in names:
                    inner = channels if name in tiles.PRODUCTS else 0
                    sample = work.inputs[0].new_empty(0, dtype=precision)
                    best = tiles.tune(name, run, measure, sample, channels, inner)
                    yield f"{name} {site} {dtype}: {best}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("noun", NOUNS)
def bench_noun(benchmark, noun, site, way):
    """Forward and backward, two lanes of sixteen fp32 samples; on CUDA four of 128 in bf16."""
    cuda = torch.cuda.is_available()
    case = Case(site, 4, "bf16", "cuda", 128) if cuda else Case(site, 2, "fp32", "cpu", 16)
    run = runs(NOUNS[noun](case), way, case.device)["both"]

    def timed() -> None:
        run()
        if cuda:
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=3, warmup_rounds=2)
    torch._dynamo.reset()


def _tuned(chosen: argparse.Namespace, lanes: int) -> float:
    """Tune, for half of the time at most; the seconds that it took."""
    began = time.monotonic()
    for line in tune(lanes, chosen.batch, chosen.tune):
        print(line, flush=True)
        if time.monotonic() - began > chosen.seconds / 2:
            print("half of the time is spent: the kernels behind this one keep their usual tiles")
            break
    return time.monotonic() - began


def main(arguments: list[str]) -> None:
    """Tune if asked, run the cases, write the JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lanes", help=f"comma-separated, the most telling first; {LANES}")
    parser.add_argument("--sites", default=",".join(SITES))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=40.0, help="start no case after these")
    parser.add_argument("--tune", choices=("all", "heaviest"), nargs="?", const="all")
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    chosen = parser.parse_args(arguments)
    lanes = [int(n) for n in (chosen.lanes or LANES[chosen.device]).split(",")]
    left = chosen.seconds - (_tuned(chosen, lanes[0]) if chosen.tune else 0.0)
    sites = chosen.sites.split(",")
    result: dict[str, Any] = {}
    for result in report(chosen.device, lanes, sites, chosen.batch, chosen.rounds, left):
        write(chosen.out, result)
    for figure in result["summary"]:
        print(f"{figure['figure']}: {figure['value']:.2f} (target {figure['target']})")
    print(chosen.out)
    failed = [row for row in result["rows"] if "failed" in row]
    for row in failed:
        print("failed:", *(f"{name} {value}" for name, value in row.items()))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
