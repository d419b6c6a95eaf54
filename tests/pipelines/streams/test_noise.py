"""Clustered noise: the formula, the keys, and streams of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.errors import FulaError
from fula_fast.pipelines import (
    Augmentation,
    Normalisation,
    Shortcut,
    evaluation_batches,
    load_source,
    open_stream,
    take,
)
from fula_fast.pipelines.draws.philox import philox
from fula_fast.pipelines.draws.randomness import Purpose


def _noise(**options):
    return load_source(
        "clustered-noise", **({"shape": (6, 5, 3), "train": 300, "test": 70} | options)
    )


def test_a_sample_is_its_centre_plus_scaled_noise_clamped():
    """Sample 13 of epoch 2 from the counters, in NumPy and float64."""
    noise = _noise(radius=0.3, seed=9).train
    sample = noise.samples(torch.tensor([13]), epoch=2)[0]
    counters = np.array([[b, 13, 3, Purpose.NOISE_TRAIN] for b in range(23)])
    words = philox(counters, (9, 0)).ravel()[:90].astype(np.float64) // 256
    first, second = words.reshape(-1, 2).T
    radius = np.sqrt(-2 * np.log((first + 1) / 2**24))
    angle = 2 * np.pi * second / 2**24
    gauss = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()
    counters = np.array([[b, 3, 1, Purpose.NOISE_CENTRE] for b in range(23)])
    centre = philox(counters, (9, 0)).ravel()[:90] // 256 / 2**24
    expected = np.clip(centre + 0.3 * gauss, 0, 1).reshape(6, 5, 3)
    assert np.allclose(sample, expected, atol=1e-5)
    assert torch.allclose(noise.centres()[3].flatten().double(), torch.from_numpy(centre))


def test_stream_is_keyed_like_every_other():
    noise = _noise().train
    settings = {"seed": 4, "augmentation": Augmentation()}
    whole = {
        int(i): x
        for b in open_stream(noise, batch_size=1, **settings).epoch(1)
        for i, x in zip(b.index, b.images, strict=True)
    }
    assert sorted(whole) == list(range(300))
    batches = list(open_stream(noise, batch_size=64, backend="dali", **settings).epoch(1, 2))
    assert len(batches) == 2
    for batch in batches:
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, batch.index % 10)
        assert all(
            torch.equal(x, whole[int(i)]) for i, x in zip(batch.index, batch.images, strict=True)
        )
    other = next(open_stream(noise, batch_size=300, **settings).epoch(2))
    assert not torch.equal(other.images[0], whole[int(other.index[0])])


@pytest.mark.parametrize("shape", [(12,), (7, 5), (4, 3, 3)])
def test_any_activation_shape(shape):
    source = _noise(shape=shape)
    batch = next(
        open_stream(source.train, batch_size=8, seed=0, augmentation=Augmentation()).epoch(0)
    )
    assert batch.images.shape == (8, *shape) and source.image_shape == shape
    assert take(source.train, 20, 0).shape == (20, *shape)
    assert [len(b.labels) for b in evaluation_batches(source.test, 32)] == [32, 32, 6]


def test_wider_clusters_overlap_more():
    def accuracy(radius):
        """Of the nearest centre, the best rule for equal round clusters."""
        source = _noise(radius=radius)
        batch = next(evaluation_batches(source.test, 70))
        distance = torch.cdist(batch.images.flatten(1), source.train.centres().flatten(1))
        return (distance.argmin(1) == batch.labels).float().mean()

    assert accuracy(0.1) == 1 and accuracy(30.0) < 0.7


def test_training_and_test_samples_differ_but_share_centres():
    source = _noise()
    index = torch.arange(5)
    assert not torch.equal(source.train.samples(index), source.test.samples(index))
    assert torch.equal(source.train.centres(), source.test.centres())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_source("clustered-noise"), "give the receiver's activation shape"),
        (lambda: _noise(radius=-1), "radius must be at least 0"),
        (lambda: _noise().train.first_classes(3), "has no class subsets"),
        (
            lambda: open_stream(_noise().train, batch_size=2, seed=0, augmentation=Augmentation(),
                                shortcut=Shortcut("pixel", "class")),
            "neither shortcut nor normalisation",
        ),
        (
            lambda: take(_noise().train, 2, 0, normalisation=Normalisation((0.5,), (0.5,))),
            "neither shortcut nor normalisation",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, message):
    with pytest.raises(FulaError, match=message):
        call()
