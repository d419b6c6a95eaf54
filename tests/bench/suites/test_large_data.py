"""The benchmark of large data: entries repeat files, shards hold them, targets stand by figures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nvidia.dali", reason="pip install nvidia-dali")
from fula_fast.bench.harness.workload import Setting
from fula_fast.bench.suites import large_data

DATA = os.environ.get("FULA_TEST_DATA", "")
pytestmark = pytest.mark.skipif(
    not (Path(DATA) / large_data.ARCHIVE).is_file(), reason="FULA_TEST_DATA has no Tiny-ImageNet"
)


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setenv("FULA_DATA", DATA)


def test_entries_repeat_the_files():
    images = large_data.images_at_hand(16)
    more = large_data.repeated(images, len(images) + 3)
    assert len(more) == len(images) + 3
    again = np.arange(3)
    assert np.array_equal(more.gather(len(images) + again), images.gather(again))
    assert np.array_equal(more.labels[len(images) :], images.labels[:3])


@pytest.mark.slow
def test_a_wave_trains_on_entries_and_says_what_it_took():
    tiny = Setting("cpu", "fp32", width=2, batch=4, lanes=4, timed=1, warmup=1, mode="eager")
    row = large_data.measure(20_000, steps=11, rounds=1, setting=tiny)
    assert row["entries"] == 20_000 and row["step_seconds"]["n"] == 1
    assert 0 <= row["waiting_share"]["p50"] <= 1 and row["stream_images_per_second"]["p50"] > 0


@pytest.mark.slow
def test_shards_hold_the_images(tmp_path, monkeypatch):
    monkeypatch.setenv("FULA_CACHE", str(tmp_path))
    row = large_data.measure_shards(300, 2, 1)
    assert row["images"] == 600 + len(large_data.images_at_hand())
    assert row["again_seconds"]["p50"] < row["first_seconds"]["p50"]
    assert 20 < row["index_bytes_per_image"] < 100


def test_targets_stand_by_their_figures():
    rows = [
        {"entries": n, "bytes": 10_000_000 + 40 * n, "grown_bytes": 1 << 20, "waiting_share": {"p50": 0.1}}
        for n in (1000, 1_000_000)
    ]  # fmt: skip
    values = [row["value"] for row in large_data.summary(rows)]
    assert values == pytest.approx([63.0, 88.0, 0.9])
