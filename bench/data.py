"""Images per second at 32x32, batch 128, crop and flip included, to finished float batches.

`fula-fast bench data`, or `python -m fula_fast.bench.data FILE.json` for p20/p50/p80 with hardware
and versions. The peer is torchvision's DataLoader, as usually written: class folder or array, Pillow
image, RandomCrop, RandomHorizontalFlip, ToTensor. Targets on two CPU cores: DALI at least 25,000
images/s from memory and three times a DataLoader from JPEG.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fula_fast.bench.record import environment, quantiles, write
from fula_fast.pipelines import Augmentation, ImageSet, load_source, open_stream
from fula_fast.pipelines.cache import cores
from fula_fast.pipelines.dali import dali_installed, require_dali

IMAGES, BATCH, ROUNDS = 5000, 128, 9
NOTE = (
    "cases take turns, round by round; hardware.load is the machine's load average at the end: well "
    "above its cores, other programs shared them, and images_per_second is a lower bound"
)
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


def cases() -> dict[str, Callable[[], Iterable]]:
    """Name -> a function that starts an epoch; DALI's where it is installed."""
    found: dict[str, Callable[[], Iterable]] = {}
    dali = dali_installed()
    for device in DEVICES:
        for backend in ("reference", "resident", *(["dali"] if dali else [])):
            found[f"{backend}-memory-{device}"] = partial(ours, backend, device)
        if dali:
            found[f"dali-jpeg-{device}"] = partial(ours, "dali", device, True)
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
    }


def _cpu_seconds() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def main(out: str, rounds: str = str(ROUNDS)) -> None:
    """Measure every case and write the rows."""
    rows = measure(cases(), int(rounds))
    for row in rows:
        wall, cpu = (row[f"images_per_{unit}"]["p50"] for unit in ("second", "core_second"))
        print(f"{row['name']:32} {wall:12,.0f} images/s {cpu:12,.0f} images/core-s")
    report = environment(DEVICES[-1], f"python -m fula_fast.bench.data {out}")
    report["versions"]["dali"] = require_dali().__version__ if dali_installed() else None
    report |= {"images": IMAGES, "batch": BATCH, "note": NOTE}
    write(Path(out), report | {"rows": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
