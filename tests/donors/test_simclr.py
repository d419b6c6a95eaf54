"""Training without labels: the loss, the views, and what a network learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fula_fast.donors.donor import ensure_donor, fresh_model, recipe_of, train_donor
from fula_fast.donors.linear_probe import classifier_of, features
from fula_fast.donors.simclr import nt_xent, similarities, views
from fula_fast.donors.training import DonorTraining
from fula_fast.errors import FulaError
from fula_fast.pipelines import ImageSet, Input, Normalisation, load_source
from fula_fast.study.donor_spec import DonorSpec

kornia = pytest.importorskip("kornia")

SHAPE = (3, 8, 8)


def network(seed: int = 0):
    return fresh_model(
        "resnet18", seed=seed, num_classes=10, input_shape=SHAPE, options={"width": 4}
    )


@pytest.fixture(scope="module")
def source():
    """Digits of which a network can tell which is which by shape alone."""
    whole = load_source("digits", size=8)
    few = {s: getattr(whole, s).evenly(n) for s, n in (("train", 256), ("test", 200))}
    return replace(whole, **few)


def test_the_loss_by_hand():
    """Eq. 1 of Chen et al. 2020, term by term in NumPy."""
    z = np.random.default_rng(0).normal(size=(6, 5))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    similar = np.exp(unit @ unit.T / 0.5)
    terms = []
    for i in range(6):
        partner = (i + 3) % 6
        others = sum(similar[i, k] for k in range(6) if k != i)
        terms.append(-np.log(similar[i, partner] / others))
    assert float(nt_xent(similarities(torch.from_numpy(z)))) == pytest.approx(
        np.mean(terms), rel=1e-6
    )


def test_views_differ_between_images_and_draws_and_stay_pictures():
    view = views(SHAPE, flip=True)
    image = torch.rand(1, *SHAPE).expand(64, -1, -1, -1)
    torch.manual_seed(0)
    first, second = view(image), view(image)
    assert first.shape == (64, *SHAPE) and float(first.min()) >= 0 and float(first.max()) <= 1
    assert len({tuple(v.flatten().tolist()) for v in first}) >= 60
    assert not torch.equal(first, second)
    gray = (first[:, :1] == first).flatten(1).all(1).double().mean()
    assert 0 < float(gray) < 0.3


def test_training_is_keyed_and_the_same_again(source):
    plan = DonorTraining(recipe="simclr", epochs=2, batch_size=64, seed=3)
    torch.manual_seed(11)
    first, again, other = network(), network(), network()
    train_donor(first, source, plan)
    train_donor(again, source, plan)
    train_donor(other, source, replace(plan, seed=4))
    for name, value in first.state().items():
        assert torch.equal(value, again.state()[name]), name
    assert not torch.equal(first.stages[0].conv1.weight, other.stages[0].conv1.weight)
    assert torch.initial_seed() == 11


def test_no_label_enters_before_the_probe(source):
    """Features of a network trained on the images with all labels alike are the same, bit for
    bit; without labels its classifier stays as it was."""
    plan = DonorTraining(recipe="simclr", epochs=1, batch_size=64)
    bare = replace(
        source, train=ImageSet.unlabelled(source.train.images),
        test=ImageSet.unlabelled(source.test.images),
    )  # fmt: skip
    known, unknown, fresh = network(), network(), network()
    train_donor(known, source, plan)
    train_donor(unknown, bare, plan)
    assert torch.equal(features(known, source.test), features(unknown, source.test))
    kept = [classifier_of(model).module.weight for model in (unknown, fresh)]
    assert torch.equal(*kept)


@pytest.mark.slow
def test_views_come_to_know_each_other(source):
    """A view's nearest is its partner far more often than by chance (1 in 127), and more than at
    first; the probe answers what guessing does not."""
    model, reports = network(), []
    plan = DonorTraining(recipe="simclr", epochs=30, batch_size=64, flip=False)
    metrics = train_donor(model, source, plan, progress=reports.append)
    first, last = reports[0], reports[-1]
    assert last.loss < first.loss - 0.1 and last.accuracy > max(first.accuracy, 3 / 127)
    assert metrics.test_accuracy > 0.4


def test_a_table_of_a_spec_and_its_file(source, tmp_path):
    spec = DonorSpec(
        name="a", model="resnet18", width=4, recipe="simclr", epochs=1, batch_size=64,
        data={"source": "digits", "size": 8},
    )  # fmt: skip
    given = Input(None, Normalisation((0.5,) * 3, (0.25,) * 3))
    donor = ensure_donor(recipe_of(spec, source, given), source, cache_dir=tmp_path)
    again = ensure_donor(recipe_of(spec, source, given), source, cache_dir=tmp_path)
    assert donor.trained and not again.trained and donor.content_hash == again.content_hash
    with pytest.raises(ValueError, match="neither adversarial nor permute_labels"):
        DonorSpec(model="resnet18", recipe="simclr", permute_labels=True)


def test_without_kornia_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kornia", None)
    with pytest.raises(FulaError, match=r"pip install 'fula-fast\[simclr\]'"):
        views(SHAPE, flip=True)
