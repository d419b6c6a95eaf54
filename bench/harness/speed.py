"""The guide's page on speed and the README's headline, written from the recorded results and from
nothing else.

    python -m fula_fast.bench.harness.speed
        rewrites what stands between two marks in fula_fast/guide/pages/speed.md and in README.md

Reads `bench/results/grid-*.json` (whole grids against the peers), `scale-*.json` (cost of a lane),
`data-*.json` (images per second), `large-data-*.json` (memory by entries), `attack-*.json`
(AutoAttack against the reference package), `agreement-*.json` (the same, both to the end),
`precision-*.json` (bfloat16 against float32), `first-step-*.json` (starts of a wave),
`kernels-cpu.json` (the C++ kernels against eager PyTorch) and `gpu-check-first-*.json` (captured
steps). A test holds that both files are what this gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- bench: written by `python -m fula_fast.bench.harness.speed` from bench/results -->"
END = "<!-- end of bench -->"
ROOT = Path(__file__).resolve().parent.parent.parent
NO_GPU = (
    "No GPU figures are recorded yet. The GPU side (Triton kernels, captured steps) is tested in "
    "Triton's interpreter, by compiling it for sm_80 and sm_90, and against a stand-in for the "
    "driver; `make gpu-check` tests and measures it on a device."
)
NOTHING = "No results are recorded yet: `make bench` measures this machine."

_NAMES = {
    "ours": "fula_fast",
    "published": "as published: hooks on both whole networks, one cell at a time",
    "fair": "front, stitch and tail alone, one cell at a time",
    "ours, within vmap's memory": "fula_fast, lanes in turns, within the memory of `vmap`",
    "vmap": "`torch.func.vmap` over all cells of an end site, front and targets shared",
}


def section(results: Path) -> str:
    """The page's text: every table."""
    reports = _measured(results)
    if not reports:
        return NOTHING
    parts = [] if any("gpu" in r["hardware"] for r in reports) else [NO_GPU]
    parts += [grid(r) for r in _grids(reports)]
    parts += [steps(r) for r in reports if r.get("bench") == "gpu-check" and _steps_of(r)]
    parts += [scale(r) for r in reports if r.get("bench") == "scale"]
    parts += [first_step(r) for r in reports if r.get("bench") == "first-step"]
    parts += [precision(r) for r in reports if r.get("bench") == "precision"]
    parts += [data(path) for path in sorted(results.glob("data-*.json"))]
    parts += [large_data(r) for r in reports if r.get("bench") == "large_data"]
    parts += [attacks(r) for r in reports if r.get("benchmark") == "attack"]
    parts += [agreement(r) for r in reports if r.get("benchmark") == "agreement"]
    parts += [kernels(r) for r in reports if r.get("benchmark") == "kernels-cpu"]
    return "\n\n".join(parts)


def headline(results: Path) -> str:
    """A grid's hours beside those of the published way, on one line: a GPU's, if there is one."""
    grids = _grids(_measured(results))
    if not grids:
        return NOTHING
    report, size = grids[0], grids[0]["setting"]
    ours, published = (report["totals"][name]["p50"] for name in ("ours", "published"))
    return (
        f"{size['lanes']} stitches, 30 epochs of CIFAR-10 each (ResNet-18 of width "
        f"{size['width']}), on {where(report)}: **{_hours(ours)} hours; as published, one at a "
        f"time, {_hours(published)}** ({published / ours:.0f} times as long). {again(report)}"
    )


def _hours(seconds: float) -> str:
    return format(seconds / 3600, ".3g")


def _measured(results: Path) -> list[dict[str, Any]]:
    reports = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    return [r for r in reports if "hardware" in r]  # a model counts, and measures nothing


