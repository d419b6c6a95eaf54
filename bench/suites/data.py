"""Images per second at 32x32, batch 128, crop and flip included, to finished float batches; and the
share of a wave's step that is spent waiting for them.

`fula-fast bench data`, or `python -m fula_fast.bench.suites.data FILE.json` for p20/p50/p80 with
hardware and versions. The peer is torchvision's DataLoader, as usually written: class folder or
array, Pillow image, RandomCrop, RandomHorizontalFlip, ToTensor. Targets: resident on a GPU at least
10 million images/s inside a graph (as in a captured step), and at most 2% of a step; DALI on two
CPU cores at least 25,000 images/s from memory and three times a DataLoader from JPEG.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fula_fast.bench.harness import workload
from fula_fast.bench.harness.record import captured, environment, quantiles, write
from fula_fast.engine.modes import open_stepper
from fula_fast.pipelines import Augmentation, ImageSet, Stream, load_source, open_stream
from fula_fast.pipelines.decode.cache import cores
from fula_fast.pipelines.decode.dali import dali_installed, require_dali
from fula_fast.pipelines.streams.base import Batch

IMAGES, BATCH, ROUNDS = 5000, 128, 9
NOTE = (
    "cases take turns, round by round; hardware.load is the machine's load average at the end: "
    "well above its cores, other programs shared them, and images_per_second is a lower bound"
)
TARGETS = {"resident-graph-cuda": 10e6, "dali-memory-cpu": 25e3}  # images per second
OVER_DATALOADER = 3.0  # DALI over a DataLoader with its best workers, both from JPEG
WAITING = 0.02  # of a step, at most, on the resident stream
WAVE_STEPS = 8  # of a round
WORKERS = [w for w in (0, 1, 2, 4, 8, 16) if w <= cores()]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@lru_cache(maxsize=1)
def class_folder() -> Path:
    """Ten classes of smooth random 32x32 JPEGs, as many bytes each as small photographs have."""
    folder = Path(tempfile.mkdtemp(prefix="fula-bench-"))
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("test", 10)):
        for i in range(count):
            place = folder / split / f"class{i % 10}"
            place.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{i:05}.jpg")
    return folder


@lru_cache(maxsize=1)
def in_memory() -> ImageSet:
    """As many random images, decoded."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(IMAGES) % 10, tuple("0123456789"))


@cache
def _stream(backend: str, device: str, from_files: bool):
    images = in_memory()
    if from_files:
        decoder = "dali-gpu" if device == "cuda" else "dali"
        options = {"size": 32, "cached": False, "decoder": decoder}
        images = load_source("imagefolder", path=str(class_folder()), **options).train
    return open_stream(
        images,
        batch_size=BATCH,
        seed=0,
        augmentation=Augmentation(),
        backend=backend,
        device=device,
    )


def ours(backend: str, device: str, from_files: bool = False) -> Iterable:
    """An epoch of one of our streams."""
    return _stream(backend, device, from_files).epoch(0)


def graphed() -> Callable[[], Iterable]:
    """Epochs of the resident stream by replays of one graph, as a captured step takes batches."""
    held: list[Any] = []  # captured when the first epoch starts

    def epoch() -> Iterator[Batch]:
        stream = _stream("resident", "cuda", False)
        stream.load_epoch(0)
        if not held:
            step = torch.zeros((), dtype=torch.int64, device="cuda")
            held.extend((step, *captured(partial(stream.batch_at, step))))
        step, replay, batch = held
        for number in range(stream.steps):
            step.fill_(number)
            replay()
            yield batch

    return epoch


class _Arrays(torch.utils.data.Dataset):
    """Decoded images behind torchvision's transforms, as its own CIFAR10 class has them."""

    def __init__(self, transform: Callable) -> None:
        self.images, self.transform = in_memory(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.images.images[i])), int(self.images.labels[i])


