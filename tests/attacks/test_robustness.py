"""Attacking a stored donor, and the files and table columns that come of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fula_fast.attacks import attack_checkpoint, robust_evaluate, save_examples
from fula_fast.errors import FulaError
from fula_fast.models import build, save_checkpoint
from fula_fast.pipelines import ImageSet, Normalisation, Source

CLASSES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def donor():
    torch.manual_seed(0)
    return build("resnet18", num_classes=4, input_shape=(3, 16, 16), width=4).eval()


@pytest.fixture(scope="module")
def checkpoint(donor, tmp_path_factory):
    path = tmp_path_factory.mktemp("donor") / "donor.safetensors"
    save_checkpoint(donor, path)
    return path


def make_source(model, channels=3, size=16, classes=CLASSES) -> Source:
    """Random images with the labels `model` gives them (0 where it takes no such images)."""
    images = np.random.default_rng(0).integers(0, 256, (12, size, size, channels), dtype=np.uint8)
    labels = np.zeros(12, dtype=np.int64)
    if model is not None:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            labels = model(x).argmax(1).numpy()
    images = ImageSet(images, labels, classes)
    return Source("random", images, images)


def test_a_checkpoint_is_attacked_on_the_test_images(donor, checkpoint, tmp_path):
    source = make_source(donor)
    target = tmp_path / "examples.npz"
    result = attack_checkpoint(checkpoint, source, "apgd20", limit=9, output=target, eps=0.05)
    x = torch.from_numpy(source.test.images[:9]).permute(0, 3, 1, 2)
    (direct,) = robust_evaluate(
        donor, x, torch.from_numpy(source.test.labels[:9]), "apgd20", eps=0.05, keep_images=True
    )
    assert torch.equal(result.adversarial, direct.adversarial) and result.correct.all()
    with np.load(target) as stored:
        assert np.array_equal(stored["adversarial"], result.adversarial.numpy())
        assert stored["adversarial"].dtype == np.float32
        assert np.array_equal(stored["labels"], source.test.labels[:9])
        for name in ("predictions", "correct", "robust"):
            assert np.array_equal(stored[name], getattr(result, name).numpy())
        settings = json.loads(str(stored["settings"]))
    assert settings["attack"] == "apgd20" and settings["eps"] == 0.05
    assert [p.name for p in tmp_path.iterdir()] == ["examples.npz"]


def test_normalisation_goes_before_the_model(donor, checkpoint):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

    def normalised(x):
        return donor((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])

    source = make_source(normalised)
    result = attack_checkpoint(
        checkpoint, source, "pgd-2", eps=0.02, normalisation=Normalisation(mean, std)
    )
    assert result.correct.all() and result.robust_accuracy <= 1


def test_numpy_images_may_be_channels_last(donor):
    source = make_source(donor)
    (last,) = robust_evaluate(donor, source.test.images, source.test.labels, "pgd-2")
    first = np.moveaxis(source.test.images, 3, 1)
    (as_tensor,) = robust_evaluate(
        donor, torch.from_numpy(np.ascontiguousarray(first)), source.test.labels, "pgd-2"
    )
    assert torch.equal(last.robust, as_tensor.robust) and last.correct.all()


def test_columns_of_a_results_table(donor):
    source = make_source(donor)
    (result,) = robust_evaluate(donor, source.test.images, source.test.labels, "apgd20", steps=3)
    row = result.row()
    assert row["robust_attack"] == "apgd20" and row["robust_images"] == 12
    assert row["robust_accuracy"] == result.robust.double().mean()
    assert row["robust_verified"] == result.verified and row["robust_mode"] == "eager"
    assert row["robust_eps"] == 8 / 255 and row["robust_precision"] == "fp32"
    assert json.loads(json.dumps(row)) == row
    assert json.loads(json.dumps(result.settings)) == result.settings


def test_mistakes_are_refused(donor, checkpoint, tmp_path):
    with pytest.raises(FulaError, match=r"has \(1, 16, 16\)"):
        attack_checkpoint(checkpoint, make_source(None, channels=1), "pgd-1")
    with pytest.raises(FulaError, match="of 3; give the donor's own source"):
        attack_checkpoint(checkpoint, make_source(None, classes=CLASSES[:3]), "pgd-1")
    source = make_source(donor)
    (result,) = robust_evaluate(donor, source.test.images, source.test.labels, "pgd-1")
    with pytest.raises(FulaError, match="keep_images=True"):
        save_examples(tmp_path / "x.npz", result, source.test.labels)
    (tmp_path / "no").write_text("a file, no folder")
    with pytest.raises(FulaError, match="no"):
        attack_checkpoint(checkpoint, source, "pgd-1", output=tmp_path / "no" / "x.npz")


def test_labels_in_another_order_are_refused(tmp_path):
    """They would pass for adversarial examples that nobody had to look for."""
    model = build("resnet18", num_classes=4, input_shape=(3, 16, 16), width=2).eval()
    model.classes = CLASSES
    save_checkpoint(model, tmp_path / "d.safetensors")
    attack_checkpoint(tmp_path / "d.safetensors", make_source(model), "pgd-1", limit=2)
    turned = make_source(None, classes=("b", "a", "c", "d"))
    with pytest.raises(FulaError, match="class 'b' has label 1 in checkpoint .* and 0 in source"):
        attack_checkpoint(tmp_path / "d.safetensors", turned, "pgd-1", limit=2)


def _flat(x):
    return x.flatten(1)[:, :4]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (lambda x: (_flat(x), x), r"returns a tuple.*return the logits"),
        (lambda x: {"logits": _flat(x)}, r"returns a dict.*return the logits"),
        (lambda x: [_flat(x)], r"returns a list.*return the logits"),
        (lambda x: _flat(x).sum(), r"outputs of shape \(\) for 2 images"),
        (lambda x: _flat(x)[:1], r"outputs of shape \(1, 4\) for 2 images"),
        (lambda x: _flat(x)[:, :, None], r"outputs of shape \(2, 4, 1\)"),
    ],
)
def test_a_model_that_gives_no_logits_is_told_what_to_return(model, problem):
    with pytest.raises(FulaError, match=problem):
        robust_evaluate(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), "pgd-1")


@pytest.mark.parametrize("attack", ["pgd-2", "apgd20", "autoattack-standard"])
@pytest.mark.parametrize(
    "shape, words",
    [
        ((2, 8, 8, 3), r"have shape \(2, 8, 8, 3\), with channels last; give \(N, C, H, W\)"),
        ((2, 1, 8, 8), r"does not run on images of shape .*give images \(N, C, H"),
        ((2, 3, 2, 2), r"does not run on images of shape .*give images \(N, C, H"),
    ],
)
def test_images_that_the_model_does_not_take_are_named(attack, shape, words):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 4))
    with pytest.raises(FulaError, match=words):
        robust_evaluate(net, torch.rand(shape), torch.tensor([0, 1]), attack)


@pytest.mark.parametrize("shape", [(2, 3), (3, 8, 8), (2, 1, 3, 8, 8)], ids=str)
def test_images_of_other_axes_are_refused(shape):
    with pytest.raises(FulaError, match=r"give them as \(N, C, H, W\)"):
        robust_evaluate(_flat, torch.rand(shape), torch.zeros(shape[0], dtype=torch.int64), "pgd-1")


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 16, 16, 3, dtype=torch.uint8),
        torch.zeros(2, 16, 16, 1),
        np.zeros((2, 16, 16, 3), np.float32),
    ],
    ids=["bytes", "gray", "array of floats"],
)
def test_channels_last_are_never_read_as_channels(images):
    """A model that flattens its images takes them in any layout."""
    with pytest.raises(FulaError, match=r"\(2, 16, 16, \d\), with channels last; give \(N, C, H"):
        robust_evaluate(_flat, images, np.zeros(2, np.int64), "pgd-1")


@pytest.mark.parametrize(
    "images, labels, words",
    [
        ([[0.5]], np.zeros(1, np.int64), "images are a list; give a tensor or a NumPy array"),
        (None, np.zeros(1, np.int64), "images are a NoneType"),
        (torch.zeros(1, 3, 8, 8), [0], "labels are a list"),
        (torch.zeros(1, 3, 8, 8), np.array(["cat"]), "labels are an array of <U3; give numbers"),
    ],
)
def test_what_is_no_array_is_named(images, labels, words):
    with pytest.raises(FulaError, match=words):
        robust_evaluate(_flat, images, labels, "pgd-1")
