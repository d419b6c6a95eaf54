"""Data and donors from a spec's tables."""

from dataclasses import replace

import pytest
import torch

from fula_fast import stages, stitch
from fula_fast.donors.donor import recipe_of
from fula_fast.donors.obtain import normalisation_of, obtain_donor, open_source
from fula_fast.errors import FulaError
from fula_fast.models.labels import check_fit
from fula_fast.pipelines import ImageSet, Normalisation
from fula_fast.progress import Progress
from fula_fast.study.donor_spec import DataSpec
from fula_fast.study.facts import DataFacts, donor_facts
from fula_fast.study.spec import load_spec


class Heard(Progress):
    """Keeps the donor events."""

    def __init__(self):
        self.events = []

    def donor_started(self, name):
        self.events.append(("started", name))

    def donor_epoch(self, name, epoch, epochs, loss):
        self.events.append(("epoch", name, epoch, epochs))

    def donor_done(self, name, accuracy):
        self.events.append(("done", name, accuracy))


def spec_of(**donor):
    return load_spec(
        {
            "data": {"source": "digits", "size": 8},
            "protocol": {"crop_padding": 1, "flip": False},
            "donors": {"a": {"model": "resnet18", "width": 2, "epochs": 1, **donor}},
            "grid": {"front": "a", "end": "a"},
        }
    )


@pytest.fixture(scope="module")
def digits():
    return open_source(DataSpec(source="digits", size=8))


def test_a_data_table_opens_its_source(digits):
    assert digits.image_shape == (3, 8, 8) and digits.num_classes == 10
    assert open_source(DataSpec(source="digits", channels=1)).image_shape == (1, 8, 8)
    with pytest.raises(FulaError, match="digitz"):
        open_source(DataSpec(source="digitz"))


def test_normalisation_is_per_channel(digits):
    found = normalisation_of(DataSpec(mean=0.5, std=0.25), digits)
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)
    assert normalisation_of(DataSpec(), digits) is None


def test_a_sources_own_normalisation_holds_unless_the_table_sets_another(digits):
    own = Normalisation((0.1,) * 3, (0.2,) * 3)
    source = replace(digits, normalisation=own)
    assert normalisation_of(DataSpec(), source) == own
    assert normalisation_of(DataSpec(mean=0.5, std=0.5), source).mean == (0.5,) * 3
    assert normalisation_of(DataSpec(mean=0, std=1), source) is None


def test_a_donor_is_trained_once_and_found_again(digits, tmp_path):
    donor, heard = spec_of().donors["a"], Heard()
    first = obtain_donor(donor, digits, cache_dir=tmp_path, progress=heard)
    again = obtain_donor(donor, digits, cache_dir=tmp_path)
    assert first.trained and not again.trained
    assert first.content_hash == again.content_hash and first.path == again.path
    accuracy = first.metrics.test_accuracy
    assert heard.events == [("started", "a"), ("epoch", "a", 1, 1), ("done", "a", accuracy)]


def test_a_checkpoint_stands_for_a_donor(digits, tmp_path):
    made = obtain_donor(spec_of().donors["a"], digits, cache_dir=tmp_path)
    table = spec_of(checkpoint=str(made.path), min_accuracy=0.0).donors["a"]
    found = obtain_donor(table, digits, cache_dir=tmp_path / "unused")
    assert found.content_hash == made.content_hash
    assert found.metrics.test_accuracy == pytest.approx(made.metrics.test_accuracy)
    weak = spec_of(checkpoint=str(made.path), min_accuracy=1.0).donors["a"]
    with pytest.raises(FulaError, match=r"\[donors\.a\].*below min_accuracy = 1\.0"):
        obtain_donor(weak, digits, cache_dir=tmp_path)


def test_a_weak_donor_is_refused(digits, tmp_path):
    weak = spec_of(untrained=True, min_accuracy=0.95).donors["a"]
    with pytest.raises(FulaError, match=r"below min_accuracy = 0\.95"):
        obtain_donor(weak, digits, cache_dir=tmp_path)


