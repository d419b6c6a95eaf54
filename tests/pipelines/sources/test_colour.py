"""Colour MNIST: every variant against the publication's rules."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.pipelines import load_source

NAMED = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225),
    (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128),
]  # fmt: skip


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory):
    """A folder with an mnist.npz of scikit-learn's digits, in MNIST's layout."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = np.kron(data.images, np.ones((3, 3))).astype(np.uint8) * 15
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    folder = tmp_path_factory.mktemp("mnist")
    y = data.target
    np.savez(folder / "mnist.npz", train_x=x[:1500], train_y=y[:1500], test_x=x[1500:],
             test_y=y[1500:])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def load(mnist_folder):
    return lambda variant, **options: load_source(
        "colour-mnist", data_dir=mnist_folder, variant=variant, **options
    )


@pytest.fixture(scope="module")
def plain(mnist_folder):
    return load_source("mnist", data_dir=mnist_folder, channels=1)


def _colour_of(background: np.ndarray) -> np.ndarray:
    """The named colour nearest to each background (N, 3)."""
    return ((background[:, None].astype(int) - np.array(NAMED)) ** 2).sum(-1).argmin(1)


def _background(images: np.ndarray) -> np.ndarray:
    return images[:, 0, 0]


@pytest.mark.parametrize("variant", ["correlated", "digit", "colour"])
def test_digits_are_white_and_the_rest_one_colour(load, plain, variant):
    source = load(variant)
    for ours, digits in ((source.train, plain.train), (source.test, plain.test)):
        ink = digits.images[..., 0] != 0
        assert (ours.images[ink] == 255).all()
        expected = np.broadcast_to(_background(ours.images)[:, None, None], ours.images.shape)
        assert np.array_equal(ours.images[~ink], expected[~ink])


def test_jitter_is_within_its_bounds_and_drawn_per_channel(load):
    source = load("correlated")
    shift = _background(source.train.images).astype(int) - np.array(NAMED)[source.train.labels]
    assert np.abs(shift).max() <= 26
    free = shift[np.isin(source.train.labels, 9)]  # grey is clipped nowhere
    assert abs(np.corrcoef(free[:, 0], free[:, 1])[0, 1]) < 0.3
    # clamp(N(0, 1), -1, 1): 16% of the mass at each end
    at_ends = (np.abs(free) >= 25).mean()
    assert stats.binomtest(int(at_ends * free.size), free.size, 0.3173).pvalue > 1e-4


def test_colour_and_label(load, plain):
    sources = {v: load(v) for v in ("correlated", "digit", "colour", "colour-only")}
    colour = {v: _colour_of(_background(s.train.images)) for v, s in sources.items()}
    digits = plain.train.labels
    for variant in ("correlated", "colour-only"):
        assert (colour[variant] == digits).mean() > 0.99
        assert np.array_equal(sources[variant].train.labels, digits)
    assert np.array_equal(sources["digit"].train.labels, digits)
    assert (colour["colour"] == sources["colour"].train.labels).mean() > 0.99
    agree = (sources["colour"].train.labels == digits).mean()
    assert 0.05 < agree < 0.15  # chance
    assert stats.chisquare(np.bincount(sources["colour"].train.labels)).pvalue > 1e-4


def test_colour_only_has_no_digit(load):
    images = load("colour-only").train.images
    assert (images == images[:, :1, :1]).all()


def test_bw_is_mnist(load, plain):
    source = load("bw")
    assert np.array_equal(source.train.images[..., 1], plain.train.images[..., 0])
    assert source.normalisation.mean == (0.1307,) * 3
    assert load("mix").normalisation.std == (0.5,) * 3


def test_mix_is_a_third_of_each(load, plain):
    images = load("mix").train.images
    flat = (images == images[:, :1, :1]).all((1, 2, 3))
    gray = (images == plain.train.images).all((1, 2, 3))
    assert abs(flat.mean() - 1 / 3) < 0.01 and abs(gray.mean() - 1 / 3) < 0.01
    assert not (flat & gray).any()


def test_seed_and_split_draw_anew(load):
    first, second = load("digit", seed=0), load("digit", seed=1)
    assert not np.array_equal(first.train.images, second.train.images)
    assert first.train.content_hash == load("digit", seed=0).train.content_hash
    colours = [_colour_of(_background(s.images))[:250] for s in (first.train, first.test)]
    assert (colours[0] == colours[1]).mean() < 0.3


def test_size_and_mistakes(load):
    assert load("correlated", size=32).image_shape == (3, 32, 32)
    with pytest.raises(FulaError, match="unknown colour-mnist variant 'corelated'; did you mean"):
        load("corelated")
    with pytest.raises(FulaError, match="colour-mnist has 3 channels, not 1"):
        load("bw", channels=1)
