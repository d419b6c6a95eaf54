"""A donor's head by choice: scikit-learn's answers, fitted once and stored with the network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from fula_fast.donors import fitted_head
from fula_fast.donors.donor import fresh_model, recipe_of
from fula_fast.donors.fitted_head import with_head
from fula_fast.donors.obtain import obtain_donor, open_source
from fula_fast.errors import FulaError
from fula_fast.models import content_hash, load_checkpoint, save_checkpoint, stages
from fula_fast.models.heads import head_choice
from fula_fast.pipelines import ImageSet, Input, Normalisation
from fula_fast.study.donor_spec import DataSpec
from fula_fast.study.spec import load_spec

SHAPE = (3, 8, 8)
HEADS = ["linear-probe", "knn=5"]


@pytest.fixture(scope="module")
def digits():
    return open_source(DataSpec(source="digits", size=8, train_images=300, test_images=200))


class Tower(torch.nn.Module):
    """Images to twelve numbers."""

    def __init__(self):
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 4, 4), torch.nn.ReLU())
        self.flat = torch.nn.Flatten()

    def forward(self, x):
        return self.flat(self.block(x))


def tower():
    torch.manual_seed(0)
    staged = stages(Tower(), ["block"], input_shape=SHAPE).eval()
    staged.classifies = False
    return staged


def table(head=None, **donor):
    spec = load_spec(
        {
            "data": {"source": "digits", "size": 8, "train_images": 300, "test_images": 200},
            "donors": {"a": {"model": "resnet18", "width": 4, "untrained": True, **donor}},
            "grid": {"front": "a", "end": "a"},
        },
        [("donors.a.head", head)] if head else (),
    )
    return spec.donors["a"]


def of_tower(head, digits, folder, **more):
    return obtain_donor(table(head, **more), digits, cache_dir=folder, module=tower())


def pixels(images):
    return torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255


def theirs(head, x, labels, test):
    """Probabilities of scikit-learn's own classifier of features."""
    if head == "linear-probe":
        scaler = StandardScaler().fit(x)
        known = LogisticRegression(max_iter=5000).fit(scaler.transform(x), labels)
        return known.predict_proba(scaler.transform(test))
    known = KNeighborsClassifier(
        5, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    return known.fit(x, labels).predict_proba(test)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_answers_are_those_of_scikit_learn(head, digits, tmp_path):
    donor, network = of_tower(head, digits, tmp_path), tower()
    x, test = (network(pixels(images)).double().numpy() for images in (digits.train, digits.test))
    wanted = theirs(head, x, digits.train.labels, test)
    found = donor.staged(pixels(digits.test)).double().softmax(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=5e-4)
    right = float((wanted.argmax(1) == digits.test.labels).mean())
    assert donor.metrics.test_accuracy == pytest.approx(right, abs=0.011) and right > 0.5
    assert donor.staged.classes == digits.classes


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_fitted_once_and_read_from_its_file(head, digits, tmp_path, monkeypatch):
    first = of_tower(head, digits, tmp_path)
    monkeypatch.setattr(fitted_head, "features", lambda *_a, **_k: pytest.fail("fitted again"))
    again = of_tower(head, digits, tmp_path)
    assert (first.trained, again.trained) == (True, False)
    assert first.content_hash == again.content_hash == content_hash(again.staged)
    assert first.metrics == again.metrics and first.path == again.path


def test_what_decides_a_head_is_in_its_key(digits, tmp_path):
    """Weights, images, input, marker, and the head itself."""
    base = obtain_donor(table(), digits, cache_dir=tmp_path)
    other = obtain_donor(table(seed=3), digits, cache_dir=tmp_path)
    fewer = open_source(DataSpec(source="digits", size=8, train_images=290, test_images=200))
    moments = Input(None, Normalisation((0.5,) * 3, (0.25,) * 3))
    marked = table(shortcut="pixel+class").shortcut
    from fula_fast.pipelines import Shortcut

    asked = [
        (base, "knn=5", digits, {}),
        (base, "knn=6", digits, {}),
        (base, "linear-probe", digits, {}),
        (other, "knn=5", digits, {}),
        (base, "knn=5", fewer, {}),
        (base, "knn=5", digits, {"given": moments}),
        (base, "knn=5", digits, {"shortcut": Shortcut(**marked.model_dump())}),
    ]
    made = [with_head(d, head_choice(h), s, cache_dir=tmp_path, **how) for d, h, s, how in asked]
    assert all(donor.trained for donor in made)
    assert len({donor.path for donor in made}) == len(made)
    assert not with_head(base, head_choice("knn=5"), digits, cache_dir=tmp_path).trained


def test_a_damaged_file_is_fitted_again(digits, tmp_path, caplog):
    first = of_tower("knn=5", digits, tmp_path)
    first.path.write_bytes(first.path.read_bytes()[:-40])
    again = of_tower("knn=5", digits, tmp_path)
    assert again.trained and again.content_hash == first.content_hash
    assert "training this donor again" in caplog.text


@pytest.mark.parametrize("head", HEADS)
def test_a_head_takes_a_classifiers_place(head, digits, tmp_path):
    """The network's own features, and its weights, stay."""
    plain = obtain_donor(table(), digits, cache_dir=tmp_path)
    headed = obtain_donor(table(head), digits, cache_dir=tmp_path)
    own, found = plain.staged.state(), headed.staged.state()
    assert all(torch.equal(v, own[n]) for n, v in found.items() if not n.startswith("fc."))
    assert headed.staged.fitted.features == 32
    assert headed.metrics.test_accuracy > plain.metrics.test_accuracy + 0.2


def test_a_checkpoint_of_other_classes_is_given_a_head(digits, tmp_path):
    made = fresh_model("resnet18", seed=0, num_classes=7, input_shape=SHAPE, options={"width": 4})
    save_checkpoint(made, tmp_path / "seven.safetensors")
    given = {"checkpoint": str(tmp_path / "seven.safetensors"), "model": "", "width": None}
    given |= {"untrained": False}
    found = obtain_donor(table("linear-probe", **given), digits, cache_dir=tmp_path)
    assert found.staged.num_classes == 10 and found.metrics.test_accuracy > 0.5
    with pytest.raises(FulaError, match="has 7 classes, but 'digits' has 10"):
        obtain_donor(table(**given), digits, cache_dir=tmp_path)
    again = obtain_donor(
        table(**given | {"checkpoint": str(found.path)}), digits, cache_dir=tmp_path / "empty"
    )
    assert again.content_hash == found.content_hash
    assert again.metrics.test_accuracy == found.metrics.test_accuracy
    assert load_checkpoint(found.path).fitted == found.staged.fitted


def foreign(state, folder, **donor):
    """The table of a donor whose weights another program wrote."""
    torch.save(state, folder / "foreign.pt")
    return {"checkpoint": str(folder / "foreign.pt"), "untrained": False, **donor}


def of_seven_classes():
    return fresh_model("resnet18", seed=0, num_classes=7, input_shape=SHAPE, options={"width": 4})


CLASSIFIERS = {
    "of seven classes": lambda state: state,
    "none": lambda state: {n: v for n, v in state.items() if not n.startswith("fc.")},
    "a projector": lambda state: (
        CLASSIFIERS["none"](state)
        | {"fc.0.weight": torch.zeros(32, 32), "fc.2.weight": torch.zeros(9, 32)}
    ),
}


@pytest.mark.parametrize("head", [*HEADS, "none"])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_foreign_weights_with_another_classifier_are_given_a_head(
    classifier, head, digits, tmp_path, caplog
):
    """It is that of the same network at hand, and what is left out is said in a line."""
    made = of_seven_classes().eval()
    given = foreign(CLASSIFIERS[classifier](made.state()), tmp_path)
    found = obtain_donor(table(head, **given), digits, cache_dir=tmp_path).staged
    asked = obtain_donor(table(head), digits, cache_dir=tmp_path, module=made).staged
    x = pixels(digits.test)
    if head == "none":
        torch.testing.assert_close(found.run(x), asked.run(x))
        assert not found.classifies
    else:
        torch.testing.assert_close(found(x), asked(x))
    said = [r.getMessage() for r in caplog.records if "classifier is left out" in r.getMessage()]
    if classifier == "none":
        assert not said
    else:
        (line,) = said
        assert "foreign.pt': its classifier is left out (fc." in line and "\n" not in line


def test_without_a_head_the_refusal_of_other_classes_names_it(digits, tmp_path):
    given = foreign(of_seven_classes().state(), tmp_path)
    with pytest.raises(
        FulaError, match="have 7 classes but .* has 10; .*or set head = 'linear-pro"
    ):
        obtain_donor(table(**given), digits, cache_dir=tmp_path)
    save_checkpoint(of_seven_classes(), tmp_path / "ours.safetensors")
    ours = given | {"checkpoint": str(tmp_path / "ours.safetensors"), "model": "", "width": None}
    with pytest.raises(FulaError, match="has 7 classes, but 'digits' has 10; .*or set head = 'lin"):
        obtain_donor(table(**ours), digits, cache_dir=tmp_path)


def test_weights_of_ours_that_name_their_model_keep_their_classifier(digits, tmp_path, caplog):
    made = of_seven_classes()
    save_checkpoint(made, tmp_path / "ours.safetensors")
    given = {"checkpoint": str(tmp_path / "ours.safetensors"), "untrained": False}
    found = obtain_donor(table("none", **given), digits, cache_dir=tmp_path)
    assert found.content_hash == content_hash(made) and "left out" not in caplog.text


def test_other_differences_are_refused_with_a_head_too(digits, tmp_path):
    state = of_seven_classes().state()
    state["conv1.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(FulaError, match=r"weight 'conv1.weight' has shape \(8, 3, 3, 3\)"):
        obtain_donor(table("knn=5", **foreign(state, tmp_path)), digits, cache_dir=tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_of_fewer_images(head, digits, tmp_path):
    """As many of each class as goes, the first ones: as if the others were not there."""
    of_some = of_tower(f"{head} of 90", digits, tmp_path)
    first = [np.flatnonzero(digits.train.labels == c)[:9] for c in range(10)]
    kept = np.sort(np.concatenate(first))
    fewer = replace(
        digits.train, images=digits.train.images[kept], labels=digits.train.labels[kept]
    )
    with torch.no_grad():
        x = tower()(pixels(fewer)).double().numpy()
        test = tower()(pixels(digits.test)).double().numpy()
        found = of_some.staged(pixels(digits.test)).double().softmax(1).numpy()
    np.testing.assert_allclose(found, theirs(head, x, fewer.labels, test), atol=5e-4)
    with pytest.raises(FulaError, match="more neighbours than the 4 training images"):
        of_tower("knn=5 of 4", digits, tmp_path)


def test_features_that_memory_does_not_hold_are_refused_first(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(fitted_head, "available_memory", lambda: 12 * 1000)
    monkeypatch.setattr(fitted_head, "features", lambda *_a, **_k: pytest.fail("computed"))
    fewer = (
        r"head = 'knn=5' holds 48 features of 300 images, .*fit it to fewer.*head = 'knn=5 of 18'"
    )
    with pytest.raises(FulaError, match=fewer) as caught:
        of_tower("knn=5", digits, tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_head_nothing_is_asked(digits, tmp_path):
    found = of_tower("none", digits, tmp_path)
    assert found.metrics.test_accuracy is None and not found.staged.classifies
    assert not list(tmp_path.iterdir())
    plain = obtain_donor(table(), digits, cache_dir=tmp_path)
    bare = obtain_donor(table("none"), digits, cache_dir=tmp_path)
    assert bare.content_hash == plain.content_hash and bare.metrics.test_accuracy is None
    assert recipe_of(table("none"), digits) == recipe_of(table(), digits)


def test_what_a_head_cannot_be_fitted_to(digits, tmp_path):
    few = f"head = 'knn=301' asks for more neighbours than the {len(digits.train)} training"
    with pytest.raises(FulaError, match=rf"\[donors\.a\] {few}"):
        of_tower("knn=301", digits, tmp_path)
    sets = {s: ImageSet.unlabelled(getattr(digits, s).images) for s in ("train", "test")}
    with pytest.raises(FulaError, match=r"\[donors\.a\] head = 'knn=5' needs labels"):
        of_tower("knn=5", replace(digits, **sets), tmp_path)
    with pytest.raises(FulaError, match=r"needs a classifier.*head = 'linear-probe', 'knn=20' or"):
        of_tower(None, digits, tmp_path)


def test_a_weak_head_is_refused(digits, tmp_path):
    with pytest.raises(FulaError, match="below min_accuracy"):
        of_tower("knn=5", digits, tmp_path, min_accuracy=0.999)
    with pytest.raises(FulaError, match="head = 'none' has no accuracy; leave min_accuracy out"):
        table("none", min_accuracy=0.5)
