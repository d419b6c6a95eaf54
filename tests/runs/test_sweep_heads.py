"""Sweeps whose donors answer by a head of choice, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fula_fast
from fula_fast import FulaError, stitch, sweep
from fula_fast.donors.obtain import open_source
from fula_fast.models import load_checkpoint, stages
from fula_fast.report.page import write_report
from fula_fast.runs.attack import attack_run
from fula_fast.study.donor_spec import DataSpec
from fula_fast.study.plan import plan
from fula_fast.study.spec import load_spec

pytestmark = pytest.mark.usefixtures("without_plots")

DATA = {"source": "digits", "size": 8, "train_images": 200, "test_images": 60}
PLAIN = {"model": "resnet18", "width": 4, "epochs": 2, "batch_size": 50}
BARE = {"model": "resnet18", "width": 4, "untrained": True}
ANSWERS = ("accuracy", "agreement_top1", "agreement_soft", "agreement_right_wrong", "kappa")


def spec(front=None, end=None, grid=None, **protocol):
    usual = {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["dm", "hint", "fula"]}
    return {
        "data": DATA,
        "donors": {"a": front or PLAIN, "b": {**PLAIN, "seed": 1} if end is None else end},
        "grid": usual | (grid or {}),
        "protocol": {"epochs": 1, "batch_size": 50, "dm_samples": 50} | protocol,
        "engine": {"precision": "fp32", "device": "cpu"},
    }


def run(asked, tmp_path, **more):
    more.setdefault("donors", tmp_path.parent / "donors-with-heads")
    return sweep(asked, tmp_path / "run", quiet=True, **more)


def pixels(images):
    return torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def accuracy(model, images):
    return (model(pixels(images)).argmax(1).numpy() == images.labels).mean()


@pytest.mark.parametrize("head", ["linear-probe", "knn=5"])
def test_the_accuracy_of_a_stitch_is_that_of_its_ends_head(head, tmp_path):
    """Recomputed from the stored stitch, through the file of the headed donor."""
    found = run(spec(end={**BARE, "head": head}), tmp_path)
    test = open_source(DataSpec(**DATA)).test
    assert [row["status"] for row in found.rows] == ["ok"] * 3
    for row in found.rows:
        model = found.model(row["cell"])
        assert row["accuracy"] == pytest.approx(accuracy(model, test), abs=1e-9)
        assert row["end_accuracy"] > 0.4
    (kept,) = (tmp_path / "run" / "donors").glob(f"{found.rows[0]['end_hash'][:16]}*")
    end = load_checkpoint(kept)
    assert found.rows[0]["end_accuracy"] == pytest.approx(accuracy(end, test), abs=1e-9)


def test_waves_and_single_cells_agree(tmp_path):
    asked = spec(end={**BARE, "head": "knn=5"})
    rows = run(asked, tmp_path).rows
    alone = run(asked | {"engine": asked["engine"] | {"executor": "solo"}}, tmp_path / "solo").rows
    for one, other in zip(rows, alone, strict=True):
        assert one["method"] == other["method"]
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.051)
        assert one["agreement_soft"] == pytest.approx(other["agreement_soft"], abs=0.02)


def test_all_methods_train_through_a_linear_probe(tmp_path):
    end = {**BARE, "head": "linear-probe"}
    found = run(spec(end=end, grid={"methods": ["slm", "tlm"]}, robust="pgd-1"), tmp_path)
    for row in found.rows:
        assert 0 <= row["robust_accuracy"] <= row["accuracy"] <= 1


def test_an_end_without_a_head_is_matched_and_not_asked(tmp_path):
    """The stitches are those of the same network with a head, bit for bit."""
    bare = run(spec(end={**BARE, "head": "none"}), tmp_path)
    full = run(spec(end={**BARE, "head": "linear-probe"}), tmp_path / "full")
    for row, other in zip(bare.rows, full.rows, strict=True):
        assert all(row[name] is None for name in (*ANSWERS, "end_accuracy"))
        assert row["front_accuracy"] == other["front_accuracy"]
        assert row["term_stitch"] == other["term_stitch"] > 0
    assert write_report(tmp_path / "run").exists()


def test_a_front_without_a_head_trains_on_labels_with_its_end(tmp_path):
    """Its own classes, or none, say nothing."""
    found = run(spec(front={**BARE, "head": "none"}, grid={"methods": ["tlm"]}), tmp_path)
    (row,) = found.rows
    assert row["front_accuracy"] is None and 0 < row["accuracy"] <= 1


REFUSED = [
    ("none", {"methods": "tlm"}, {}, "method 'tlm' needs a classifier, but end 'b' has head = 'no"),
    ("none", {"methods": "slm"}, {}, r"\[grid\] method 'slm' needs a classifier"),
    ("none", {"shortcut": ["pixel+class"]}, {}, "shortcut 'pixel.class' needs a classifier"),
    ("none", {"alpha": [0.5]}, {}, r"\[grid\] alpha = 0.5 needs a classifier"),
    ("none", {}, {"robust": "pgd-1"}, "robust = 'pgd-1' needs a classifier, but end 'b'"),
    ("knn=5", {"methods": "tlm"}, {}, r"\[grid\] method 'tlm' follows the gradient of answers"),
    ("knn=5", {"methods": ["dm", "slm"]}, {}, "votes of neighbours .* of end 'b' have none"),
    ("knn=5", {"alpha": [0.5]}, {}, "alpha = 0.5 follows the gradient"),
    ("knn=5", {}, {"robust": "pgd-1"}, "robust = 'pgd-1' follows the gradient"),
]


@pytest.mark.parametrize("head, grid, protocol, said", REFUSED)
def test_what_a_head_cannot_give_is_refused_before_any_training(
    head, grid, protocol, said, tmp_path
):
    asked = spec(end={**PLAIN, "seed": 1, "head": head}, grid=grid, **protocol)
    with pytest.raises(FulaError, match=said) as caught:
        run(asked, tmp_path, donors=tmp_path / "none")
    assert "\n" not in str(caught.value) and "set head = 'linear-probe'" in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("head", ["none", "knn=5"])
def test_a_front_whose_own_head_is_attacked_needs_one(head, tmp_path):
    asked = spec(front={**PLAIN, "head": head}, robust="pgd-1")
    with pytest.raises(FulaError, match="robust = 'pgd-1' .*front 'a'"):
        run(asked, tmp_path)


def test_measures_of_answers_are_refused_without_a_head(tmp_path):
    asked = spec(end={**BARE, "head": "none"}) | {"evaluation": {"measures": ["jensen_shannon"]}}
    with pytest.raises(FulaError, match=r"\[evaluation\] measure 'jensen_shannon' needs a class"):
        run(asked, tmp_path)
    alike = {"pairs": [["a", "b"]], "measures": ["disagreement"]}
    asked = {k: v for k, v in spec(end={**BARE, "head": "none"}).items() if k != "grid"}
    with pytest.raises(FulaError, match="disagreement compare answers, and donor 'b' gives none"):
        fula_fast.similarity(asked | {"similarity": alike}, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("head", ["none", "knn=5"])
def test_a_finished_run_without_such_answers_is_not_attacked(head, tmp_path):
    run(spec(end={**BARE, "head": head}), tmp_path)
    with pytest.raises(FulaError, match="attack 'pgd-1' (needs a classifier|follows the gradient)"):
        attack_run(tmp_path / "run", "pgd-1")


def test_a_probe_of_a_finished_run_is_attacked_with_its_own_head(tmp_path):
    found = run(spec(end={**BARE, "head": "linear-probe"}), tmp_path)
    rows = attack_run(tmp_path / "run", "pgd-1", limit=20, donors=tmp_path / "elsewhere").rows
    assert len(rows) == len(found.rows) and not (tmp_path / "elsewhere").exists()


class Tower(torch.nn.Module):
    """Images to so many numbers."""

    def __init__(self, numbers):
        super().__init__()
        self.a = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 2, 2), torch.nn.ReLU())
        self.b = torch.nn.Sequential(torch.nn.Conv2d(6, numbers, 2, 2), torch.nn.ReLU())

    def forward(self, x):
        return self.b(self.a(x)).mean((2, 3))


def tower(numbers=6):
    torch.manual_seed(0)
    staged = stages(Tower(numbers), ["a", "b"], input_shape=(3, 8, 8)).eval()
    staged.classifies = False
    return staged


@pytest.mark.parametrize("head", ["linear-probe", "knn=5", "none"])
def test_a_network_of_ones_own_as_an_end(head, tmp_path):
    """Six numbers, ten classes; a head that was fitted is kept with the run."""
    asked = spec(end={"head": head}, grid={"sites": [[3, 1]]})
    found = run(asked, tmp_path, models={"b": tower()})
    row = found.rows[0]
    assert (row["accuracy"] is None) == (head == "none") and row["status"] == "ok"
    test = open_source(DataSpec(**DATA)).test
    with torch.no_grad():
        given = found.model(row["cell"])(pixels(test))
    assert given.shape == (60, 6 if head == "none" else 10)
    if head != "none":
        right = (given.argmax(1).numpy() == test.labels).mean()
        assert row["accuracy"] == pytest.approx(right, abs=1e-9)


def test_a_network_without_a_head_is_told_what_to_choose(tmp_path):
    with pytest.raises(FulaError, match=r"set head = 'linear-probe', 'knn=20' or 'none'"):
        run(spec(end={}, grid={"sites": [[3, 1]]}), tmp_path, models={"b": tower()})


def test_images_without_labels_need_no_classes(tmp_path):
    """Networks trained without labels (SimCLR), and controls, matched on unlabelled images."""
    pytest.importorskip("kornia")
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for n in (100, 40)]
    alone = {"model": "resnet18", "width": 4, "recipe": "simclr", "epochs": 1, "batch_size": 50}
    asked = spec(front={**alone, "head": "none"}, end={**BARE, "head": "none"})
    found = run({**asked, "data": {"size": 8}}, tmp_path, data=images)
    assert [row["status"] for row in found.rows] == ["ok"] * 3
    for row in found.rows:
        assert all(row[name] is None for name in (*ANSWERS, "front_accuracy", "end_accuracy"))
        assert 0 < row["term_stitch"] < 10
    for front, said in (
        (alone, r"\[donors.a\], which is trained or built for the classes of \[data\], needs lab"),
        ({**alone, "head": "knn=5"}, "trained or built for the classes"),
        ({**PLAIN, "head": "none"}, "trained or built for the classes"),
    ):
        with pytest.raises(FulaError, match=said):
            run({**spec(front=front, end={**BARE, "head": "none"}), "data": {"size": 8}},
                tmp_path / "no", data=images)  # fmt: skip


def test_a_stored_donor_by_votes_is_not_trained_through(tmp_path):
    run(spec(end={**BARE, "head": "knn=5"}), tmp_path, donors=tmp_path / "donors")
    heads = [load_checkpoint(p) for p in (tmp_path / "donors").glob("*.safetensors")]
    (end,) = (donor for donor in heads if donor.fitted)
    test = open_source(DataSpec(**DATA))
    given = {"epochs": 1, "batch_size": 50, "dm_samples": 50, "quiet": True}
    found = stitch(end, end, 3, 3, test, method="hint", bn="eval", **given)
    assert found.accuracy == pytest.approx(found.end_accuracy, abs=0.05) and found.accuracy > 0.3
    with pytest.raises(FulaError, match="method 'tlm' follows the gradient of answers"):
        stitch(end, end, 3, 3, test, method="tlm", **given)
    with pytest.raises(FulaError, match="alpha = 0.5 follows the gradient of answers"):
        stitch(end, end, 3, 3, test, method="hint", alpha=0.5, **given)


def test_a_head_is_part_of_a_cell_and_of_its_plan():
    """Its own id, and the weights that a bank of 200 images holds."""
    plans = {
        head: plan(load_spec(spec(end={**BARE, **({"head": head} if head else {})})))
        for head in (None, "linear-probe", "knn=5", "knn=6", "none")
    }
    ids = [tuple(found.lanes.ids) for found in plans.values()]
    assert len(set(ids)) == len(ids)
    facts = {head: found.donors["b"] for head, found in plans.items()}
    assert facts["knn=5"].weights - facts[None].weights == 200 * 32
    assert facts["knn=5"].votes and not facts["none"].classifies
    assert facts["linear-probe"].classes == facts["knn=5"].classes == 10