def pretrained_of(monkeypatch, **table):
    """A spec's donor whose library's weights are those of a network made here, and that network."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet10t")  # of a thousand classes
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_a, **_k: theirs.state_dict()
    )
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_a, **_k: None)
    plain = {"width": None, "epochs": None, "input": {"size": 32, "mean": 0.5, "std": 0.5}}
    donor = {"model": "timm:resnet10t", "pretrained": True, **plain, **table}
    return spec_of(**donor).donors["a"], theirs


def test_a_pretrained_donor_is_taken_as_it_is(digits, tmp_path, monkeypatch):
    donor, theirs = pretrained_of(monkeypatch, head="none")
    found = obtain_donor(donor, digits, cache_dir=tmp_path)
    assert found.metrics.epochs == 0 and found.metrics.test_accuracy is None
    own = theirs.state_dict()
    state = found.staged.state()
    assert state.keys() == own.keys() and all(torch.equal(v, own[n]) for n, v in state.items())
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_a, **_k: pytest.fail("fetched")
    )
    again = obtain_donor(donor, digits, cache_dir=tmp_path)
    assert again.content_hash == found.content_hash


def test_a_pretrained_donor_of_other_classes_needs_a_head(digits, tmp_path, monkeypatch):
    """Its own classifier is never replaced by a random one."""
    bare, _ = pretrained_of(monkeypatch)
    with pytest.raises(FulaError, match="has 1000 classes, but 'digits' has 10; .*set head = 'lin"):
        obtain_donor(bare, digits, cache_dir=tmp_path)
    with pytest.raises(FulaError, match="answer with 1000 classes, but its data have 10; set head"):
        donor_facts(bare, DataFacts((3, 8, 8), 10, 100), "post_relu")
    probed, _ = pretrained_of(monkeypatch, head="linear-probe")
    found = obtain_donor(probed, digits, cache_dir=tmp_path)
    assert found.staged.num_classes == 10 and found.metrics.test_accuracy > 0.15
    assert donor_facts(probed, DataFacts((3, 8, 8), 10, 100), "post_relu").classes == 10


def test_a_pretrained_donor_is_trained_on_where_epochs_are_set(digits, monkeypatch):
    as_it_is, _ = pretrained_of(monkeypatch)
    trained_on, _ = pretrained_of(monkeypatch, epochs=2)
    assert recipe_of(as_it_is, digits)["epochs"] == 0
    assert recipe_of(trained_on, digits)["epochs"] == 2
    assert as_it_is.recipe_identity() != trained_on.recipe_identity()
    assert as_it_is.recipe_identity()["pretrained"] is True


@pytest.mark.parametrize("other", [{"untrained": True}, {"checkpoint": "a.safetensors"}])
def test_a_donor_has_one_origin(other, monkeypatch):
    with pytest.raises(FulaError, match="one of pretrained, untrained, or has a checkpoint"):
        pretrained_of(monkeypatch, **other)


class Embedding(torch.nn.Module):
    """A tower without a classifier."""

    def __init__(self):
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 2, 2), torch.nn.ReLU())

    def forward(self, x):
        return self.block(x).mean((2, 3))


def test_an_embedding_answers_no_labels(digits):
    tower = stages(Embedding(), ["block"], input_shape=(3, 8, 8))
    tower.classifies = False
    with pytest.raises(
        FulaError, match="labels of 'digits' needs a classifier, but model .* 12 numbers"
    ):
        check_fit(tower, digits)
    sets = {s: ImageSet.unlabelled(getattr(digits, s).images) for s in ("train", "test")}
    check_fit(tower, replace(digits, **sets))
    with pytest.raises(FulaError, match="gives an embedding of 12 numbers"):
        stitch(tower, tower, 1, 1, digits, method="dm")
