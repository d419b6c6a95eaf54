"""Streams on a CUDA device: the same batches as on the CPU, in eager and captured steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.pipelines import (
    Augmentation,
    ImageSet,
    Normalisation,
    Shortcut,
    evaluation_batches,
    into_buffers,
    load_source,
    open_stream,
    take,
)
from fula_fast.pipelines.decode.dali import dali_installed
from fula_fast.pipelines.streams.base import Batch

pytestmark = pytest.mark.gpu
DALI = pytest.param(
    "dali", marks=pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
)
SETTINGS = {"batch_size": 32, "seed": 3, "augmentation": Augmentation()}
FULL = SETTINGS | {
    "shortcut": Shortcut("noise", "random"),
    "normalisation": Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)),
}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    return ImageSet(pixels, rng.integers(0, 10, 300), tuple("abcdefghij"))


def _equal(ours: Batch, expected: Batch) -> bool:
    return all(torch.equal(a.cpu(), b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("settings", [SETTINGS, FULL], ids=["plain", "marked"])
@pytest.mark.parametrize("backend", ["reference", "resident", DALI])
def test_batches_equal_the_cpus(images, backend, settings):
    ours = open_stream(images, backend=backend, device="cuda", **settings)
    expected = open_stream(images, backend="reference", **settings)
    for epoch, start in ((0, 0), (1, 4)):
        pairs = zip(ours.epoch(epoch, start), expected.epoch(epoch, start), strict=True)
        for batch, other in pairs:
            assert batch.images.is_cuda and _equal(batch, other)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
def test_batches_of_dali_take_no_new_cuda_stream(images, monkeypatch):
    """torch hands out few, in turn: a graph may be captured on the next one."""
    stream = open_stream(images, backend="dali", device="cuda", **SETTINGS)
    taken = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda *args, **kwargs: taken.append(args))
    assert len(list(stream.epoch(0))) == stream.steps and not taken


def test_a_captured_step_reads_every_epoch(images):
    stream = open_stream(images, device="cuda", **FULL)
    expected = open_stream(images, backend="reference", **FULL)
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    stream.load_epoch(0)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        stream.batch_at(step)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = stream.batch_at(step)
    for epoch in (0, 3):
        stream.load_epoch(epoch)
        for k, other in enumerate(expected.epoch(epoch)):
            step.fill_(k)
            graph.replay()
            assert _equal(out, other)


@pytest.mark.parametrize("backend", ["reference", DALI])
def test_static_buffers_are_filled_in_place(images, backend):
    stream = open_stream(images, backend=backend, device="cuda", **FULL)
    expected = open_stream(images, backend="reference", **FULL)
    buffers = Batch(*(torch.empty_like(t, device="cuda") for t in next(expected.epoch(0))))
    places = [t.data_ptr() for t in buffers]
    for batch, other in zip(into_buffers(stream.epoch(0), buffers), expected.epoch(0), strict=True):
        assert [t.data_ptr() for t in batch] == places and _equal(batch, other)


def test_evaluation_and_samples(images):
    options = {"shortcut": FULL["shortcut"], "normalisation": FULL["normalisation"]}
    pairs = zip(
        evaluation_batches(images, 64, "cuda", **options),
        evaluation_batches(images, 64, **options),
        strict=True,
    )
    assert all(_equal(ours, expected) for ours, expected in pairs)
    assert torch.equal(take(images, 50, 1, "cuda", **options).cpu(), take(images, 50, 1, **options))


def test_clustered_noise_is_the_same_on_every_device():
    source = load_source("clustered-noise", shape=(16, 8, 8))
    ours, expected = (
        next(open_stream(source.train, device=d, **SETTINGS).epoch(0)) for d in ("cuda", "cpu")
    )
    # logarithm and cosine are not the same to the last bit everywhere
    assert torch.allclose(ours.images.cpu(), expected.images, atol=1e-5)
    assert torch.equal(ours.labels.cpu(), expected.labels)


@pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
def test_jpeg_decoded_on_the_gpu(data_folder):
    options = {"path": str(data_folder / "tiny-imagenet-10.tar.xz"), "size": 64, "cached": False}
    streams = [
        open_stream(
            load_source("imagefolder", decoder=decoder, **options).train,
            backend="dali",
            device=device,
            **SETTINGS,
        ).epoch(0)
        for decoder, device in (("dali-gpu", "cuda"), ("dali", "cpu"))
    ]
    ours, expected = next(streams[0]), next(streams[1])
    error = (ours.images.cpu() - expected.images).abs()
    assert error.mean() < 2 / 255 and torch.equal(ours.index.cpu(), expected.index)
