"""The Python interface: one stitched model, and the table of a sweep."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fula_fast
from fula_fast import FulaError, api
from fula_fast.models import build, content_hash, save_checkpoint
from fula_fast.pipelines import Normalisation, load_source
from fula_fast.runs.sweep import Finished
from fula_fast.store import Store
from fula_fast.study.plan import plan as planned

SHAPE = (3, 8, 8)
QUICK = {"epochs": 1, "dm_samples": 60, "crop_padding": 1, "flip": False, "batch_size": 256}


def donor(seed, **options):
    torch.manual_seed(seed)
    return build(
        "resnet18", **{"num_classes": 10, "input_shape": SHAPE, "width": 4, **options}
    ).eval()


@pytest.fixture(scope="module")
def donors():
    return donor(0), donor(1)


@pytest.fixture(scope="module")
def digits():
    return load_source("digits", size=8, channels=3)


@pytest.fixture(scope="module")
def found(donors, digits):
    return fula_fast.stitch(*donors, 3, 5, digits, **QUICK)


def test_the_package_has_functions_whatever_is_imported():
    code = (
        "import fula_fast.stitching.stitch, fula_fast.runs.sweep, fula_fast.engine.solo, fula_fast as f\n"
        "assert callable(f.stitch) and callable(f.sweep) and callable(f.stages)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trained_stitch_with_its_model(found, donors, digits):
    assert found.stitch.weight.shape == (8, 4)  # site 3 has 4 maps, site 5 has 8
    assert not found.model.training and not any(p.requires_grad for p in found.model.parameters())
    x = torch.from_numpy(digits.test.images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits, native = found.model(x), donors[1](x)
    labels = torch.from_numpy(digits.test.labels)
    right = [z.argmax(1) == labels for z in (logits, native)]
    assert found.accuracy == pytest.approx(float(right[0].double().mean()))
    assert found.agreement_right_wrong == pytest.approx(
        float((right[0] == right[1]).double().mean())
    )
    assert found.loss > 0 and found.seconds > 0 and 0 < found.agreement_soft <= 1
    assert found.metrics["term_stitch"] == found.term_stitch
    assert repr(found).startswith("Stitched(fula, sites 3 -> 5, accuracy=")


def test_the_model_owns_what_training_moved(found, donors):
    before = [content_hash(d) for d in donors]
    tail = found.model.tail.state()["layer4.1.bn2.running_mean"]
    assert not torch.equal(tail, donors[1].state()["layer4.1.bn2.running_mean"])
    with torch.no_grad():
        found.model.tail.state()["fc.weight"].mul_(1.0)
    assert before == [content_hash(d) for d in donors]
    assert not any(p.grad is not None for d in donors for p in d.parameters())


def test_donors_in_training_mode_are_seen_in_eval_mode_and_stay_as_they_were(donors, digits, found):
    front, end = donor(0).train(), donor(1).train()
    again = fula_fast.stitch(front, end, 3, 5, digits, **QUICK)
    assert {**again.metrics, "seconds": 0} == {**found.metrics, "seconds": 0}
    assert front.training and end.training


def test_every_form_of_data_gives_the_same_numbers(donors, digits, found):
    train, test = digits.train, digits.test
    plain = {"normalisation": None}
    for data, how in (
        ("digits", {}),
        ((train, test), plain),
        ([(train.images, train.labels), (test.images, test.labels.astype(np.int32))], plain),
    ):
        again = fula_fast.stitch(*donors, 3, 5, data, **how, **QUICK)
        assert torch.equal(again.stitch.weight, found.stitch.weight)
        assert again.accuracy == found.accuracy


def test_checkpoints_stand_for_donors(donors, digits, found, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for model, path in zip(donors, paths, strict=True):
        save_checkpoint(model, path)
    again = fula_fast.stitch(str(paths[0]), paths[1], 3, 5, digits, **QUICK)
    assert torch.equal(again.stitch.weight, found.stitch.weight)


def test_the_numbers_are_those_of_a_sweeps_cell(donors, digits, found, tmp_path):
    for model, name in zip(donors, "ab", strict=True):
        save_checkpoint(model, tmp_path / f"{name}.safetensors")
    results = fula_fast.sweep(
        {
            "data": {"source": "digits", "size": 8},
            "donors": {n: {"checkpoint": str(tmp_path / f"{n}.safetensors")} for n in "ab"},
            "grid": {"front": "a", "end": "b", "sites": [[3, 5]], "methods": "fula"},
            "protocol": QUICK,
            "engine": {"executor": "solo", "precision": "fp32", "device": "cpu"},
        },
        tmp_path / "run",
        quiet=True,
    )
    (row,) = results.rows
    for name in (
        "accuracy",
        "agreement_right_wrong",
        "agreement_soft",
        "kappa",
        "term_stitch",
        "loss",
    ):
        assert row[name] == pytest.approx(found.metrics[name], rel=1e-12)
    assert torch.equal(results.stitch(row["cell"])["weight"], found.stitch.weight)


def test_a_module_of_the_users_own(digits):
    """Conv and vector sites, cut by name; the closed form, the identity and unlike sites."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12),
        nn.ReLU(), nn.Linear(12, 10),
    )  # fmt: skip
    model = fula_fast.stages(net, sites=["1", "4"], input_shape=SHAPE)
    rule = {**QUICK, "weight_decay": 0.0, "init": "identity"}
    own = fula_fast.stitch(model, model, 2, 2, digits, method="hint", **rule)
    assert own.agreement_right_wrong == 1.0 and own.loss == 0.0
    assert torch.equal(own.stitch.weight, torch.eye(12))
    unlike = fula_fast.stitch(model, model, 1, 2, digits, method="tlm", **QUICK)
    assert unlike.stitch.position_weight.shape == (1, 16)
    rule = {**QUICK, "dm_samples": "all", "dm_rcond": 1e-6}
    closed = fula_fast.stitch(model, model, 2, 2, digits, method="dm", **rule)
    assert closed.term_stitch < 1e-4 and closed.loss is None


