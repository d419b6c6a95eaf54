"""`stitch(..., head=...)`: one stitch into a network that answers by a head of choice."""

from __future__ import annotations

import pytest
import torch

from fula_fast import FulaError, stitch, sweep
from fula_fast.donors import fitted_head
from fula_fast.donors.donor import fresh_model
from fula_fast.donors.obtain import open_source
from fula_fast.files.paths import cache_folder
from fula_fast.models import with_input
from fula_fast.pipelines import ImageSet
from fula_fast.study.donor_spec import DataSpec

from .test_sweep_heads import tower as tower_of

pytestmark = pytest.mark.usefixtures("without_plots")

DATA = {"source": "digits", "size": 8, "train_images": 200, "test_images": 60}
QUICK = {"epochs": 1, "batch_size": 50, "dm_samples": 50}
NOISELESS = {**QUICK, "quiet": True}
ANSWERS = ("accuracy", "agreement_top1", "agreement_soft", "agreement_right_wrong", "kappa")


def tower():
    """A network whose embedding has more numbers than there are classes."""
    return tower_of(14)


@pytest.fixture(scope="module")
def digits():
    return open_source(DataSpec(**DATA))


@pytest.fixture(scope="module")
def front():
    options = {"width": 4}
    shape = {"num_classes": 10, "input_shape": (3, 8, 8), "options": options}
    return fresh_model("resnet18", seed=0, **shape).eval()


def swept(front, end, tmp_path, table, **more):
    """The row of a sweep's lone cell."""
    asked = {
        "data": DATA,
        "donors": {"a": {}, "b": table},
        "grid": {"front": "a", "end": "b", "sites": [[3, 1]], "methods": ["hint"]},
        "protocol": QUICK,
        "engine": {"precision": "fp32", "device": "cpu", "executor": "solo"},
    }
    asked |= more.pop("tables", {})
    found = sweep(asked, tmp_path / "run", quiet=True, models={"a": front, "b": end}, **more)
    return found.rows[0]


def same(found, row):
    for name in (*ANSWERS, "term_stitch", "front_accuracy", "end_accuracy"):
        assert getattr(found, name) == row[name], name


@pytest.mark.parametrize("head", ["linear-probe", "knn=5", "knn=5 of 90", "none"])
def test_it_is_the_cell_of_a_sweep(head, front, digits, tmp_path):
    row = swept(front, tower(), tmp_path, {"head": head}, donors=cache_folder() / "donors")
    found = stitch(front, tower(), 3, 1, digits, "hint", head=head, quiet=True, **QUICK)
    same(found, row)
    assert (found.end_accuracy is None) == (head == "none")
    assert found.model(torch.rand(2, 3, 8, 8)).shape == (2, 14 if head == "none" else 10)
    if head == "none":
        assert all(found.metrics[name] is None for name in ANSWERS) and found.term_stitch > 0


def test_an_end_that_takes_images_in_its_own_way(front, digits, tmp_path):
    moments = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    row = swept(front, tower(), tmp_path, {"head": "knn=5", "input": moments})
    own = with_input(tower(), (3, 8, 8), **moments)
    found = stitch(front, own, 3, 1, digits, "hint", head="knn=5", quiet=True, **QUICK)
    same(found, row)


def test_data_of_ones_own_have_their_own_classes(front, digits, tmp_path):
    """Fourteen numbers of an embedding are no fourteen classes; a sweep takes the same data."""
    given = [(s.images, s.labels) for s in (digits.train, digits.test)]
    how = {"normalisation": None, "head": "linear-probe", "quiet": True}
    found = stitch(front, tower(), 3, 1, given, "hint", **how, **QUICK)
    assert found.model(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    row = swept(front, tower(), tmp_path, {"head": "linear-probe"}, data=given, tables={"data": {}})
    same(found, row)


def test_a_head_is_fitted_once(front, digits, monkeypatch):
    how = {"head": "linear-probe", "quiet": True, **QUICK}
    first = stitch(front, tower(), 3, 1, digits, "hint", **how)
    monkeypatch.setattr(fitted_head, "features", lambda *_a, **_k: pytest.fail("fitted again"))
    again = stitch(front, tower(), 3, 1, digits, "hint", **how)
    assert first.accuracy == again.accuracy


def of_seven_classes():
    return fresh_model(
        "resnet18", seed=1, num_classes=7, input_shape=(3, 8, 8), options={"width": 4}
    ).eval()


@pytest.mark.parametrize("method", ["dm", "hint", "slm", "fula"])
def test_a_front_of_other_classes_is_asked_for_none(method, front, digits):
    """Its own accuracy is empty; with `tlm` its labels would be others."""
    found = stitch(of_seven_classes(), front, 3, 3, digits, method, quiet=True, **QUICK)
    assert found.front_accuracy is None and found.end_accuracy is not None
    assert found.accuracy is not None and found.model(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_a_front_of_other_classes_is_refused_by_tlm(front, digits):
    said = r"tlm trains on labels.*class counts differ \(front has 7, end has 10, 'digits' has 10\)"
    with pytest.raises(FulaError, match=said):
        stitch(of_seven_classes(), front, 3, 3, digits, "tlm", quiet=True, **QUICK)


def test_an_end_of_other_classes_is_given_a_head(front, digits):
    """In the place of its classifier, whose seven answers are not asked."""
    found = stitch(front, of_seven_classes(), 3, 3, digits, "tlm", head="linear-probe", **NOISELESS)
    assert found.end_accuracy > 0.4 and found.model(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(FulaError, match=r"answers with 7 classes.*or set head = 'linear-probe'"):
        stitch(front, of_seven_classes(), 3, 3, digits, "hint", **NOISELESS)


REFUSED = [
    (None, "hint", r"set head = 'linear-probe', 'knn=20' or 'none' .*stitch\(\.\.\., head=\.\.\.\)"),
    ("knn=7", "tlm", "method 'tlm' follows the gradient of answers"),
    ("none", "tlm", "method 'tlm' needs a classifier"),
    ("none", "slm", "method 'slm' needs a classifier"),
    ("knn=201", "hint", "more neighbours than the 200 training images"),
    ("probe", "hint", "head: unknown head 'probe'"),
]  # fmt: skip


@pytest.mark.parametrize("head, method, said", REFUSED)
def test_what_a_head_cannot_give_is_refused_before_it_is_fitted(
    head, method, said, front, digits, monkeypatch
):
    monkeypatch.setattr(fitted_head, "features", lambda *_a, **_k: pytest.fail("fitted"))
    with pytest.raises(FulaError, match=said) as caught:
        stitch(front, tower(), 3, 1, digits, method, head=head, quiet=True, **QUICK)
    assert "\n" not in str(caught.value)


def test_images_without_labels_have_no_head_to_fit(front, digits):
    given = [ImageSet.unlabelled(s.images) for s in (digits.train, digits.test)]
    how = {"normalisation": None, "quiet": True, **QUICK}
    with pytest.raises(FulaError, match="head = 'knn=5' needs labels"):
        stitch(front, tower(), 3, 1, given, "hint", head="knn=5", **how)
    assert stitch(front, tower(), 3, 1, given, "hint", head="none", **how).term_stitch > 0
