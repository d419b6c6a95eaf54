"""Data that do not fit in memory: up to 1.3 million images at 224 pixels, read through DALI.

    python -m fula_fast.bench.suites.large_data

The images are those of `tiny-imagenet-10.tar.xz` in the data folder (64x64 JPEG, resized to 224 by
DALI), repeated through an index to the number of entries. A small stitched wave trains on them.
Each number of entries has a process of its own. Figures: memory that entries cost (index, an
epoch's random numbers, pipeline), memory that grows while the wave trains, the share of a step
spent waiting for its batch, images per second of the stream alone. Then the same images as
WebDataset shards: what reading their headers takes, once and again. Targets: memory grows by at
most 64 MiB in training, and costs at most 128 bytes an entry.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fula_fast.bench.harness import workload
from fula_fast.bench.harness.record import (
    RESULTS,
    PeakMemory,
    environment,
    isolated,
    parser_of,
    quantiles,
    write,
)
from fula_fast.bench.suites.data import Handed, waiting_of
from fula_fast.engine.modes import open_stepper
from fula_fast.pipelines import Augmentation, load_source, open_stream
from fula_fast.pipelines.decode.files import FileSet
from fula_fast.pipelines.sources.by_name import data_folder

ENTRIES = (13_000, 130_000, 1_300_000)
SETTING = workload.Setting(
    "cpu", "fp32", width=8, batch=16, lanes=4, timed=1, warmup=1, mode="eager", image=224
)
ARCHIVE = "tiny-imagenet-10.tar.xz"
GROWTH, EACH = 64 << 20, 128.0  # bytes
_SHARD, _SHARDS = 10_000, 5
Row = dict[str, Any]


def images_at_hand(size: int = SETTING.image) -> FileSet:
    """The training images, as files."""
    path = str(data_folder() / ARCHIVE)
    options = {"path": path, "size": size, "cached": False, "decoder": "dali"}
    return load_source("imagefolder", **options).train


def repeated(images: FileSet, entries: int) -> FileSet:
    """The same images again and again, to so many entries."""
    index = images.index
    samples, labels = (np.resize(part, entries) for part in (index.samples, index.labels))
    return replace(images, index=replace(index, samples=samples, labels=labels))


def measure(entries: int, steps: int, rounds: int, setting: workload.Setting = SETTING) -> Row:
    """A wave trained on so many entries, `rounds` epochs of `steps` steps after one to warm up."""
    with workload.as_in_a_sweep(setting):
        return _measure(entries, steps, rounds, setting)


def _measure(entries: int, steps: int, rounds: int, setting: workload.Setting) -> Row:
    wave = workload.OurWave(setting, workload.grid_cells(setting.lanes))
    handed = Handed(setting.device, setting.batch, steps)
    stepper = open_stepper(replace(wave.stepper.task, stream=handed), wave.wave, wave.mode)
    images = images_at_hand(setting.image)
    handed.source = _stream(repeated(images, steps * setting.batch), setting)
    waiting_of(stepper.epoch(0), handed)  # what a wave and a pipeline take, whatever they read
    memory = PeakMemory(setting.device)
    handed.source = stream = _stream(repeated(images, entries), setting)
    found, peaks = [], []
    for turn in range(rounds + 1):
        found.append(waiting_of(stepper.epoch(turn), handed))
        peaks.append(memory.bytes())
    share, step, first = (quantiles(values) for values in zip(*found[1:], strict=True))
    return {
        "entries": entries,
        "files": len(images),
        "waiting_share": share,
        "step_seconds": step,
        "first_batch_seconds": first,
        "bytes": peaks[0],
        "grown_bytes": peaks[-1] - peaks[0],
        "stream_images_per_second": quantiles(list(_rates(stream, steps, rounds))),
    }


def _stream(images: FileSet, setting: workload.Setting):
    return open_stream(
        images, batch_size=setting.batch, seed=0, augmentation=Augmentation(), backend="dali",
        device=setting.device,
    )  # fmt: skip


def _rates(stream: Any, steps: int, rounds: int) -> Iterator[float]:
    """Images per second of the stream alone, the first batch of an epoch aside."""
    for turn in range(rounds):
        batches = iter(stream.epoch(turn))
        next(batches)
        began = time.perf_counter()
        count = sum(len(batch[1]) for batch in islice(batches, 4 * steps))
        yield count / (time.perf_counter() - began)


def write_shards(folder: Path, images: FileSet, samples: int, shards: int) -> None:
    """The images again and again as `shards` training shards of so many samples, and one to
    test."""
    for number, count in enumerate([*[samples] * shards, len(images)]):
        split = "train" if number < shards else "test"
        with tarfile.open(folder / f"{split}-{number:04}.tar", "w") as tar:
            for i in range(count):
                kept = i % len(images)
                _add(tar, f"{i:07}.jpg", images.index.read(kept).tobytes())
                _add(tar, f"{i:07}.cls", str(images.labels[kept]).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def measure_shards(samples: int, shards: int, rounds: int) -> Row:
    """Seconds to open shards for the first time and again, and bytes of their index an image."""
    first, again, kept = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), images_at_hand(), samples, shards)
        for turn in range(rounds):
            cache = Path(folder) / f"cache{turn}"
            os.environ["FULA_CACHE"] = str(cache)
            for taken in (first, again):
                began = time.perf_counter()
                load_source("webdataset", path=folder, size=SETTING.image)
                taken.append(time.perf_counter() - began)
            kept = sum(f.stat().st_size for f in (cache / "shards-1").rglob("*.npy"))
    images = samples * shards + len(images_at_hand())
    return {
        "images": images,
        "shards": shards + 1,
        "first_seconds": quantiles(first),
        "again_seconds": quantiles(again),
        "index_bytes_per_image": kept / images,
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """The figures to compare with targets; all are better when higher."""
    most = rows[-1]
    grown = max(row["grown_bytes"] for row in rows)
    each = (most["bytes"] - rows[0]["bytes"]) / max(1, most["entries"] - rows[0]["entries"])
    return [
        _figure("MiB not grown of those allowed", (GROWTH - grown) / 2**20, 0.0),
        _figure("bytes an entry below those allowed", EACH - each, 0.0),
        _figure("share of the step not spent waiting", 1 - most["waiting_share"]["p50"], None),
    ]


def _figure(name: str, value: float, target: float | None) -> Row:
    return {"figure": name, "value": value, "target": target}


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=12, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    asked = parser.parse_args()
    command = (
        f"python -m fula_fast.bench.suites.large_data --steps {asked.steps} --rounds {asked.rounds}"
    )
    rows = [isolated(measure, entries, asked.steps, asked.rounds) for entries in ENTRIES]
    for row in rows:
        print(
            f"{row['entries']:10,} entries: {row['bytes'] / 2**20:6.1f} MiB, grown "
            f"{row['grown_bytes'] / 2**20:.1f}; waiting {row['waiting_share']['p50']:.2%} of "
            f"{row['step_seconds']['p50']:.2f} s; the stream alone "
            f"{row['stream_images_per_second']['p50']:,.0f} images/s"
        )
    shards = isolated(measure_shards, _SHARD, _SHARDS, asked.rounds)
    print(
        f"{shards['images']:,} images in shards: {shards['first_seconds']['p50']:.2f} s, again "
        f"{shards['again_seconds']['p50']:.3f} s, {shards['index_bytes_per_image']:.0f} bytes each"
    )
    report = {
        "bench": "large_data", **environment(SETTING.device, command), "setting": asdict(SETTING),
        "rows": rows, "webdataset": shards, "summary": summary(rows),
    }  # fmt: skip
    print(write(asked.out / "large-data-cpu.json", report))


if __name__ == "__main__":
    main()