def test_mixtures_subsets_shortcuts_and_attacks(donors, digits):
    half = fula_fast.stitch(*donors, 3, 5, digits, method={"fula": 0.5, "tlm": 0.5}, **QUICK)
    assert half.method == "mixture"
    few = fula_fast.stitch(*donors, 3, 5, digits, subset=3, **QUICK)
    marked = fula_fast.stitch(*donors, 3, 5, digits, shortcut="both", **QUICK)
    attack = {"eps": 4 / 255, "step": 2 / 255, "steps": 1}
    hit = fula_fast.stitch(*donors, 3, 5, digits, alpha=0.25, attack=attack, **QUICK)
    normal = Normalisation((0.5,) * 3, (0.5,) * 3)
    scaled = fula_fast.stitch(*donors, 3, 5, digits, normalisation=normal, **QUICK)
    weights = [s.stitch.weight for s in (half, few, marked, hit, scaled)]
    for k, weight in enumerate(weights):
        assert all(not torch.equal(weight, other) for other in weights[:k])


NORMAL = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("form", ["pairs", "sets", "lists"])
def test_arrays_come_with_their_normalisation(donors, digits, form):
    """The model, the donors' accuracies and the measures are all of the same normalised images."""
    train, test = digits.train, digits.test
    pairs = (train.images, train.labels), (test.images, test.labels)
    data = {"pairs": pairs, "sets": (train, test), "lists": [list(p) for p in pairs]}[form]
    with pytest.raises(
        FulaError, match="data of your own do not say how the donors' images were normalised"
    ):
        fula_fast.stitch(*donors, 3, 5, data, **QUICK)
    found = fula_fast.stitch(*donors, 3, 5, data, normalisation=NORMAL, **QUICK)
    pixels = torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(m)[:, None, None] for m in (NORMAL.mean, NORMAL.std))
    labels = torch.from_numpy(test.labels)
    with torch.no_grad():
        seen = {
            "accuracy": found.model(pixels),
            "front_accuracy": donors[0]((pixels - mean) / std),
            "end_accuracy": donors[1]((pixels - mean) / std),
        }
    for name, logits in seen.items():
        expected = float((logits.argmax(1) == labels).double().mean())
        assert found.metrics[name] == pytest.approx(expected, abs=2 / len(labels)), name
    plain = fula_fast.stitch(*donors, 3, 5, data, normalisation=None, **QUICK)
    assert plain.front_accuracy != found.front_accuracy


def test_all_training_images_for_the_closed_form(donors, digits):
    found = fula_fast.stitch(*donors, 3, 3, digits, method="dm", **{**QUICK, "dm_samples": "all"})
    few = fula_fast.stitch(*donors, 3, 3, digits, method="dm", dm_rcond=1e-4, **QUICK)
    assert found.term_stitch < few.term_stitch