def _grids(reports: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    grids = [r for r in reports if r.get("bench") == "grid"]
    return sorted(grids, key=lambda r: "gpu" not in r["hardware"])


def grid(report: Mapping[str, Any]) -> str:
    """A whole grid's training: hours of each contender, spread, work and peak memory."""
    size = report["setting"]
    rows = [
        (
            _NAMES.get(row["name"], row["name"]),
            row["precision"],
            _spread(report["totals"][row["name"]], 3600),
            f"{report['totals'][row['name']]['passes']:.2f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
        )
        for row in report["rows"]
    ]
    heads = (
        "", "precision", "hours: median (p20 … p80)", "passes of a network per cell and step",
        "peak MiB",
    )  # fmt: skip
    title = (
        f"Training a grid of {size['lanes']} cells for 30 epochs of CIFAR-10 (ResNet-18 of width "
        f"{size['width']}, batch {size['batch']}) on {where(report)}, from timed steps; `formula` "
        "in the JSON says how:"
    )
    return "\n".join([title, "", *table(heads, rows), "", again(report)])


def steps(report: Mapping[str, Any]) -> str:
    """Captured steps: milliseconds each, and what the first one takes."""
    rows = [
        (
            f"{row['lanes']}",
            row["way"],
            f"{row['seconds']['p50'] * 1e3:.1f}",
            f"{row['first_step_seconds']:.0f}",
        )
        for row in _steps_of(report)
    ]
    title = (
        "A training step of a wave as one CUDA graph (ResNet-18, batch 128, bf16; stages plain, or "
        f"each through `torch.compile`), on {where(report)}; the first step without imports, with "
        "our kernels compiled before:"
    )
    heads = ("lanes", "stages", "ms a step", "s to the first step")
    return "\n".join([title, "", *table(heads, rows), "", again(report)])


def _steps_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    reports = [r for part in report["parts"] for r in part["reports"]]
    return [row for r in reports if r.get("bench") == "step" for row in r["rows"]]


def scale(report: Mapping[str, Any]) -> str:
    """What a lane's step costs as lanes are added."""
    size = report["setting"]
    rows = [
        (
            str(row["lanes"]),
            _spread(row["seconds_per_lane"], 1e-3),
            f"{row['peak_bytes'] / 2**20:,.0f}",
        )
        for row in report["rows"]
    ]
    title = (
        f"One FuLA cell's step (ResNet-18 of width {size['width']}, batch {size['batch']}, "
        f"{size['precision']}) in a wave of so many, on {where(report)}:"
    )
    heads = ("lanes", "ms a lane: median (p20 … p80)", "peak MiB")
    return "\n".join([title, "", *table(heads, rows), "", again(report)])


def first_step(report: Mapping[str, Any]) -> str:
    """From a process's start to the end of a wave's first step, with empty caches and with full."""
    size = report["setting"]
    rows = [
        (r["mode"], f"{r['cold']['total']:.3g}", _spread(r["warm"]["total"], 1))
        for r in report["rows"]
    ]
    title = (
        f"Seconds from the start of a process to the end of the first step of a wave of "
        f"{size['lanes']} lanes (ResNet-18 of width {size['width']}, batch {size['batch']}), "
        f"imports included, on {where(report)}:"
    )
    heads = ("engine mode", "first run", "later runs: median (p20 … p80)")
    return "\n".join([title, "", *table(heads, rows), "", again(report)])


def precision(report: Mapping[str, Any]) -> str:
    """What bfloat16 does to a grid's test accuracies, beside the spread between seeds."""
    found = {name: f"{100 * value:.2f}" for name, value in report["summary"].items()}
    rows = [
        (
            "means over seeds, fp32 against bf16, on average",
            found["mean_absolute_difference_of_means"],
        ),
        ("single cells, at most", found["largest_difference"]),
        ("for comparison: standard deviation between seeds", found["mean_seed_deviation"]),
    ]
    title = (
        "The same CIFAR-10 grid in fp32, eager, and in bfloat16, compiled: by how many points do "
        f"test accuracies differ? {len(report['rows'])} sites and methods, on {where(report)}:"
    )
    return "\n".join([title, "", *table(("", "points"), rows), "", again(report)])


def data(path: Path) -> str:
    """Images per second of the streams, and of a PyTorch DataLoader with its best `workers`."""
    report = json.loads(path.read_text())
    rows = [
        (r["name"], _spread(r["images_per_second"], 1, ",.0f")) for r in fastest(report["rows"])
    ]
    heads = ("stream", "images per second: median (p20 … p80)")
    title = f"Augmented batches of {report['batch']} 32x32 images on {where(report)}:"
    return "\n".join([title, "", *table(heads, rows), "", *waiting(report), again(report)])


def waiting(report: Mapping[str, Any]) -> list[str]:
    """The share of a wave's step spent waiting for each stream, as lines; none where unmeasured."""
    rows = report.get("waiting", [])
    if not rows:
        return []
    size = rows[0]["wave"]
    found = [
        (r["name"].removeprefix("waiting share, "), _spread(r["share"], 0.01, ".2g")) for r in rows
    ]
    title = (
        f"How much of its steps a wave of {size['lanes']} lanes (ResNet-18 of width "
        f"{size['width']}, {size['precision']}, {size['mode']}) waits for them:"
    )
    heads = ("stream", "per cent of a step: median (p20 … p80)")
    return [title, "", *table(heads, found), ""]


def large_data(report: Mapping[str, Any]) -> str:
    """Memory and waiting of a wave that reads more images than fit, by the number of entries."""
    size, shards = report["setting"], report["webdataset"]
    rows = [
        (
            f"{row['entries']:,}",
            f"{row['bytes'] / 2**20:,.0f}",
            f"{max(0, row['grown_bytes']) / 2**20:,.0f}",
            _spread(row["waiting_share"], 0.01, ".2g"),
            _spread(row["stream_images_per_second"], 1, ",.0f"),
        )
        for row in report["rows"]
    ]
    heads = (
        "images", "MiB for them", "MiB more after training", "per cent of a step spent waiting",
        "the stream alone, images per second",
    )  # fmt: skip
    title = (
        f"Images that stay files, read and decoded by DALI at {size['image']} pixels for a wave of "
        f"{size['lanes']} lanes (ResNet-18 of width {size['width']}, batch {size['batch']}), on "
        f"{where(report)}; medians (p20 … p80). Opening {shards['images']:,} images in "
        f"WebDataset shards takes {shards['first_seconds']['p50']:.1f} s the first time, then "
        f"{1e3 * shards['again_seconds']['p50']:.0f} ms:"
    )
    return "\n".join([title, "", *table(heads, rows), "", again(report)])


def attacks(report: Mapping[str, Any]) -> str:
    """AutoAttack "rand": ours in full, the reference's time by its fixed count of gradients."""
    rows = [
        (
            row["case"].rpartition("eps ")[2],
            f"{row['images']}, {row['correct']}, {row['robust']}",
            f"{row['gradients']['ours']:,} of {row['gradients']['reference']:,}",
            _spread(row["seconds"]["ours"], 1),
            _spread(row["reference seconds, extrapolated"], 1, ",.0f"),
            f"{row['speedup']['ours']:.0f}",
        )
        for row in report["rows"]
        if row["case"].startswith("autoattack-rand")
    ]
    heads = ("ε", "images, correct, robust", "gradients", "seconds", "reference, s", "times faster")
    title = (
        'AutoAttack "rand" in exact float32 on a robust CIFAR-10 ResNet-18 and real images. The '
        "reference package's seconds are those of one gradient in its own loop times the fewest "
        f"that it can take, not a whole run, on {where(report)}:"
    )
    return "\n".join([title, "", *table(heads, rows), "", again(report)])


def agreement(report: Mapping[str, Any]) -> str:
    """AutoAttack "rand" run to its end by the reference package and by us: who found what."""
    rows = [
        (
            row["case"].rpartition("eps ")[2],
            f"{row['images']}, {row['correct']}",
            f"{row['robust']['ours']}, {row['robust']['reference']}",
            f"{100 * row['share of flags equal']:.1f} %",
            f"{100 * row['share of images equal, savings off']:.1f} %",
            f"{row['seconds']['ours']:,.0f}, {row['seconds']['reference']:,.0f}",
        )
        for row in report["rows"]
    ]
    heads = (
        "ε", "images, correct", "robust: ours, reference", "flags equal",
        "adversarial images equal, bit for bit, savings off", "seconds: ours, reference",
    )  # fmt: skip
    title = (
        'AutoAttack "rand" run to its end by both from the same starts (EOT '
        f"{report['rows'][0]['eot']}, {report['rows'][0]['steps']} iterations), one run each, on "
        f"{where(report)}:"
    )
    return "\n".join([title, "", *table(heads, rows), "", again(report)])


def kernels(report: Mapping[str, Any]) -> str:
    """The C++ kernels' speed-ups over eager PyTorch, summed over sites and dtypes."""
    rows = [
        (found["figure"].removeprefix("cpu "), f"{found['value']:.1f}")
        for found in report["summary"]
    ]
    title = (
        "The C++ kernels, forward and backward, against eager PyTorch (`augment`: torchvision's "
        "transforms) over ResNet-18's sites, with PyTorch's usual allocator and with freed memory "
        f"kept, as sweeps keep it, on {where(report)}:"
    )
    return "\n".join([title, "", *table(("", "times faster"), rows), "", again(report)])


def fastest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a stream's rows that differ in their number of workers, the fastest."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda r: r["images_per_second"]["p50"]):
        best[re.sub(r"-\d+-workers", "", row["name"])] = row
    return list(best.values())


def where(report: Mapping[str, Any]) -> str:
    """Hardware and versions of a report, on one line."""
    found, versions = report["hardware"], report["versions"]
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    place = found.get("gpu") or f"{found['cpu']} ({threads})"
    return f"{place}, torch {versions['torch']}"


def again(report: Mapping[str, Any]) -> str:
    """The command that measures it again, and whether other programs shared the machine."""
    found = report["hardware"]
    busy = (
        f"; a busy machine (load {found['load']:.0f})"
        if found["load"] > 1.5 * found["cores"]
        else ""
    )
    return f"`{report['command']}` ({report['time'][:10]}{busy})"


def _spread(found: Mapping[str, float], unit: float, form: str = ".3g") -> str:
    p20, p50, p80 = (format(found[q] / unit, form) for q in ("p20", "p50", "p80"))
    return f"{p50} ({p20} … {p80})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown lines."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def rewritten(text: str, between: str) -> str:
    """`text` with what stands between the two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{between}\n{END}{after}"


WRITTEN = {ROOT / "README.md": headline, ROOT / "fula_fast/guide/pages/speed.md": section}

if __name__ == "__main__":
    for file, part in WRITTEN.items():
        file.write_text(rewritten(file.read_text(), part(ROOT / "bench" / "results")))
