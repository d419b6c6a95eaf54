"""The real archives: counts, balance, and equality of the backends on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.pipelines import Augmentation, Shortcut, load_source, open_stream

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def cifar(data_folder):
    return load_source("cifar10", data_dir=data_folder)


@pytest.mark.slow
def test_cifar10_archive(cifar):
    assert cifar.classes == CIFAR and cifar.image_shape == (3, 32, 32)
    assert np.bincount(cifar.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar.test.labels).tolist() == [1000] * 10
    mean = cifar.train.images.mean((0, 1, 2), dtype=np.float64) / 255
    assert np.allclose(mean, [0.4914, 0.4822, 0.4465], atol=2e-3)  # the published channel means


def test_mnist_npz(data_folder):
    source = load_source("mnist", data_dir=data_folder, channels=1)
    assert source.image_shape == (1, 28, 28)
    assert (len(source.train), len(source.test)) == (60000, 10000)
    pixels = source.train.images / 255
    assert abs(pixels.mean() - 0.1307) < 1e-3 and abs(pixels.std() - 0.3081) < 1e-3


def test_tiny_imagenet_resized(data_folder):
    path = str(data_folder / "tiny-imagenet-10.tar.xz")
    source = load_source("imagefolder", path=path, size=32)
    assert np.bincount(source.train.labels).tolist() == [500] * 10
    assert np.bincount(source.test.labels).tolist() == [50] * 10
    assert source.image_shape == (3, 32, 32)


@pytest.mark.parametrize("shortcut", [None, Shortcut("aruco", "random")])
def test_backends_agree_on_cifar10(cifar, shortcut):
    settings = {"batch_size": 128, "seed": 9, "augmentation": Augmentation(), "shortcut": shortcut}
    streams = [open_stream(cifar.train, backend=b, **settings).epoch(7, start_step=370)
               for b in ("reference", "resident", "dali")]  # fmt: skip
    count = 0
    for reference, resident, dali in zip(*streams, strict=True):
        for expected, ours, theirs in zip(reference, resident, dali, strict=True):
            assert torch.equal(expected, ours) and torch.equal(expected, theirs)
        count += 1
    assert count == 390 - 370


@pytest.mark.slow
def test_decoders_agree_on_cifar10(cifar, data_folder):
    other = load_source("cifar10", data_dir=data_folder, decoder="pillow")
    dali = load_source("cifar10", data_dir=data_folder, decoder="dali")
    assert other.content_hash == dali.content_hash