@pytest.mark.parametrize(
    "sites", [("layer1.1", "layer2.1"), (3, "layer2.1"), (np.int64(3), np.uint8(5))]
)
def test_sites_by_name_and_donors_in_wrappers(donors, digits, found, sites):
    wrapped = nn.DataParallel(donors[0]), torch.compile(donors[1])
    named = fula_fast.stitch(*wrapped, *sites, digits, **QUICK)
    assert (named.front_site, named.end_site) == (3, 5)
    assert torch.equal(named.stitch.weight, found.stitch.weight)


def test_double_precision(donors, digits, found):
    double = fula_fast.stitch(*donors, 3, 5, digits, precision="fp64", **QUICK)
    assert double.stitch.weight.dtype == torch.float64
    torch.testing.assert_close(
        double.stitch.weight.float(), found.stitch.weight, rtol=0.05, atol=5e-3
    )


LABELLED_TO_11 = ((np.zeros((12, 8, 8, 3), np.uint8), range(12)),) * 2
MISTAKES = [
    ({"method": "fulla"}, "unknown method 'fulla'; did you mean 'fula'?"),
    ({"method": {"tlm": -1}}, "tlm = -1 must be non-negative"),
    ({"front_site": 12}, "front resnet18 has sites 1 to 9, so site 12 is out of range"),
    ({"end_site": 0}, "end resnet18 has sites 1 to 9, so site 0 is out of range"),
    ({"end_site": "x"}, "end resnet18 has no site 'x'; valid: layer1.0, "),
    ({"front_site": "layer1.2"}, "front resnet18 has no site 'layer1.2'; did you mean 'layer1."),
    ({"front_site": 1.5}, "front_site: 1.5 is no site; give its number from 1, or its name"),
    ({"end_site": True}, "True is no site; give its number from 1, or its name"),
    ({"protocol": "fula-v3"}, "unknown protocol 'fula-v3'; did you mean 'fula-v2'?"),
    ({"epoch": 3}, "unknown protocol option 'epoch'; did you mean 'epochs'?"),
    ({"lr": -1}, "lr = -1: should be greater than 0"),
    ({"weighting": [1, 2]}, "weighting has 2 weights, but 5 sites follow the stitch"),
    ({"protocol": "balogh23"}, "stitches at 'pre_relu'; cut it there, or pass hook='post_relu'"),
    ({"alpha": 2}, "alpha = 2: should be less than or equal to 1"),
    ({"shortcut": "patern"}, "unknown shortcut 'patern'; did you mean 'pattern'?"),
    ({"subset": 30}, "a subset of 30 classes"),
    ({"device": "tpu"}, "device 'tpu' is none of auto, cpu, cuda"),
    ({"precision": "bf16"}, "should be 'fp32' or 'fp64'"),
    ({"batch_size": 5000}, "batch size 5000 must lie in 1 … 1442, the number of images"),
    ({"data": "digitz"}, "unknown source 'digitz'; did you mean 'digits'?"),
    ({"data": 3}, "data is a int; give a Source"),
    ({"data": ("digits", "digits")}, "data has a str where a set of images belongs"),
    ({"data": ((np.zeros((4, 8, 8, 3)) + 7, [0] * 4),) * 2}, "is float64 from 7 to 7; give"),
    ({"data": ((np.zeros((4, 8, 8, 2), np.uint8), [0] * 4),) * 2}, "of shape (4, 8, 8, 2); images"),
    ({"data": ((np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 2]),) * 2}, "but there are 4 images"),
    ({"data": ((np.zeros((4, 8, 8, 3), np.uint8), [-1] * 4),) * 2}, "has the label -1; number"),
    ({"data": ((np.zeros((4, 8, 8, 3), np.uint8), [0.5] * 4),) * 2}, "labels are float64"),
    ({"data": LABELLED_TO_11}, "'given' has labels 0 to 11, but end 'resnet18' answers with 10"),
    ({"data": LABELLED_TO_11, "method": "dm"}, "10 classes, 0 to 9; use data of its classes"),
    ({"data": LABELLED_TO_11, "method": "tlm"}, "'given' has 12"),
    ({"front": nn.Linear(3, 3)}, "front is a Linear, not a model cut into stages"),
    ({"front": "no-such-file"}, "cannot read checkpoint 'no-such-file'"),
    ({"method": "tlm", "optimiser": "sgd", "weight_decay": 1e30}, "at step"),
    ({"normalisation": Normalisation((0.5,), (0.5,))}, "has 1 means, but the images have 3"),
    ({"normalisation": (0.5, 0.5)}, "normalisation is a tuple; give fula_fast.Normalisation"),
    ({"alpha": 0.5, "normalisation": Normalisation((0.5,) * 3, (0.5,) * 3)}, "attacks pixels in"),
    ({"lr": 1e30}, "lr = 1e+30: should be less than or equal to 1000000"),
]


