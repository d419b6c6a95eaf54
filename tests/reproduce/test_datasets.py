"""Which data is taken: the paper's own, else a stand-in that is named as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fula_fast.pipelines import load_source
from fula_fast.reproduce.datasets import choose, data_folder, digits_archive


def test_the_papers_own_set_goes_before_a_stand_in(tmp_path):
    (tmp_path / "tiny-imagenet-10.tar.xz").touch()
    standing = choose("imagenet", "small", tmp_path)
    assert (standing.label, standing.stands_in_for) == ("Tiny-ImageNet-10", "LS-ImageNet-10")
    assert standing.table["data_dir"] == str(tmp_path / "tiny-imagenet-10.tar.xz")
    assert standing.words == "Tiny-ImageNet-10 (stands in for LS-ImageNet-10)"
    (tmp_path / "ls-imagenet-10").mkdir()
    own = choose("imagenet", "small", tmp_path)
    assert (own.label, own.stands_in_for, own.missing) == ("LS-ImageNet-10", "", "")
    assert own.table["data_dir"] == str(tmp_path)


def test_what_is_missing_is_said_with_where_it_was_looked_for(tmp_path):
    missing = choose("colour-mnist", "paper", tmp_path).missing
    assert missing == f"no mnist.npz or MNIST in '{tmp_path}'"
    either = choose("imagenet", "small", tmp_path).missing
    assert "no ls-imagenet-10* (or, to stand in for it, tiny-imagenet-10*)" in either


def test_fashion_mnist_falls_back_to_digits_that_need_no_file(tmp_path):
    assert choose("fashion", "small", tmp_path).stands_in_for == "Fashion-MNIST"
    assert choose("fashion", "small", tmp_path).missing == ""


def test_smoke_takes_digits_whatever_is_there(tmp_path):
    (tmp_path / "cifar10.tar").touch()
    chosen = choose("cifar10", "smoke", tmp_path)
    assert chosen.table["source"] == "digits" and chosen.stands_in_for == "CIFAR-10"
    assert chosen.run_facts.train_images == chosen.limits["train_images"] < 1442


def test_the_data_folder_is_given_or_the_users(monkeypatch):
    monkeypatch.delenv("FULA_DATA", raising=False)
    assert data_folder() == Path("data")
    monkeypatch.setenv("FULA_DATA", "elsewhere")
    assert data_folder() == Path("elsewhere") and data_folder("given") == Path("given")


def test_digits_stand_for_mnist_in_its_own_form(tmp_path, monkeypatch):
    monkeypatch.setenv("FULA_CACHE", str(tmp_path))
    source = load_source("mnist", data_dir=digits_archive(), channels=1)
    assert source.image_shape == (1, 28, 28) and source.num_classes == 10
    digits = load_source("digits", channels=1)
    assert np.array_equal(source.test.labels, digits.test.labels)
    assert not source.test.images[:, :4].any() and not source.test.images[:, :, -4:].any()


def test_digits_have_a_background_that_colour_mnist_can_colour():
    source = load_source("colour-mnist", data_dir=digits_archive(), variant="correlated")
    white = (source.test.images == 255).all(-1).mean()  # MNIST: 0.19 of the pixels are digit
    assert 0.1 < white < 0.35


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "mnist", "audio", "images", "stylised"])
def test_the_test_data_serves_the_small_scale(data_folder, name):
    assert choose(name, "small", data_folder).missing == ""
