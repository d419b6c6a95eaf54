"""Objectives one after another in a sweep, and by `stitch`: one number for a cell, however run."""

from __future__ import annotations

import pytest
import torch

import fula_fast
from fula_fast.errors import FulaError
from fula_fast.models import build, save_checkpoint

QUICK = {"epochs": 2, "dm_samples": 60, "crop_padding": 1, "flip": False, "batch_size": 256}
STAGES = [{"fula": 1, "weighting": "last"}, {"tlm": 1, "hint": 0.5}]
METHODS = [
    "hint",
    {"name": "ffm-tlm", "stages": STAGES},
    {"name": "soft", "stages": [{"fula": 1}, {"fula": 1, "weighting": "last"}]},
    {"name": "apart", "fula": 1, "tlm": 1, "combine": "pcgrad"},
]


def donor(seed):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()


@pytest.fixture(scope="module")
def donors():
    return donor(0), donor(1)


def swept(folder, donors, executor, **more):
    for name, model in zip("ab", donors, strict=True):
        save_checkpoint(model, folder / f"{name}.safetensors")
    spec = {
        "data": {"source": "digits", "size": 8},
        "donors": {n: {"checkpoint": str(folder / f"{n}.safetensors")} for n in "ab"},
        "grid": {
            "front": "a", "end": "b", "sites": [[3, 5]], "methods": METHODS, "alpha": [0.0, 0.1],
        },
        "protocol": QUICK | {"fula_soft": True, "attack": {"steps": 1}},
        "engine": {"device": "cpu", "precision": "fp64", "executor": executor},
    }  # fmt: skip
    return fula_fast.sweep(spec, folder / executor, quiet=True, **more)


def test_waves_lone_cells_and_stitch_agree(donors, tmp_path, without_plots):
    waves, lone = (swept(tmp_path, donors, executor) for executor in ("wave", "solo"))
    assert len(waves) == 8 and not waves.failed and not lone.failed
    for ours, theirs in zip(waves.rows, lone.rows, strict=True):
        assert ours["cell"] == theirs["cell"]
        for column in ("loss", "term_stitch", "accuracy"):
            assert ours[column] == pytest.approx(theirs[column], rel=1e-8)
    weightings = {row["method"]: row["weighting"] for row in waves.rows}
    assert weightings == {
        "hint": "", "ffm-tlm": "", "soft": "uniform", "apart": "uniform",
    }  # fmt: skip
    asked = {"ffm-tlm": {"stages": STAGES}, "apart": {"fula": 1, "tlm": 1, "combine": "pcgrad"}}
    for name, method in asked.items():
        alone = fula_fast.stitch(
            *donors, 3, 5, "digits", method, precision="fp64", quiet=True, fula_soft=True, **QUICK
        )
        assert alone.loss == pytest.approx(
            waves.select(method=name, alpha=0.0)[0]["loss"], rel=1e-8
        )
    resumed = swept(tmp_path, donors, "wave", resume=True)
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in waves.rows]


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"stages": []}, "stages is empty"),
        ({"stages": [{"tml": 1}]}, "'tml'; did you mean 'tlm'"),
        ({"stages": [{"tlm": 1, "epochs": 5}, {"hint": 1}]}, "epochs = 2; make them fit"),
        ({"fula": 1, "combine": "pcgrad"}, "needs two methods"),
    ],
)
def test_stitch_refuses_in_a_line(donors, method, text):
    with pytest.raises(FulaError) as error:
        fula_fast.stitch(*donors, 3, 5, "digits", method, quiet=True, **QUICK)
    assert text in str(error.value) and "\n" not in str(error.value)
