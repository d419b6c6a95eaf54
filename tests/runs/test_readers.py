"""Reports and attacks of a run that another process is still writing: nobody's numbers change, and
nobody ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
from pyarrow import parquet

from fula_fast import load
from fula_fast.models import build, save_checkpoint
from fula_fast.report.page import write_report
from fula_fast.runs.attack import attack_run
from fula_fast.store import Store

tomli_w = pytest.importorskip("tomli_w")


def spec_of(folder) -> dict:
    """54 cells, in a wave for each batch size: long enough to be read while it grows."""
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        donor = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()
        save_checkpoint(donor, folder / f"{name}.safetensors")
    return {
        "data": {"source": "digits", "size": 8, "train_images": 300, "test_images": 80},
        "donors": {n: {"checkpoint": str(folder / f"{n}.safetensors")} for n in "ab"},
        "grid": {"front": "a", "end": "b", "sites": "same",
                 "methods": ["hint"], "axes": {"batch_size": [10, 15, 20, 25, 30, 50]}},
        "protocol": {"epochs": 6},
        "engine": {"device": "cpu", "precision": "fp32"},
    }  # fmt: skip


def _started(spec, out) -> subprocess.Popen:
    """A sweep in a process of its own, whose words go to a file: nobody empties a pipe."""
    command = [sys.executable, "-m", "fula_fast", "sweep", str(spec), "--out", str(out)]
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"MPLBACKEND": "Agg"}
        )


def _read(run) -> int | None:
    """Cells that a reader finds, having reported and attacked them; None before the first."""
    if not (run / "plan.json").exists() or not Store.open(run).done():
        return None
    write_report(run)
    found = len(load(run).rows)
    attack_run(run, "pgd-2", limit=20)
    return found


def _attacked(run) -> list[dict]:
    rows = parquet.read_table(run / "attack-pgd-2.parquet").to_pylist()
    return sorted((without_seconds(row) for row in rows), key=lambda row: row["cell"])


def without_seconds(row) -> dict:
    return {name: value for name, value in row.items() if "seconds" not in name}


@pytest.mark.slow
def test_a_growing_run_is_read_and_attacked(tmp_path):
    (tmp_path / "spec.toml").write_text(tomli_w.dumps(spec_of(tmp_path)))
    run, alone, seen = tmp_path / "run", tmp_path / "alone", []
    writer = _started(tmp_path / "spec.toml", run)
    while writer.poll() is None:
        seen.append(_read(run))
        time.sleep(0.05)
    assert writer.returncode == 0, run.with_suffix(".log").read_text()
    grown = {count for count in seen if count}
    assert len(grown - {54}) >= 2, f"54 cells were read at {grown} only"

    assert _started(tmp_path / "spec.toml", alone).wait() == 0
    for folder in (run, alone):
        attack_run(folder, "pgd-2", limit=20)
    assert [without_seconds(row) for row in load(run).rows] == [
        without_seconds(row) for row in load(alone).rows
    ]
    assert _attacked(run) == _attacked(alone)
    assert not [p for p in run.rglob("*") if p.suffix in (".part", ".tmp")]
