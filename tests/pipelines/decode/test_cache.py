"""The cache: entries appear whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fula_fast.errors import FulaError
from fula_fast.files.paths import cache_folder
from fula_fast.pipelines.decode.cache import build_once, content_digest, load_array, save_arrays


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FULA_CACHE", str(tmp_path / "cache"))


def test_an_entry_is_filled_once():
    calls = []

    def fill(folder):
        calls.append(folder)
        save_arrays(folder, numbers=np.arange(3))

    entries = {build_once("kind", "key", fill) for _ in range(3)}
    assert len(entries) == len(calls) == 1
    loaded = load_array(entries.pop(), "numbers")
    assert isinstance(loaded, np.memmap) and loaded.tolist() == [0, 1, 2]


@pytest.mark.parametrize("error", [FulaError("no"), RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_fill_leaves_nothing(error):
    def fill(folder):
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(type(error)):
        build_once("kind", "key", fill)
    assert list((cache_folder() / "kind").iterdir()) == []


def test_a_full_disk_is_named():
    def fill(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(FulaError, match="No space left on device.*set FULA_CACHE"):
        build_once("kind", "key", fill)


def test_builders_at_the_same_time_agree():
    def build(_):
        return build_once("kind", "same", lambda f: save_arrays(f, x=np.ones(1000)))

    with ThreadPoolExecutor(8) as pool:
        entries = set(pool.map(build, range(16)))
    assert len(entries) == 1 and load_array(entries.pop(), "x").sum() == 1000
    assert [p.name for p in (cache_folder() / "kind").iterdir()] == ["same"]


def test_digests_follow_bytes_and_are_remembered(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"12345")
    first = content_digest([file], tmp_path)
    file.write_bytes(b"54321")  # the same size, within the clock's grain
    second = content_digest([file], tmp_path)
    assert second != first and not (cache_folder() / "digests").exists()
    os.utime(file, (1e9, 1e9))
    assert content_digest([file], tmp_path) == second
    file.write_bytes(b"12345")
    os.utime(file, (1e9, 1e9))  # a forged time: the remembered digest is taken, nothing read
    assert content_digest([file], tmp_path) == second
    os.utime(file, (1e9, 1e9 + 1))
    assert content_digest([file], tmp_path) == first
