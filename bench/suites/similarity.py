"""All measures of a pair's layers beside the time of its grid; linear CKA against pytorch-cka.

    python -m fula_fast.bench.suites.similarity         this machine's usual size, JSON and tables
    python -m fula_fast.bench.suites.similarity --width 8 --batch 32 --images 200 --samples 100
        smaller, for a busy machine
    fula-fast bench similarity                          by pytest-benchmark

Each part runs in a process of its own, so that its peak memory is its own. PRICE says how the time
of every measure follows from what is timed. The grid is that of `grid`: the engine's steps are
timed, four methods, 30 epochs, all 81 site pairs. Targets: all measures with their permutations
within 3 % of the grid; CKA 1.5x as fast as pytorch-cka (skipped where it is not installed), with
equal numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

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
    CLASSES,
    SITES,
    Setting,
    add_options,
    command_of,
    donors,
    setting_of,
    usual_setting,
)
from fula_fast.bench.suites.grid import Isolation, figure, measure_ours, our_total, summary_lines
from fula_fast.device.allocator import keeping_memory
from fula_fast.device.precision import PLAIN, arithmetic
from fula_fast.measures.cka import MinibatchCKA
from fula_fast.measures.comparison import Draws, compare
from fula_fast.measures.matrices import of_moments
from fula_fast.measures.registry import Needs, measures
from fula_fast.models import Staged, stages
from fula_fast.pipelines import Batch
from fula_fast.runs.gathering import Gathered, gather
from fula_fast.study.similarity_plan import blocks
from fula_fast.study.similarity_spec import SimilaritySpec

LANES = 324
SHARE, FASTER = 0.03, 1.5
TEST_IMAGES, NULL = 10_000, 200
PLACES = (1, 5, 9)
FEW = 2
PRICE = (
    "All measures = one pass of 10,000 images through both donors with moments of all site pairs, "
    "scaled from the timed images, + values of the measures of moments, all 81 pairs timed, + for "
    "every measure on the samples: t0 / 9 x 81 + (t2 - t0) / (2 x 9) x 200 x 81, with t0 and t2 "
    "the times of sites 1, 5, 9 against 1, 5, 9 without permutations and with two. (t0 holds six "
    "sides' preparation for nine pairs; a whole matrix has 18 for 81, so that this is too dear.) "
    "Measures of outputs have one pair, and are timed whole. Grid = seconds of the engine's timed "
    "grid, 30 epochs, x 324 lanes over the lanes that were timed."
)
Row = dict[str, Any]


@dataclass(frozen=True)
class ImageCounts:
    """`images` that pass through both donors, and `samples` of them on which measures are compared;
    `cka_images` of the comparison with pytorch-cka."""

    images: int = 1000
    samples: int = 2000
    cka_images: int = 1024

    @property
    def options(self) -> str:
        """As they are given on the command line."""
        return " ".join(f"--{n.replace('_', '-')} {v}" for n, v in asdict(self).items())


def measure_grid(setting: Setting) -> Row:
    """Seconds of the whole grid's training, and its peak memory."""
    row = measure_ours(setting)
    seconds = our_total(row)
    whole = {q: seconds[q] * LANES / setting.lanes for q in ("p20", "p50", "p80")}
    return {"name": "grid", "peak_bytes": row["peak_bytes"], "seconds": whole, "mode": row["mode"]}


@torch.no_grad()
def measure_measures(setting: Setting, sizes: ImageCounts) -> Row:
    """Seconds of the pass and of every measure, as PRICE has them."""
    memory = PeakMemory(setting.device)
    with keeping_memory(setting.device == "cpu"), arithmetic(PLAIN):
        pair = [model.to(setting.device).eval() for model in donors(setting)]
        passed = partial(_pass, setting, pair)
        _, passing = passed(sizes.images), _seconds(setting, lambda: passed(sizes.images))
        gathered = passed(sizes.samples)
        found = {"pass": passing / sizes.images * TEST_IMAGES}
        found |= _prices(setting, gathered)
    return {
        "name": "measures",
        "peak_bytes": memory.bytes(),
        "seconds": sum(found.values()),
        "parts": found,
    }


def _chosen() -> SimilaritySpec:
    return SimilaritySpec(measures=tuple(m.name for m in measures()))


def _pass(setting: Setting, pair: Sequence[Staged], images: int) -> Gathered:
    """As a run gathers; the same random images whatever their number."""
    shapes = pair[0].site_shapes
    wanted = {("a", "b"): blocks(_chosen(), shapes, shapes, ("a", "b"))}
    given = dict(zip("ab", pair, strict=True))
    return gather(
        given, _batches(setting, images), images, np.arange(images), wanted,
        outputs=True, device=torch.device(setting.device),
    )  # fmt: skip


def _batches(setting: Setting, images: int) -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(0)
    size = setting.image
    for start in range(0, images, setting.batch):
        count = min(setting.batch, images - start)
        x = torch.rand(count, 3, size, size, generator=draw).to(setting.device)
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.randint(CLASSES, (count,), generator=draw).to(setting.device)
        yield Batch(x, y, torch.arange(start, start + count))


