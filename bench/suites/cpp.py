"""The C++ kernels on a CPU against eager PyTorch, at the shapes of ResNet-18 on CIFAR-10.

    fula-fast bench cpp                              (pytest-benchmark)
    python -m fula_fast.bench.suites.cpp --rounds 7         (JSON: n, p20, p50, p80 of each case)

"Eager" is `fula_fast.kernels.reference`, run as it stands; `augment` is measured against
torchvision's transforms, one image at a time, as a loader applies them. Each case is a forward and,
where there is one, a backward pass through the public operator, so Python's share is in it. The two
take turns, so that a busy machine is shared fairly.

Targets: hint_terms >= 5x eager, stitch_hint >= 1.5x eager, augment >= 5x torchvision's transforms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fula_fast import kernels
from fula_fast.bench.harness.record import (
    RESULTS,
    environment,
    parser_of,
    quantiles,
    seconds_of,
    write,
)
from fula_fast.device.allocator import keeping_memory
from fula_fast.kernels import backend

SITES = {"32x32": (64, 32), "16x16": (128, 16), "8x8": (256, 8), "4x4": (512, 4)}
"""Channels and size at ResNet-18's four resolutions."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH = 128
MEMORY = ("returned", "kept")
"""Freed memory: returned to the system, as PyTorch does, or kept, as our sweeps do. Page faults are
a good part of an eager operator's time in the first."""
TARGETS = {"hint_terms": 5.0, "stitch_hint": 1.5, "augment": 5.0}


@dataclass(frozen=True)
class Shape:
    """Where a kernel is timed: `site` of SITES, lanes, dtype of DTYPES, channels-last or not."""

    site: str
    lanes: int
    dtype: str
    last: bool = True

    def random(self, lanes: int | None = None) -> Tensor:
        """Activations of so many lanes (default: all), (L*B, C, H, W)."""
        channels, size = SITES[self.site]
        layout = torch.channels_last if self.last else torch.contiguous_format
        count = BATCH * (self.lanes if lanes is None else lanes)
        x = torch.randn(count, channels, size, size, dtype=DTYPES[self.dtype])
        return x.contiguous(memory_format=layout)

    def label(self) -> str:
        """`32x32 lanes 4 fp32 channels-last`."""
        order = "channels-last" if self.last else "contiguous"
        return f"{self.site} lanes {self.lanes} {self.dtype} {order}"


def lane_norm(shape: Shape) -> Callable[[], object]:
    """A residual block's last norm with its term: forward and backward."""
    x, residual, dy = shape.random(), shape.random(), shape.random()
    target, channels = shape.random(1), SITES[shape.site][0]
    x.requires_grad_()
    residual.requires_grad_()
    ddist2 = torch.rand(shape.lanes, BATCH)
    weight, bias = torch.rand(channels), torch.rand(channels)
    running = torch.rand(2, shape.lanes, channels)

    def step() -> object:
        y, _, _, dist2 = kernels.lane_norm(
            x, weight, bias, *running, lanes=shape.lanes, training=True, eps=1e-5,
            residual=residual, relu=True, target=target,
        )  # fmt: skip
        return torch.autograd.grad([y, dist2], [x, residual], [dy, ddist2])

    return step


def hint_terms(shape: Shape) -> Callable[[], object]:
    """Distances of every lane to one target: forward and backward."""
    x, target, ddist2 = shape.random(), shape.random(1), torch.rand(shape.lanes, BATCH)
    x.requires_grad_()

    def step() -> object:
        (dist2,) = kernels.hint_terms([x], [target])
        return torch.autograd.grad(dist2, x, ddist2)

    return step


def stitch_hint(shape: Shape) -> Callable[[], object]:
    """The Hint step: forward and backward of the stitches of lanes that share front and target."""
    x, target = shape.random(1)[None], shape.random(1)[None]
    channels = SITES[shape.site][0]
    weight = (torch.randn(shape.lanes, channels, channels) / channels**0.5).requires_grad_()
    bias = torch.zeros(shape.lanes, channels, requires_grad=True)
    index, ddist2 = [0] * shape.lanes, torch.rand(shape.lanes, BATCH)

    def step() -> object:
        _, dist2 = kernels.stitch_hint(x, weight, bias, index, target, index, write=False)
        return torch.autograd.grad(dist2, [weight, bias], ddist2)

    return step


def pgd_step(norm: str) -> Callable[[], object]:
    """One step on a batch of CIFAR-10 images."""
    x, grad, clean = torch.rand(3, BATCH, 3, 32, 32)
    return partial(kernels.pgd_step, x, grad - 0.5, clean, 2 / 255, 8 / 255, norm)


def gram(rows: int = 8192, channels: int = 128) -> Callable[[], object]:
    """Normal equations of a 1x1 map."""
    x, y = torch.randn(2, rows, channels)
    return partial(kernels.gram, x, y)