def peer(workers: int, from_files: bool = False) -> Iterable:
    """An epoch of a torchvision DataLoader."""
    from torchvision import datasets, transforms

    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose(steps)
    if from_files:
        images = datasets.ImageFolder(str(class_folder() / "train"), transform)
    else:
        images = _Arrays(transform)
    return torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, drop_last=True
    )


def streams(device: str) -> dict[str, tuple[str, bool]]:
    """Name -> backend, and whether it reads files; DALI's where it is installed."""
    found = {
        f"{backend}-memory-{device}": (backend, False) for backend in ("reference", "resident")
    }
    if dali_installed():
        found |= {f"dali-memory-{device}": ("dali", False), f"dali-jpeg-{device}": ("dali", True)}
    return found


def cases() -> dict[str, Callable[[], Iterable]]:
    """Name -> a function that starts an epoch."""
    found: dict[str, Callable[[], Iterable]] = {}
    for device in DEVICES:
        for name, (backend, from_files) in streams(device).items():
            found[name] = partial(ours, backend, device, from_files)
    if "cuda" in DEVICES:
        found["resident-graph-cuda"] = graphed()
    for workers in WORKERS:
        found[f"dataloader-memory-{workers}-workers"] = partial(peer, workers)
        found[f"dataloader-jpeg-{workers}-workers"] = partial(peer, workers, True)
    return found


def consume(start: Callable[[], Iterable]) -> int:
    """Run an epoch to its end; the number of images."""
    count = sum(len(batch[1]) for batch in start())
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count


@pytest.mark.parametrize("name", cases())
def bench_epoch(benchmark, name):
    """One epoch of 5,000 images."""
    start = cases()[name]
    count = benchmark.pedantic(consume, (start,), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = count / benchmark.stats.stats.median


def measure(starts: dict[str, Callable[[], Iterable]], rounds: int = ROUNDS) -> list[dict]:
    """A row each: images per second, and per second of processor time (workers' too).

    The cases take turns, so that other load on the machine falls on all alike.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    for turn in range(rounds + 1):
        for name, start in starts.items():
            clock, before = time.perf_counter(), _cpu_seconds()
            count = consume(start)
            wall, cpu = time.perf_counter() - clock, _cpu_seconds() - before
            if turn:  # the first one warms up
                taken[name].append((count / wall, count / cpu))
    return [_row(name, rates) for name, rates in taken.items()]


def _row(name: str, rates: list[tuple[float, float]]) -> dict:
    per_second, per_core_second = zip(*rates, strict=True)
    return {
        "name": name,
        "images_per_second": quantiles(per_second),
        "images_per_core_second": quantiles(per_core_second),
        "target": TARGETS.get(name),
    }


def _cpu_seconds() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


class Handed:
    """A stream that hands on the batches of `source` and notes how long each one took.

    The device is idle before and after: what it does for a batch counts, and nothing else does.
    """

    def __init__(self, device: str, batch: int = BATCH, steps: int = WAVE_STEPS) -> None:
        self.batch_size, self.steps, self.device = batch, steps, device
        self.source: Stream | None = None
        self.waited: list[float] = []

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches `start_step` … `steps` - 1."""
        flow, self.waited = self.source.epoch(epoch, start_step), []
        for _ in range(start_step, self.steps):
            began = _now(self.device)
            batch = next(flow)
            self.waited.append(_now(self.device) - began)
            yield batch
        flow.close()


def _now(device: str) -> float:
    """Seconds, once the device has done all that the wave and its batches asked of it."""
    if device != "cpu":
        torch.cuda.current_stream().synchronize()  # not the prefetching, which goes on beside
    return time.perf_counter()


def wave_setting(device: str) -> workload.Setting:
    """A small wave: four lanes of width 16 on a CPU, 36 of full width on a GPU."""
    usual = workload.usual_setting(device)
    if device != "cpu":
        return replace(usual, lanes=36, timed=1, warmup=1)
    return replace(usual, lanes=4, width=16, timed=1, warmup=1, mode="eager")


def measure_waiting(device: str, rounds: int) -> list[dict]:
    """A row for each stream: the share of a real wave's steps in which it waits for its batch.

    The streams take turns. An epoch's first batch has a figure of its own: it comes with the
    epoch's random numbers and the start of the prefetching, once in hundreds of steps.
    """
    setting = wave_setting(device)
    with workload.as_in_a_sweep(setting):
        return _measure_waiting(setting, rounds)


def _measure_waiting(setting: workload.Setting, rounds: int) -> list[dict]:
    device = setting.device
    wave = workload.OurWave(setting, workload.grid_cells(setting.lanes))
    handed = Handed(device)
    stepper = open_stepper(replace(wave.stepper.task, stream=handed), wave.wave, wave.mode)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in streams(device)}
    for turn in range(rounds + 1):
        for name, chosen in streams(device).items():
            handed.source = _stream(chosen[0], device, chosen[1])
            found = waiting_of(stepper.epoch(turn), handed)
            if turn:  # the first one warms up
                taken[name].append(found)
    size = {"lanes": setting.lanes, "width": setting.width, "mode": wave.mode,
            "precision": setting.precision}  # fmt: skip
    return [_waiting_row(name, found) | {"wave": size} for name, found in taken.items()]


