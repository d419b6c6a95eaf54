"""Start noise: in the unit ball, keyed by seed, stream and image alone."""

from __future__ import annotations

import pytest
import torch

from fula_fast.attacks.start_noise import start_noise
from fula_fast.errors import FulaError

SHAPE = (3, 16, 16)


def test_depends_on_the_image_not_on_its_companions():
    many = start_noise("linf", range(6), SHAPE, seed=4, stream=2)
    few = start_noise("linf", [5, 2], SHAPE, seed=4, stream=2)
    assert torch.equal(few[0], many[5]) and torch.equal(few[1], many[2])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_seed_stream_and_image_each_matter(norm):
    draws = [
        start_noise(norm, [image], SHAPE, seed=seed, stream=stream).flatten()
        for seed in (0, 1)
        for stream in (0, 1)
        for image in (0, 1)
    ]
    for i, a in enumerate(draws):
        assert all(torch.cosine_similarity(a, b, 0).abs() < 0.2 for b in draws[:i])


def test_linf_is_uniform():
    noise = start_noise("linf", range(40), SHAPE, seed=0).flatten().double()
    assert -1 <= noise.min() < -0.99 and 0.99 < noise.max() <= 1
    assert abs(noise.mean()) < 0.02 and noise.square().mean() == pytest.approx(1 / 3, abs=0.01)


def test_l2_is_a_uniform_direction_of_uniform_length():
    noise = start_noise("l2", range(400), SHAPE, seed=0).flatten(1).double()
    length = noise.norm(dim=1)
    assert length.max() <= 1 and length.mean() == pytest.approx(0.5, abs=0.05)
    unit = noise / length[:, None]
    assert unit.mean(0).norm() < 3 / 400**0.5
    kurtosis = (unit * unit.shape[1] ** 0.5).pow(4).mean()
    assert kurtosis == pytest.approx(3, abs=0.1)  # of normals


def test_no_image_is_an_empty_draw():
    assert start_noise("linf", [], SHAPE, seed=0).shape == (0, *SHAPE)


def test_mistakes_are_refused():
    with pytest.raises(FulaError, match="norm = 'l1'"):
        start_noise("l1", [0], SHAPE, seed=0)
    with pytest.raises(FulaError, match="seed -1"):
        start_noise("linf", [0], SHAPE, seed=-1)
