"""A run planned for a GPU goes on with its partition and precision on a CPU, or says why not."""

from __future__ import annotations

import pytest
import torch

from fula_fast import FulaError, sweep
from fula_fast.models import build, save_checkpoint
from fula_fast.runs import sweep as runs
from fula_fast.store import Store
from fula_fast.study.plan import Plan
from fula_fast.study.resources import Resources

pytestmark = pytest.mark.usefixtures("without_plots")
GIB = 1 << 30


@pytest.fixture
def spec(tmp_path):
    donors = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        donor = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()
        save_checkpoint(donor, path := tmp_path / f"{name}.safetensors")
        donors[name] = {"checkpoint": str(path)}

    def make(**engine) -> dict:
        return {
            "data": {"source": "digits", "size": 8, "train_images": 300, "test_images": 80},
            "donors": donors,
            "grid": {"front": "a", "end": "b", "sites": [[3, 5], [8, 2]], "methods": ["dm", "hint"]},
            "protocol": {"epochs": 1, "dm_samples": 60, "batch_size": 50},
            "engine": {"device": "cpu"} | engine,
        }  # fmt: skip

    return make


@pytest.fixture
def begun(spec, tmp_path, monkeypatch):
    """Begin a run as a machine with a GPU would (its plan, no cell), by an engine that hands the
    work over to nobody."""

    def begin(precision: str, **engine):
        with monkeypatch.context() as there:
            gpu = Resources("cuda", precision, 60 * GIB, workers=2)
            for module in ("study.plan", "runs.sweep"):
                there.setattr(f"fula_fast.{module}.resources", lambda *_, **__: gpu)
            there.setattr(runs, "engine_of", lambda kind: lambda launch, progress: None)
            sweep(spec(**engine), tmp_path / "run", quiet=True)
        store = Store.open(tmp_path / "run")
        assert (store.plan["device"], store.plan["precision"]) == ("cuda", precision)
        assert len(store.missing()) == 4
        return tmp_path / "run"

    return begin


def measured(results) -> list[dict]:
    """What a cell measures, in the plan's order."""
    names = ("cell", "accuracy", "agreement_soft", "loss", "term_stitch", "precision")
    return [{name: row.get(name) for name in names} for row in results.rows]


def test_the_stored_precision_is_kept(spec, begun, tmp_path):
    """`auto` would be fp32 on most processors; the run began in bf16."""
    found = sweep(spec(), begun("bf16"), resume=True, quiet=True)
    assert not found.failed and Store.open(found.folder).plan["precision"] == "bf16"
    same = sweep(spec(precision="bf16"), tmp_path / "cpu", quiet=True)
    other = sweep(spec(precision="fp32"), tmp_path / "other", quiet=True)
    assert measured(found) == measured(same) != measured(other)


def test_tf32_is_a_gpus(spec, begun):
    folder = begun("tf32")
    with pytest.raises(FulaError, match="planned with precision 'tf32', which a CPU does not have"):
        sweep(spec(), folder, resume=True, quiet=True)


def test_waves_too_large_for_this_machine_are_named(spec, begun):
    folder = begun("fp32")
    store = Store.open(folder)
    largest = max(wave.memory for wave in Plan.from_stored(store.plan, store.planned).waves)
    with pytest.raises(FulaError, match="planned on 'cuda' with waves of .* but 'cpu' has"):
        sweep(spec(memory=largest - 1), folder, resume=True, quiet=True)


def test_the_other_way_round(spec, tmp_path):
    """A CPU's plan on a GPU: its own waves, in its own precision."""
    store = Store.open(sweep(spec(precision="fp32"), tmp_path / "run", quiet=True).folder)
    stored = Plan.from_stored(store.plan, store.planned)
    there = runs._kept(store, 60 * GIB, "cuda")
    assert (there.device, there.precision) == ("cuda", "fp32")
    assert [wave.id for wave in there.waves] == [wave.id for wave in stored.waves]


@pytest.mark.gpu
@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_half_a_run_on_each(spec, tmp_path, first):
    second = {"cpu": "cuda", "cuda": "cpu"}[first]
    sweep(spec(device=first, precision="fp32"), tmp_path / "run", quiet=True)
    whole = sweep(spec(device=first, precision="fp32"), tmp_path / "whole", quiet=True)
    shard = min((tmp_path / "run" / "cells").glob("*/*.json"))
    shard.unlink()
    found = sweep(spec(device=second, precision="fp32"), tmp_path / "run", resume=True, quiet=True)
    for ours, theirs in zip(found.rows, whole.rows, strict=True):
        assert ours["cell"] == theirs["cell"]
        assert ours["agreement_soft"] == pytest.approx(theirs["agreement_soft"], rel=1e-3)