def _prices(setting: Setting, gathered: Gathered) -> dict[str, float]:
    """Seconds of every measure over the whole matrix, by name; `values`: those of moments."""
    (key,) = gathered.moments
    moments = gathered.moments[key]
    choice = {m.name: {} for m in measures(Needs.MOMENTS)}
    values = _seconds(setting, lambda: of_moments(moments, "a", "b", choice))
    sides = [[gathered.kept[key, name][p - 1] for p in PLACES] for name in "ab"]
    outputs = [[gathered.outputs(name)] for name in "ab"]
    found = {"values": values}
    for m in measures():
        whole = m.needs is Needs.OUTPUTS
        found[m.name] = _price(setting, m.name, outputs if whole else sides, whole)
    return found


def _price(setting: Setting, name: str, sides: Sequence[Sequence[Any]], whole: bool) -> float:
    """Seconds of one measure of all site pairs in all orders."""
    timed, pairs = (1, 1) if whole else (len(PLACES) ** 2, SITES**2)
    count = len(sides[0][0].right) if whole else len(sides[0][0])

    def taken(null: int) -> float:
        draws = Draws.of(count, null, 0, seed=0)
        return _seconds(setting, lambda: compare(sides[0], sides[1], {name: {}}, draws))

    none, few = taken(0), taken(FEW)
    return (none + max(few - none, 0.0) / FEW * NULL) / timed * pairs


def _seconds(setting: Setting, work: Callable[[], object]) -> float:
    """Of one call, until the device is done."""
    started = time.perf_counter()
    work()
    if setting.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def plain_network(setting: Setting, seed: int) -> Staged:
    """18 sites: the 17 convolutions of a ResNet-18 without its shortcuts, each with batch norm and
    ReLU, and the pooled features."""
    torch.manual_seed(seed)
    wide = [setting.width * 2**k for k, count in enumerate((5, 4, 4, 4)) for _ in range(count)]
    layers: dict[str, nn.Module] = {}
    for k, (before, after) in enumerate(zip([3, *wide], wide, strict=False)):
        conv = nn.Conv2d(before, after, 3, 2 if 2 * before == after else 1, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # no activation fades with depth
        layers[f"c{k}"] = nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())
    layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers["head"] = nn.Linear(wide[-1], CLASSES)
    whole = nn.Sequential()
    for name, layer in layers.items():
        whole.add_module(name, layer)
    shape = (3, setting.image, setting.image)
    names = [name for name in layers if name != "head"]
    return stages(whole.eval(), names, input_shape=shape, num_classes=CLASSES).eval()


def measure_cka(setting: Setting, sizes: ImageCounts, who: str) -> Row:
    """18 x 18 sites, images to matrix: `ours` or `pytorch-cka`; p20, p50, p80 of five passes."""
    memory = PeakMemory(setting.device)
    with keeping_memory(setting.device == "cpu" and who == "ours"), arithmetic(PLAIN):
        pair = [plain_network(setting, seed).to(setting.device) for seed in (0, 1)]
        images = [b.images for b in _batches(setting, sizes.cka_images)]
        run = {"ours": _ours, "pytorch-cka": _theirs}[who]
        work = run(pair, images, setting.device)
        matrix = work(0)
        taken = seconds_of(work, 5, setting.device, warmup=0)
        alone = _alone(pair, images[0], who)
        alone_taken = seconds_of(alone, 5, setting.device)
        peak = memory.bytes()
        exact = _exact(pair, images)
    # pytorch-cka cuts at 0, below which chance may bring the estimate
    error = (matrix.double().cpu().clamp(0, 1) - exact.clamp(0, 1)).abs().max()
    return {
        "name": who,
        "peak_bytes": peak,
        "seconds": quantiles(taken),
        "without_networks": quantiles(alone_taken),
        "matrix": matrix.double().cpu().tolist(),
        "error": float(error),
    }


def _exact(pair: Sequence[Staged], images: Sequence[Tensor]) -> Tensor:
    """The matrix with the networks' float32 activations, and all sums and products in float64."""
    cka = MinibatchCKA()
    with torch.inference_mode():
        for x in images:
            cka.add(*((a.double() for a in _activations(model, x)) for model in pair))
    return cka.result().cpu()


def _ours(pair: Sequence[Staged], images: Sequence[Tensor], device: str) -> Callable[..., Tensor]:
    models = [model.to(memory_format=torch.channels_last) for model in pair]

    def work(_: int) -> Tensor:
        cka = MinibatchCKA()
        with torch.inference_mode():
            for x in images:
                cka.add(*(_activations(model, x) for model in models))
            return cka.result()

    return work


def _activations(model: Staged, x: Tensor) -> Iterator[Tensor]:
    for site in range(model.num_sites):
        x = model.run(x, site, site + 1)
        yield x


