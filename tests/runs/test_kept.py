"""A run's folder stands by itself: models, rows and attacks from another process and place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import fula_fast
from fula_fast import FulaError
from fula_fast.models import build, save_checkpoint
from fula_fast.pipelines import load_source
from fula_fast.runs.attack import attack_run

pytestmark = pytest.mark.usefixtures("without_plots")


def _donor(seed: int):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()


def _spec(executor: str, data: dict | None = None, **protocol) -> dict:
    return {
        "data": {"source": "digits", "size": 8, "train_images": 300, "test_images": 80}
        | (data or {}),
        "donors": {n: {"checkpoint": f"weights/{n}.safetensors"} for n in "ab"},
        "grid": {"front": "a", "end": "b", "sites": [[3, 5], [8, 2]], "methods": ["dm", "hint"]},
        "protocol": {"epochs": 1, "dm_samples": 60, "batch_size": 50} | protocol,
        "engine": {"executor": executor, "precision": "fp32", "device": "cpu"},
    }


def _ran(folder, monkeypatch, spec):
    """A run started in `folder`, its donors named from there; they are gone afterwards."""
    monkeypatch.chdir(folder)
    for seed, name in enumerate("ab"):
        save_checkpoint(_donor(seed), folder / f"weights/{name}.safetensors")
    results = fula_fast.sweep(spec, "run", quiet=True)
    shutil.rmtree(folder / "weights")
    return results


ELSEWHERE = """
import json, sys, torch, fula_fast
from fula_fast.measures.agreement import soft_agreement
from fula_fast.models import load_checkpoint
from fula_fast.pipelines import load_source
results = fula_fast.load(sys.argv[1])
test = load_source("digits", size=8).test.evenly(80)
x, labels = torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255, torch.from_numpy(test.labels)
mean, std = json.loads(sys.argv[2])
found = {}
with torch.no_grad():
    for row in results.rows:
        logits = results.model(row["cell"])(x)
        end = load_checkpoint(results.folder / "donors" / f"{row['end_hash'][:16]}.safetensors")
        agreement = float(soft_agreement(logits, end((x - mean) / std)))
        found[row["cell"]] = [float((logits.argmax(1) == labels).double().mean()), agreement]
print(json.dumps([found, results.spec["grid"]["methods"], len(results)]))
"""


@pytest.mark.parametrize(
    "executor, data, protocol",
    [
        pytest.param("wave", {}, {"bn": "train"}, marks=pytest.mark.slow),
        pytest.param("solo", {}, {"bn": "train"}, marks=pytest.mark.slow),
        ("wave", {"mean": 0.4, "std": 0.3}, {"bn": "train"}),
        ("wave", {}, {"bn": "eval", "stitch_bn": "both"}),
    ],
)
def test_every_cells_model_in_another_process_and_folder(
    tmp_path, monkeypatch, executor, data, protocol
):
    results = _ran(tmp_path, monkeypatch, _spec(executor, data, **protocol))
    moved = tmp_path / "elsewhere" / "run"
    shutil.move(results.folder.absolute(), moved)
    moments = json.dumps([data.get("mean", 0), data.get("std", 1)])
    command = [sys.executable, "-c", ELSEWHERE, str(moved), moments]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=moved.parent)
    found, methods, count = json.loads(said.stdout)
    assert methods == ["dm", "hint"] and count == 4
    for row in results.rows:
        accuracy, agreement = found[row["cell"]]
        assert accuracy == pytest.approx(row["accuracy"], abs=1.01 / 80)
        assert agreement == pytest.approx(row["agreement_soft"], rel=1e-4)
    assert len({row["agreement_soft"] for row in results.rows}) == len(results)
    assert len(list((moved / "donors").iterdir())) == 2


def test_a_run_is_attacked_from_anywhere(tmp_path, monkeypatch):
    results = _ran(tmp_path, monkeypatch, _spec("wave"))
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    found = attack_run(tmp_path / "run", "pgd-1", limit=10, eps=0.0)
    assert len(found.rows) == len(results) and found.table.exists()


def test_modules_of_the_users_own_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 10))
    mine = fula_fast.stages(net, sites=["2"], input_shape=(3, 8, 8))
    spec = _spec("wave") | {"donors": {}}
    spec["grid"] |= {"front": "m", "end": "m", "sites": [[1, 1]], "methods": "hint"}
    results = fula_fast.sweep(spec, "run", quiet=True, models={"m": mine})
    (cell,) = [row["cell"] for row in results.rows]
    pixels = torch.from_numpy(load_source("digits", size=8).test.images).permute(0, 3, 1, 2) / 255
    expected = results.model(cell)(pixels)
    assert torch.equal(fula_fast.load("run", models={"m": mine}).model(cell)(pixels), expected)
    with pytest.raises(FulaError, match=r"does not keep donor 'm' .*models = \{'m': "):
        fula_fast.load("run").model(cell)
    with torch.no_grad():
        net[1].weight.mul_(2)
    other = fula_fast.stages(net, sites=["2"], input_shape=(3, 8, 8))
    with pytest.raises(FulaError, match="donor 'm' is not the one of 'run'"):
        fula_fast.load("run", models={"m": other}).model(cell)
    with pytest.raises(FulaError, match="no finished cell 'x'"):
        results.model("x")
    with pytest.raises(FulaError, match="holds no run"):
        fula_fast.load(tmp_path)