def _draw() -> tuple[Tensor, ...]:
    images = torch.randint(0, 256, (2048, 32, 32, 3), dtype=torch.uint8)
    offsets = [torch.randint(0, 9, (2048,)) for _ in range(2)]
    return images, torch.randperm(2048)[:BATCH], *offsets, torch.rand(2048) > 0.5


def augment() -> dict[str, Callable[[], object]]:
    """A batch of CIFAR-10 images, padded, cropped, flipped."""
    from torchvision.transforms import v2

    images, index, dy, dx, flip = _draw()
    transform = v2.Compose(
        [v2.RandomHorizontalFlip(), v2.RandomCrop(32, 4), v2.ToDtype(torch.float32, scale=True)]
    )
    pictures = images.permute(0, 3, 1, 2)
    return {
        "ours": partial(kernels.augment, images, index, dy, dx, flip, 4),
        "torchvision": lambda: torch.stack([transform(pictures[i]) for i in index]),
    }


def _served(name: str, step: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with backend.using(name):
            return step()

    return run


def both(step: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The step by the C++ kernels, and by eager PyTorch."""
    return {"ours": _served("cpp", step), "eager": _served("reference", step)}


def cases(lanes: int) -> dict[tuple[str, str], Callable[[], dict[str, Callable[[], object]]]]:
    """Every case by (noun, label), made when called: only one is in memory at a time."""
    shapes = [Shape(s, lanes, d, last) for s in SITES for d in DTYPES for last in (True, False)]
    found = {
        (make.__name__, shape.label()): partial(_made, make, shape)
        for make in (lane_norm, hint_terms, stitch_hint)
        for shape in shapes
    }
    found |= {("pgd_step", norm): partial(_made, pgd_step, norm) for norm in ("linf", "l2")}
    return found | {("gram", "8192 x 128"): partial(_made, gram), ("augment", "32x32"): augment}


def _made(make: Callable[..., Callable[[], object]], *arguments: object) -> dict[str, Any]:
    return both(make(*arguments))


def row(noun: str, label: str, runs: dict[str, Callable[[], object]], rounds: int) -> dict:
    """Times of one case in turns, and the median over rounds of their ratio."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name] += seconds_of(lambda _, run=run: run(), 1, "cpu", warmup=0)
    ours, other = times["ours"], next(t for name, t in times.items() if name != "ours")
    return {
        "noun": noun,
        "case": label,
        "seconds": {name: quantiles(taken) for name, taken in times.items()},
        "speedup": float(np.median([b / a for a, b in zip(ours, other, strict=True)])),
    }


def summary(rows: list[dict]) -> list[dict]:
    """For each noun with a target: time of all its cases, ours against the other's."""
    found = []
    for memory in MEMORY:
        for noun, target in TARGETS.items():
            chosen = [r["seconds"] for r in rows if (r["noun"], r["memory"]) == (noun, memory)]
            figure = f"cpu {noun} speed-up, freed memory {memory}"
            found.append({"figure": figure, "value": _speedup(chosen), "target": target})
    return found


def _speedup(cases: list[dict]) -> float:
    totals: dict[bool, float] = {True: 0.0, False: 0.0}
    for seconds in cases:
        for name, taken in seconds.items():
            totals[name == "ours"] += taken["p50"]
    return totals[False] / totals[True]


def report(lanes: int, rounds: int) -> dict[str, Any]:
    """All cases as rows."""
    torch.manual_seed(0)
    rows = []
    for memory in MEMORY:
        with keeping_memory(memory == "kept"):
            found = (row(*name, make(), rounds) for name, make in cases(lanes).items())
            rows += [r | {"memory": memory} for r in found]
    return {
        "benchmark": "kernels-cpu",
        "note": "the cases took turns; hardware.load says what else ran",
        **environment(
            "cpu", f"python -m fula_fast.bench.suites.cpp --lanes {lanes} --rounds {rounds}"
        ),
        "summary": summary(rows),
        "rows": rows,
    }


@pytest.mark.parametrize("name", ["ours", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("noun", [lane_norm, hint_terms, stitch_hint], ids=lambda f: f.__name__)
def bench_noun(benchmark, noun, site, dtype, name):
    """Four lanes, channels-last."""
    step = both(noun(Shape(site, 4, dtype)))[name]
    benchmark.pedantic(step, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("name", ["ours", "torchvision"])
def bench_augment(benchmark, name):
    """128 CIFAR-10 images."""
    benchmark.pedantic(augment()[name], rounds=5, warmup_rounds=1)


def main(arguments: list[str]) -> None:
    """Run every case and write the JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels-cpu.json")
    chosen = parser.parse_args(arguments)
    result = report(chosen.lanes, chosen.rounds)
    for figure in result["summary"]:
        print(f"{figure['figure']}: {figure['value']:.1f}x (target {figure['target']}x)")
    print(write(chosen.out, result))


if __name__ == "__main__":
    main(sys.argv[1:])