@pytest.mark.parametrize(
    ("change", "message"), MISTAKES, ids=[str(k) for k in range(len(MISTAKES))]
)
def test_mistakes_are_one_line(donors, digits, change, message):
    asked = {"front": donors[0], "end": donors[1], "front_site": 3, "end_site": 5, "data": digits}
    with pytest.raises(FulaError) as error:
        fula_fast.stitch(**{**asked, **QUICK, **change})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_labels_must_mean_the_same_to_both(donors, digits):
    five = donor(2, num_classes=5)
    with pytest.raises(
        FulaError, match=r"front has 5, end has 10, 'digits' has 10.*another method"
    ):
        fula_fast.stitch(five, donors[1], 3, 3, digits, method="tlm", **QUICK)
    with pytest.raises(FulaError, match="end has 5"):
        fula_fast.stitch(donors[0], five, 3, 3, digits, method={"fula": 1, "tlm": 0.1}, **QUICK)
    across = fula_fast.stitch(five, donors[1], 3, 3, digits, method="fula", **QUICK)
    assert 0 <= across.accuracy <= 1


def test_images_of_another_size_and_unlike_sites(donors, digits):
    large = donor(2, input_shape=(3, 16, 16))
    with pytest.raises(FulaError, match=r"front 'resnet18' takes images \(3, 16, 16\)"):
        fula_fast.stitch(large, donors[1], 3, 3, digits, **QUICK)
    flat = fula_fast.stages(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.ReLU()), sites=["1"], input_shape=SHAPE
    )
    with pytest.raises(FulaError, match=r"dm needs sites of one form, not \(4, 8, 8\) and \(10,\)"):
        fula_fast.stitch(donors[0], flat, 3, 1, digits, method="dm", **QUICK)
    with pytest.raises(FulaError, match="init = 'identity' needs sites of one form"):
        fula_fast.stitch(donors[0], flat, 3, 1, digits, init="identity", **QUICK)


# The table of a sweep


@pytest.fixture(scope="module")
def results(donors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    for model, name in zip(donors, "ab", strict=True):
        save_checkpoint(model, folder / f"{name}.safetensors")
    return fula_fast.sweep(
        {
            "data": {"source": "digits", "size": 8},
            "donors": {n: {"checkpoint": str(folder / f"{n}.safetensors")} for n in "ab"},
            "grid": {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["dm", "hint"]},
            "protocol": {**QUICK, "epochs": 30, "optimiser": "sgd"},
            "engine": {"device": "cpu"},
        },
        folder / "run",
        quiet=True,
        overrides={"protocol.epochs": 1, "grid.axes": {"weight_decay": [1e-4, 1e30]}},
    )


def test_rows_failures_and_files(results):
    assert len(results) == results.cells == 3  # a closed form has no decay
    assert repr(results) == f"Results(3 of 3 cells, 1 failed, '{results.folder}')"
    assert [row["method"] for row in results.failed] == ["hint"]
    assert "at step" in results.failed[0]["error"] and results.failed[0]["accuracy"] is None
    assert results.report.read_text().startswith("<!")


def test_selecting_rows(results):
    (row,) = results.select(method="hint", status="ok")
    assert row["epochs"] == 1 and row["end_site"] == 5
    assert results.stitch(row["cell"])["weight"].shape == (8, 4)
    with pytest.raises(FulaError, match="no column 'metod'; did you mean 'method'"):
        results.select(metod="hint")
    with pytest.raises(FulaError, match="holds no stitch of cell 'x'"):
        results.stitch("x")


def test_selecting_rows_by_the_names_of_sites(results, donors):
    front, end = donors[0].site_names[2], donors[1].site_names[4]
    assert results.select(front_site=front, end_site=end) == list(results.rows)
    assert results.select(end_site=end, method="dm") == results.select(end_site=5, method="dm")
    assert results.select(front_site=donors[0].site_names[0]) == []
    assert fula_fast.load(results.folder).select(front_site=front, end_site=5) == list(results.rows)
    for column in ("front_site", "end_site"):
        with pytest.raises(FulaError, match=f"no donor has a {column} 'layer1.O'; did you mean"):
            results.select(**{column: "layer1.O"})


def test_the_table_in_other_forms(results, monkeypatch):
    table = results.to_arrow()
    assert table.num_rows == 3 and str(table.schema.field("accuracy").type) == "double"
    if importlib.util.find_spec("pandas"):
        assert list(results.to_pandas()["cell"]) == [row["cell"] for row in results.rows]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FulaError, match="pandas is not installed"):
        results.to_pandas()