def waiting_of(steps: Iterator[int], handed: Handed) -> tuple[float, float, float]:
    """Share of the steps after the first, seconds of one, and of the first batch."""
    marks = [_now(handed.device) for _ in steps]  # at the end of every step
    seconds = marks[-1] - marks[0]
    return sum(handed.waited[1:]) / seconds, seconds / (len(marks) - 1), handed.waited[0]


def _waiting_row(name: str, found: list[tuple[float, float, float]]) -> dict:
    share, step, first = map(quantiles, zip(*found, strict=True))
    return {
        "name": f"waiting share, {name}",
        "share": share,
        "step_seconds": step,
        "first_batch_seconds": first,
        "target": WAITING if name.startswith("resident") else None,
    }


def summary(rows: list[dict], waiting: list[dict]) -> list[dict]:
    """The figures to compare with targets; all are better when higher."""
    rates = {row["name"]: row["images_per_second"]["p50"] for row in rows}
    found = [_figure(f"{name}, images/s", rate, TARGETS.get(name)) for name, rate in rates.items()]
    peers = [rate for name, rate in rates.items() if name.startswith("dataloader-jpeg")]
    if peers and "dali-jpeg-cpu" in rates:
        times = rates["dali-jpeg-cpu"] / max(peers)
        found.append(_figure("dali-jpeg-cpu, times a DataLoader", times, OVER_DATALOADER))
    for row in waiting:
        name = row["name"].replace("waiting share", "share of the step not spent waiting")
        least = None if row["target"] is None else 1 - row["target"]
        found.append(_figure(name, 1 - row["share"]["p50"], least))
    return found


def _figure(name: str, value: float, target: float | None) -> dict:
    return {"figure": name, "value": value, "target": target}


def main(out: str, rounds: str = str(ROUNDS)) -> None:
    """Measure every case, then the waiting, and write the rows."""
    rows = measure(cases(), int(rounds))
    waiting = [row for device in DEVICES for row in measure_waiting(device, int(rounds))]
    figures = summary(rows, waiting)
    for row in rows:
        wall, cpu = (row[f"images_per_{unit}"]["p50"] for unit in ("second", "core_second"))
        print(f"{row['name']:32} {wall:12,.0f} images/s {cpu:12,.0f} images/core-s")
    for row in waiting:
        print(f"{row['name']:48} {row['share']['p50']:8.2%} of {row['step_seconds']['p50']:.4f} s")
    report = environment(DEVICES[-1], f"python -m fula_fast.bench.suites.data {out}")
    report["versions"]["dali"] = require_dali().__version__ if dali_installed() else None
    report |= {"images": IMAGES, "batch": BATCH, "note": NOTE, "rows": rows, "waiting": waiting}
    write(Path(out), report | {"summary": figures})


if __name__ == "__main__":
    main(*sys.argv[1:])
