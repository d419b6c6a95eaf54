"""Donors that know nothing are warned of; controls, and donors that know something, are not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import fula_fast
from fula_fast.donors.guessing import ChanceWarning, chance_level, warn_near_chance
from fula_fast.donors.obtain import obtain_donor
from fula_fast.models import build, save_checkpoint
from fula_fast.pipelines import ImageSet, load_source
from fula_fast.study.donor_spec import DataSpec, DonorSpec


def _images(labels) -> ImageSet:
    labels = np.asarray(labels, dtype=np.int64)
    names = tuple(map(str, range(int(labels.max()) + 1)))
    return ImageSet(np.zeros((len(labels), 4, 4, 3), np.uint8), labels, names)


@pytest.mark.parametrize(
    "labels, share",
    [(np.arange(1000) % 10, 0.1), ([0] * 90 + [1] * 10, 0.9), (np.arange(400) % 2, 0.5)],
)
def test_the_level_holds_all_but_a_few_of_those_who_guess(labels, share):
    """Against a simulation: one in a thousand guessers may be above it, none far above."""
    images = _images(labels)
    guesses = np.random.default_rng(0).binomial(len(images), share, 20_000) / len(images)
    assert (guesses > chance_level(images)).mean() < 0.003
    assert chance_level(images) - share == pytest.approx(3 * guesses.std(), rel=0.05)


@pytest.mark.parametrize("accuracy, warned", [(0.1, True), (0.12, True), (0.0, True), (0.2, False)])
def test_the_warning(accuracy, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_near_chance("x", accuracy, _images(np.arange(1000) % 10))
    assert [w.category for w in caught] == [ChanceWarning] * warned


def _network(seed: int = 0):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()


@pytest.mark.parametrize("way", ["checkpoint", "module", "stitch"])
def test_every_way_to_a_donor_warns(tmp_path, way):
    source, network = load_source("digits", size=8), _network()
    save_checkpoint(network, tmp_path / "a.safetensors")
    spec = DonorSpec(name="a", checkpoint=str(tmp_path / "a.safetensors"), data=DataSpec(size=8))
    ways = {
        "checkpoint": lambda: obtain_donor(spec, source, cache_dir=tmp_path),
        "module": lambda: obtain_donor(spec, source, cache_dir=tmp_path, module=network),
        "stitch": lambda: fula_fast.stitch(
            network, network, 3, 3, source, method="dm", dm_samples=60, quiet=True
        ),
    }
    with pytest.warns(ChanceWarning, match=r"is right on .* guessing gets up to"):
        ways[way]()


def test_controls_are_not_warned_of(tmp_path):
    spec = DonorSpec(name="a", model="resnet18", width=4, untrained=True, data=DataSpec(size=8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        obtain_donor(spec, load_source("digits", size=8), cache_dir=tmp_path)
