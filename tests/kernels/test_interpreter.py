"""Runs the tests of Triton kernels in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def _interpret(selection: str, file: str = "test_triton.py") -> None:
    """pytest on a file with the interpreter on; nothing may fail, something must run."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(Path(__file__).with_name(file)), "-m", selection]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " failed" not in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is that process")
def test_kernels_in_the_interpreter():
    _interpret("not slow and not gpu")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is that process")
def test_fused_convolutions_in_the_interpreter():
    _interpret("not slow and not gpu", "test_lane_conv.py")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is that process")
def test_a_sample_of_options_in_the_interpreter():
    _interpret("slow and not long and not gpu")


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is that process")
def test_all_options_in_the_interpreter():
    _interpret("long and not gpu")
