"""A thousand waves in one process: memory and open files stay as they are."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

import fula_fast
from fula_fast.progress import Progress
from fula_fast.runs.sweep import run_sweep
from fula_fast.study.spec import load_spec

_found = importlib.util.spec_from_file_location(
    "harness", Path(__file__).parent / "faults/harness.py"
)
harness = sys.modules["harness"] = importlib.util.module_from_spec(_found)
_found.loader.exec_module(harness)

WAVES = int(os.environ.get("FULA_SOAK", "1000"))
MOST_MIB = 8
"""Growth allowed behind the warm-up, of which the finished cells' index takes a part."""


class Watch(Progress):
    """Resident MiB, open files and threads after every wave."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, int]] = []

    def cell_done(self, row) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        files, threads = (len(os.listdir(f"/proc/self/{part}")) for part in ("fd", "task"))
        self.seen.append((mib, files, threads))


@pytest.mark.long
def test_memory_and_files_stay_flat(tmp_path):
    harness.add_tiny_network()
    harness.make_data(tmp_path / "data")
    grid = {"front": "a", "end": "b", "sites": [[2, 3]], "methods": ["fula"], "seeds": [0]}
    spec = harness.SPEC | {
        "data": harness.SPEC["data"] | {"data_dir": str(tmp_path / "data")},
        "grid": grid | {"data_seeds": list(range(WAVES))},
    }
    watch = Watch()
    done = run_sweep(load_spec(spec), tmp_path / "run", progress=watch, donors=tmp_path / "donors")
    assert done.cells == len(watch.seen) == WAVES and not done.failed
    assert len(fula_fast.store.Store.open(tmp_path / "run").waves()) == WAVES
    warm = watch.seen[WAVES // 5 :]
    for name, part in zip(("MiB", "files", "threads"), zip(*warm, strict=True), strict=True):
        print(f"{name}: {part[0]:.0f} after {WAVES // 5} waves, {part[-1]:.0f} at the end, "
              f"at most {max(part):.0f}")  # fmt: skip
    (first, files, threads), (last, *_) = warm[0], warm[-1]
    assert last - first < MOST_MIB
    assert max(each[1] for each in warm) <= files + 1
    assert max(each[2] for each in warm) <= threads
