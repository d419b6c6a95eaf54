"""Data and donors from a spec's tables."""

from dataclasses import replace

import pytest

from fula_fast.donors.obtain import normalisation_of, obtain_donor, open_source
from fula_fast.errors import FulaError
from fula_fast.pipelines import Normalisation
from fula_fast.progress import Progress
from fula_fast.study.donor_spec import DataSpec
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
