"""Streams: the same batches from every backend, batch size and resume point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fula_fast import stops
from fula_fast.errors import FulaError
from fula_fast.pipelines import (
    Augmentation,
    Batch,
    ImageSet,
    Normalisation,
    evaluation_batches,
    into_buffers,
    load_source,
    open_stream,
    take,
)

BACKENDS = ("reference", "resident", "dali")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (203, 9, 7, 3), dtype=np.uint8)
    return ImageSet(pixels, rng.integers(0, 5, 203), tuple("abcde"))


def _stream(images: ImageSet, backend: str, batch_size: int = 20, **options):
    settings = {"seed": 11, "augmentation": Augmentation(pad=3)} | options
    return open_stream(images, batch_size=batch_size, backend=backend, **settings)


def _by_sample(batches) -> dict[int, torch.Tensor]:
    return {int(i): image for b in batches for i, image in zip(b.index, b.images, strict=True)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalisation", [None, Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))])
def test_batches_equal_the_reference(images, backend, normalisation):
    ours = _stream(images, backend, normalisation=normalisation).epoch(4)
    reference = _stream(images, "reference", normalisation=normalisation).epoch(4)
    for batch, expected in zip(ours, reference, strict=True):
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.index, expected.index)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", [*BACKENDS, "evaluation"])
def test_an_interrupt_that_was_dropped_ends_them_at_the_next_batch(images, backend):
    evaluated = backend == "evaluation"
    batches = evaluation_batches(images, 20) if evaluated else _stream(images, backend).epoch(0)
    stop = KeyboardInterrupt()
    with stops.heard(), pytest.raises(KeyboardInterrupt) as raised:
        for taken, _ in enumerate(batches):
            stops.remember(stop)
            assert taken < 4  # DALI's are made ahead
    assert raised.value is stop


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_the_crop_flip_and_scale_of_its_images(images, backend):
    """Against torch.nn.functional.pad and slicing, image by image."""
    stream = _stream(images, backend)
    draw = stream.draw(2)
    batch = next(stream.epoch(2))
    for image, label, i in zip(batch.images, batch.labels, batch.index, strict=True):
        whole = torch.from_numpy(images.images[i]).permute(2, 0, 1)
        padded = torch.nn.functional.pad(whole, (3, 3, 3, 3))
        crop = padded[:, draw.dy[i] :, draw.dx[i] :][:, :9, :7].float() / 255
        assert torch.equal(image, crop.flip(-1) if draw.flip[i] else crop)
        assert label == images.labels[i]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_do_not_depend_on_batch_size_or_resume_point(images, backend):
    whole = _by_sample(_stream(images, backend, 1).epoch(3))
    assert sorted(whole) == list(range(203))
    for size, start in ((7, 0), (64, 0), (20, 4)):
        stream = _stream(images, backend, size)
        part = list(stream.epoch(3, start))
        assert len(part) == 203 // size - start
        assert all(torch.equal(image, whole[i]) for i, image in _by_sample(part).items())
    resumed = [b.index.tolist() for b in _stream(images, backend).epoch(3, 6)]
    assert resumed == [b.index.tolist() for b in _stream(images, backend).epoch(3)][6:]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [20, 16])
def test_files_of_many_types_stream_as_they_are_gathered(make_folder, size, channels):
    """Batches that hold what DALI does not take, and batches that do not."""
    folder = make_folder({"train/a": 30, "train/b": 30, "test/a": 1, "test/b": 1})
    for i in (3, 4, 17, 29):
        file = folder / f"train/a/{i:03}.png"
        Image.open(file).save(file.with_suffix((".gif", ".jpg", ".webp", ".tiff")[i % 4]))
        file.unlink()
    options = {"cached": False, "decoder": "dali", "size": size, "channels": channels}
    images = load_source("imagefolder", path=str(folder), **options).train
    for epoch in (0, 1):
        pairs = zip(
            _stream(images, "dali", 5).epoch(epoch),
            _stream(images, "reference", 5).epoch(epoch),
            strict=True,
        )
        for batch, expected in pairs:
            assert torch.equal(batch.images, expected.images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [20, 16])
def test_a_file_that_dali_rejects_streams_as_it_is_gathered(
    make_folder, without_checksum, caplog, size, channels
):
    folder = make_folder({"train/a": 30, "train/b": 30, "test/a": 1, "test/b": 1})
    for name in ("a/007.png", "b/020.png"):
        without_checksum(folder / "train" / name)
    options = {"cached": False, "decoder": "dali", "size": size, "channels": channels}
    for start in (0, 3):
        ours, other = (load_source("imagefolder", path=str(folder), **options) for _ in range(2))
        pairs = zip(
            _stream(ours.train, "dali", 5).epoch(1, start),
            _stream(other.train, "reference", 5).epoch(1, start),
            strict=True,
        )
        assert all(torch.equal(batch.images, expected.images) for batch, expected in pairs)
    said = {r.getMessage().split(" (")[0] for r in caplog.records}
    assert len(said) == 2 and all(text.startswith("DALI cannot decode '") for text in said)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_starts_within_its_steps(images, backend):
    stream = _stream(images, backend)
    assert list(stream.epoch(0, stream.steps)) == []
    for start in (-1, stream.steps + 1):
        with pytest.raises(FulaError, match=f"start step {start} must lie in 0 … 10"):
            list(stream.epoch(0, start))


@pytest.mark.parametrize("backend", BACKENDS)
def test_epochs_and_seeds_differ_and_repeat(images, backend):
    def first(seed, epoch):
        return next(_stream(images, backend, seed=seed).epoch(epoch)).index.tolist()

    assert first(1, 0) == first(1, 0)
    assert len({tuple(first(s, e)) for s in (1, 2) for e in (0, 1)}) == 4


def test_resident_steps_may_be_device_scalars(images):
    """The form a captured step uses: buffers refilled in place, the step number a tensor."""
    stream = _stream(images, "resident")
    for epoch in (0, 5):
        stream.load_epoch(epoch)
        for step, expected in enumerate(_stream(images, "reference").epoch(epoch)):
            assert torch.equal(stream.batch_at(torch.tensor(step)).images, expected.images)


def test_worker_counts_change_nothing(images, monkeypatch):
    expected = list(_stream(images, "reference").epoch(1))
    for count in (1, 4):
        monkeypatch.setattr("fula_fast.pipelines.decode.dali.cores", lambda count=count: count)
        for batch, other in zip(_stream(images, "dali").epoch(1), expected, strict=True):
            assert torch.equal(batch.images, other.images)


def test_an_abandoned_epoch_leaves_no_trace(images):
    for backend in BACKENDS:
        stream = _stream(images, backend)
        abandoned = stream.epoch(0)
        next(abandoned)
        abandoned.close()
        for batch, other in zip(
            stream.epoch(5), _stream(images, "reference").epoch(5), strict=True
        ):
            assert torch.equal(batch.images, other.images)


def test_static_buffers_are_filled_in_place(images):
    expected = list(_stream(images, "reference").epoch(0))
    buffers = Batch(*(torch.empty_like(t) for t in expected[0]))
    for batch, other in zip(into_buffers(_stream(images, "dali").epoch(0), buffers), expected,
                            strict=True):  # fmt: skip
        assert all(a is b for a, b in zip(batch, buffers, strict=True))
        assert torch.equal(batch.images, other.images) and torch.equal(batch.labels, other.labels)


def test_a_second_epoch_of_a_resident_stream_ends_the_first(images):
    stream = _stream(images, "resident")
    first = stream.epoch(0)
    next(first)
    next(stream.epoch(1))
    with pytest.raises(RuntimeError, match="another epoch"):
        next(first)


def test_dtype_is_made_last(images):
    batch = next(_stream(images, "resident", dtype=torch.bfloat16).epoch(0))
    exact = next(_stream(images, "resident").epoch(0))
    assert torch.equal(batch.images, exact.images.bfloat16())


def test_evaluation_is_in_order_and_whole(images):
    batches = list(evaluation_batches(images, 64))
    assert [len(b.index) for b in batches] == [64, 64, 64, 11]
    pixels = torch.cat([b.images for b in batches]).permute(0, 2, 3, 1)
    assert torch.equal(pixels, torch.from_numpy(images.images).float() / 255)
    assert torch.equal(torch.cat([b.index for b in batches]), torch.arange(203))


def test_take_gives_different_images_and_repeats(images):
    taken = take(images, 50, seed=3)
    assert torch.equal(taken, take(images, 50, seed=3))
    assert torch.equal(taken[:10], take(images, 10, seed=3))
    known = {(i.astype(np.float32) / np.float32(255)).tobytes() for i in images.images}
    rows = [t.permute(1, 2, 0).contiguous().numpy().tobytes() for t in taken]
    assert len(set(rows)) == 50 and set(rows) <= known
    assert not torch.equal(taken, take(images, 50, seed=4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: _stream(i, "residnet"), "unknown stream 'residnet'; did you mean 'resident'"),
        (lambda i: _stream(i, "resident", 204), "batch size 204 must lie in 1 … 203"),
        (lambda i: _stream(i, "resident", 0), "batch size 0 must lie in 1 … 203"),
        (lambda i: take(i, 300, 0), "300 samples asked from 203 images"),
        (lambda i: _stream(i, "resident", seed=-1).draw(0), "seed -1 must lie in"),
        (lambda i: Augmentation(pad=-1), "crop padding -1"),
        (lambda i: i.first_classes(6), "subset of 6 classes"),
    ],
)
def test_mistakes_are_named(images, call, message):
    with pytest.raises(FulaError, match=message):
        call(images)
