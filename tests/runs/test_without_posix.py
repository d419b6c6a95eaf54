"""What Windows lacks (signals for a thread, SIGKILL, SIGHUP, fork) is not needed: a grid runs, and a
cancelled run ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fula_fast import load
from fula_fast.models import build, save_checkpoint

tomli_w = pytest.importorskip("tomli_w")

WITHOUT = """
import os, signal, sys, time
for name in ("pthread_kill", "SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1"):
    delattr(signal, name)
for name in ("sched_getaffinity", "fork", "geteuid", "killpg"):
    delattr(os, name)
"""
CANCELLED = """
from pathlib import Path
from fula_fast.errors import FulaError
from fula_fast.runs.engines.launch import now
from fula_fast.store.writers import Writers
writers = Writers(Path({folder!r}) / "writers")
try:
    with writers.present(now()):
        writers.cancel(now())
        for _ in range(300):
            time.sleep(0.1)
    print("not heard")
except FulaError as error:
    print(error)
"""
SWEEP = """
from fula_fast.runs.alone import end_with
from fula_fast.cli.commands import main
end_with(os.getppid())
sys.argv = ["fula-fast", "sweep", {spec!r}, "--out", {out!r}, "--device", "cpu"]
main()
"""


def said(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cancelled_run_ends(tmp_path):
    assert "cancelled at" in said(CANCELLED.format(folder=str(tmp_path)))


def test_a_grid_runs(tmp_path):
    checkpoint = str(tmp_path / "a.safetensors")
    network = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=2)
    save_checkpoint(network.eval(), checkpoint)
    spec = {
        "data": {"source": "digits", "size": 8},
        "donors": {"a": {"checkpoint": checkpoint}},
        "grid": {"front": "a", "end": "a", "sites": [[9, 9]], "methods": ["hint"]},
        "protocol": {"epochs": 1, "crop_padding": 1},
    }
    (tmp_path / "spec.toml").write_text(tomli_w.dumps(spec))
    said(SWEEP.format(spec=str(tmp_path / "spec.toml"), out=str(tmp_path / "run")))
    assert len(load(tmp_path / "run").rows) == 1