def test_a_sweep_over_modules_of_the_users_own(digits, tmp_path, without_plots):
    """Sites of every kind between two modules that no name describes, by either executor."""
    nets = {}
    for seed, name in enumerate(["mine", "other"]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
            nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 10),
        )  # fmt: skip
        nets[name] = fula_fast.stages(net, sites=["2", "5"], input_shape=SHAPE)
    before = {name: content_hash(net) for name, net in nets.items()}
    spec = {
        "data": {"source": "digits", "size": 8},
        "donors": {"mine": {"min_accuracy": 0.0}},
        "grid": {"front": "mine", "end": "other", "sites": "all-pairs", "methods": "fula"},
        "protocol": QUICK,
        "engine": {"precision": "fp64", "device": "cpu"},
    }
    tables = []
    for executor in ("wave", "solo"):
        options = {"models": nets, "overrides": {"engine.executor": executor}, "quiet": True}
        tables.append(fula_fast.sweep(spec, tmp_path / executor, **options))
        fula_fast.sweep(spec, tmp_path / executor, resume=True, **options)
    for ours, theirs in zip(tables[0].rows, tables[1].rows, strict=True):
        assert ours["status"] == "ok" and ours["front_hash"] == before["mine"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
    assert before == {name: content_hash(net) for name, net in nets.items()}
    swapped = {"mine": nets["other"], "other": nets["mine"]}
    with pytest.raises(FulaError, match=r"another spec \(donors\.mine\.checkpoint: "):
        fula_fast.sweep(spec, tmp_path / "solo", resume=True, quiet=True, models=swapped,
                        overrides={"engine.executor": "solo"})  # fmt: skip
    with pytest.raises(FulaError, match="model 'mine' is a Linear, not a model cut into stages"):
        fula_fast.sweep(spec, tmp_path / "x", models={"mine": nn.Linear(2, 2)})
    with pytest.raises(FulaError, match=r"\[donors\.a\] sets model, but models gives 'a' itself"):
        fula_fast.sweep("quickstart", tmp_path / "x", models={"a": nets["mine"]})
    with pytest.raises(FulaError, match=r"\[donors\.mine\] is cut with hook = 'post_relu'"):
        fula_fast.sweep(spec, tmp_path / "y", models=nets, overrides={"protocol.hook": "pre_relu"})


def test_mistakes_of_a_sweep(tmp_path):
    with pytest.raises(FulaError, match="no spec file no-such-spec"):
        api.sweep("no-such-spec", tmp_path / "x", quiet=True)
    with pytest.raises(FulaError, match="unknown key 'sedes'; did you mean 'seeds'"):
        api.sweep("quickstart", tmp_path / "x", quiet=True, overrides=["grid.sedes=[1]"])
    assert not (tmp_path / "x").exists()


def test_where_a_sweep_goes(tmp_path, monkeypatch):
    seen = {}

    class Summary:
        run = Finished(Path("runs/quickstart"), 0, 0, 0.0)

    def run_sweep(spec, folder, **options):
        seen.update(options, folder=folder)
        Store.create(tmp_path / "runs/quickstart", spec.dump(), *planned(spec).stored())
        return Summary

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "sweep_with_report", run_sweep)
    results = api.sweep("quickstart", donors=tmp_path, resume=True, fail_fast=True)
    assert str(results.folder) == "runs/quickstart" and results.rows == ()
    assert seen["donors"] == tmp_path and seen["resume"] and seen["fail_fast"]
