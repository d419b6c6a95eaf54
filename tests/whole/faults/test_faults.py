"""A sample of the points at which a file operation of a run can fail: see `harness`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")


def faults(*arguments: str) -> dict:
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("the layer below file operations needs Linux and a C compiler")
    done = subprocess.run(
        [sys.executable, HARNESS, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(found: dict) -> None:
    assert found["cells"] == 40 and found["calls"] > 1000
    assert found["failed"] == []
    ends = {kind: set(ended) for kind, ended in found["outcomes"].items()}
    assert ends["kill before"] == ends["kill after"] == {"killed"}
    assert ends["ENOSPC"] == {"one line"} and "one line" in ends["EIO"]
    assert ends["short write"] == {"went on"}


@pytest.mark.slow
def test_a_keyed_sample_of_faults_loses_nothing():
    found = faults("--sample", "60", "--jobs", "1")  # other tests run beside it
    assert found["tried"] == 60
    check(found)


@pytest.mark.long
def test_no_fault_loses_anything():
    found = faults()
    assert found["tried"] == found["points"]
    check(found)