def _theirs(pair: Sequence[Staged], images: Sequence[Tensor], device: str) -> Callable[..., Tensor]:
    """As its documentation says, with maps as its users have them: channels first.

    (It takes a list for several loaders.)
    """
    from cka import compute_cka

    names = [f"stages.{site}" for site in range(pair[0].num_sites)]
    given = [x.contiguous() for x in images]
    options = {"layers": names, "device": device, "progress": False}
    return lambda _: compute_cka(*pair, [given], **options)[0]


def _alone(pair: Sequence[Staged], x: Tensor, who: str) -> Callable[[int], object]:
    """One batch's matrix from given activations, without the networks' passes."""
    with torch.inference_mode():
        sides = [list(_activations(model, x)) for model in pair]
    if who == "ours":

        def work(_: int) -> Tensor:
            cka = MinibatchCKA()
            with torch.inference_mode():
                cka.add(*sides)
                return cka.result()

        return work
    from cka import cka_from_features

    flat = [[site.contiguous().flatten(1) for site in side] for side in sides]
    return lambda _: cka_from_features(*flat)


def compare_all(
    setting: Setting, sizes: ImageCounts, command: str, isolation: Isolation = isolated
) -> Iterator[Row]:
    """The report so far, after each part."""
    report: Row = {
        "bench": "similarity",
        **environment(setting.device, command),
        "setting": asdict(setting) | asdict(sizes),
        "price": PRICE,
        "rows": {},
    }
    parts: list[tuple[str, Callable[..., Row], Sequence[Any]]] = [
        ("cka ours", measure_cka, (setting, sizes, "ours")),
        *([("cka pytorch-cka", measure_cka, (setting, sizes, "pytorch-cka"))] * _installed()),
        ("measures", measure_measures, (setting, sizes)),
        ("grid", measure_grid, (setting,)),
    ]
    for name, part, arguments in parts:
        report["rows"][name] = isolation(part, *arguments)
        report["summary"] = summary(report["rows"])
        yield report


def _installed() -> bool:
    return find_spec("cka") is not None


def summary(rows: Mapping[str, Row]) -> list[Row]:
    """Figures with their targets, as far as they are known."""
    found = []
    if "grid" in rows:
        grid, every = rows["grid"]["seconds"]["p50"], rows["measures"]["seconds"]
        found.append(figure("the grid's time over that of all measures", grid / every, 1 / SHARE))
    if "cka pytorch-cka" in rows:
        ours, theirs = (rows[f"cka {name}"] for name in ("ours", "pytorch-cka"))
        speeds = {
            "times pytorch-cka's speed, 18x18 sites": ("seconds", FASTER),
            "the same without the networks' passes": ("without_networks", FASTER),
        }
        for name, (what, least) in speeds.items():
            found.append(figure(name, theirs[what]["p50"] / ours[what]["p50"], least))
        apart = np.abs(np.clip(ours["matrix"], 0, 1) - theirs["matrix"]).max()
        found.append(figure("largest difference of the matrices", float(apart), None))
        for name, row in (("our", ours), ("pytorch-cka's", theirs)):
            found.append(figure(f"{name} largest error against float64", row["error"], None))
        memory = theirs["peak_bytes"] / max(ours["peak_bytes"], 1)
        found.append(figure("pytorch-cka's peak memory over ours", memory, None))
    return found


def table(report: Row) -> Table:
    """Seconds and peak memory of every part."""
    shown = Table(title="similarity on {device}, width {width}".format(**report["setting"]))
    for heading in ("", "seconds", "of one batch alone", "peak MiB"):
        shown.add_column(heading, justify="right" if shown.columns else "left", no_wrap=True)
    for name, row in report["rows"].items():
        seconds = row["seconds"]
        taken = seconds["p50"] if isinstance(seconds, Mapping) else seconds
        alone = row.get("without_networks")
        beside = f"{alone['p50']:.4f}" if alone else ""
        shown.add_row(name, f"{taken:,.3f}", beside, f"{row['peak_bytes'] / 2**20:,.0f}")
    parts = report["rows"].get("measures", {}).get("parts", {})
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        shown.add_row(f"  {name}", f"{seconds:,.3f}", "", "")
    return shown


def run(setting: Setting, sizes: ImageCounts, out: Path, isolation: Isolation = isolated) -> Row:
    """Measure, write `similarity-DEVICE.json` under `out` after each part, print the table."""
    path = out / f"similarity-{device_label(setting.device)}.json"
    command = f"{command_of('similarity', setting)} {sizes.options}"
    report: Row = {}
    for report in compare_all(setting, sizes, command, isolation):
        write(path, report)
    Console().print(table(report))
    print("\n".join(summary_lines(report)))
    print(path)
    return report


def bench_similarity(benchmark):
    """The comparison once, into its JSON; the figures stand in `extra_info`."""
    report = benchmark.pedantic(run, (usual_setting(), ImageCounts(), RESULTS), rounds=1)
    benchmark.extra_info |= {row["figure"]: row["value"] for row in report["summary"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="measures of similarity beside grid and package")
    add_options(parser)
    for name, value in asdict(ImageCounts()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    sizes = ImageCounts(**{name: getattr(options, name) for name in asdict(ImageCounts())})
    run(setting_of(options), sizes, options.out)


if __name__ == "__main__":
    main()
