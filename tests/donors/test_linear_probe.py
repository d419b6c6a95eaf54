"""The linear probe: scikit-learn's own answers, from the network's own classifier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

from fula_fast.donors import linear_probe as ours
from fula_fast.donors.donor import fresh_model
from fula_fast.donors.linear_probe import classifier_of, features, linear_probe, probed
from fula_fast.errors import FulaError
from fula_fast.models import stages
from fula_fast.pipelines import load_source

SHAPE = (3, 8, 8)


def network(classes: int):
    return fresh_model(
        "resnet18", seed=0, num_classes=classes, input_shape=SHAPE, options={"width": 8}
    ).eval()


def digits(classes: int):
    images = load_source("digits", size=8).train.evenly(400)
    kept = images.labels < classes
    names = images.classes[: max(classes, 2)]
    return replace(images, images=images.images[kept], labels=images.labels[kept], classes=names)


def as_tensor(images) -> torch.Tensor:
    return torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_answers_are_those_of_scikit_learn(classes):
    images, model = digits(classes), network(classes)
    before = {n: v.clone() for n, v in model.state().items()}
    x = features(model, images).double().numpy()
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(max_iter=5000).fit(scaler.transform(x), images.labels)
    probed(model, images)
    with torch.no_grad():
        ours = model(as_tensor(images)).double().softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(scaler.transform(x)), atol=2e-4)
    own = {id(p) for p in classifier_of(model).module.parameters()}
    for name, value in model.state().items():
        assert id(value) in own or torch.equal(value, before[name]) or name.startswith("fc.")


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_few_images_at_a_time_give_the_same(classes, monkeypatch):
    images = digits(classes)
    x = features(network(classes), images)
    whole = linear_probe(x, images.labels, classes)
    monkeypatch.setattr(ours, "_ROOM", 7 * x.shape[1])
    for one, other in zip(linear_probe(x, images.labels, classes), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_gradient_is_that_of_the_loss(classes):
    draw = torch.Generator().manual_seed(0)
    x = 5 + 3 * torch.randn(50, 6, generator=draw, dtype=torch.float64)
    labels = torch.arange(50) % classes
    loss = ours._Loss(x, labels, classes)
    at = torch.randn(loss.rows * 7, generator=draw, dtype=torch.float64).numpy()
    found = check_grad(lambda v: loss(v)[0], lambda v: loss(v)[1], at)
    assert found < 1e-6
    z = StandardScaler().fit_transform(x.numpy())
    whole = at.reshape(loss.rows, 7)
    logits = torch.from_numpy(z @ whole[:, :-1].T + whole[:, -1])
    if classes == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    wanted = cross_entropy(logits, labels) + (whole[:, :-1] ** 2).sum() / 2 / 50
    assert loss(at)[0] == pytest.approx(float(wanted), rel=1e-12)


def test_features_are_what_the_classifier_takes():
    images, model = digits(10), network(10)
    given = []
    classifier_of(model).module.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    with torch.no_grad():
        model(as_tensor(images))
    assert torch.allclose(features(model, images, batch_size=64), given[0], atol=1e-5)
    assert isinstance(classifier_of(model).module, torch.nn.Linear)  # it is back in its place


def test_a_class_without_images_is_not_answered():
    images = digits(3)
    named = replace(images, classes=tuple(map(str, range(5))))
    model = network(5)
    probed(model, named)
    with torch.no_grad():
        assert int(model(as_tensor(images)).argmax(1).max()) <= 2


def test_a_single_class_is_refused():
    images = digits(3)
    images = replace(images, labels=np.zeros_like(images.labels))
    with pytest.raises(FulaError, match="all [0-9]+ images are of class 0; give images of two"):
        probed(network(3), images)


def test_a_classifier_without_a_bias_is_refused():
    model = network(10)
    classifier_of(model).module.bias = None
    with pytest.raises(FulaError, match="has no bias"):
        probed(model, digits(10))


def test_a_network_without_a_classifier_is_refused():
    class Pool(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 10, 3)

        def forward(self, x):
            return self.b(self.a(x)).mean((2, 3))

    with pytest.raises(FulaError, match="no linear layer in its head"):
        classifier_of(stages(Pool(), ["a"], input_shape=SHAPE))
