"""A user's own arrays: every form that is accepted gives the same images; every other is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fula_fast.errors import FulaError
from fula_fast.pipelines import load_source
from fula_fast.pipelines.sources.arrays import FORMS, image_array, label_array

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 9, 7, 3), dtype=np.uint8)
GRAY = COLOUR[..., :1]
LABELS = np.arange(12) % 4


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float32) / 255,
        lambda x: (x.astype(np.float64) / 255).transpose(0, 3, 1, 2),
        lambda x: (x.astype(np.float16) / np.float16(255)).astype(np.float32),
        lambda x: x.tolist(),
    ],
    ids=["as-is", "nchw", "int64", "float32", "float64-nchw", "float16", "lists"],
)
@pytest.mark.parametrize("images", [COLOUR, GRAY], ids=["colour", "gray"])
def test_every_accepted_form_is_the_same_images(images, form):
    found = image_array(form(images), "x")
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found, images)


def test_images_without_a_channel_axis():
    assert np.array_equal(image_array(GRAY[..., 0], "x"), GRAY)


@pytest.mark.parametrize(
    "images, words",
    [
        (COLOUR.astype(np.float32), "float32 from 0 to 255; give uint8, or floats in"),
        (COLOUR / 127.5 - 1, "from -1 to 1"),
        (COLOUR / np.nan, "from nan to nan"),
        (COLOUR.astype(np.int16) - 1, "int16 from -1 to 254; give uint8, or whole numbers"),
        (COLOUR.astype(np.uint16) * 257, "uint16 from 0 to 65535"),
        (RNG.integers(0, 256, (5, 8, 8, 4), dtype=np.uint8), r"shape \(5, 8, 8, 4\); images are"),
        (COLOUR.reshape(12, -1), r"shape \(12, 189\)"),
        (COLOUR[None], r"shape \(1, 12, 9, 7, 3\)"),
        (COLOUR[:0], r"shape \(0, 9, 7, 3\)"),
        (COLOUR > 100, "bool"),
        (np.array(["a.png", "b.png"]), "<U5"),
        (COLOUR.astype(np.complex64), "complex64"),
    ],
)
def test_other_images_are_refused_by_name(images, words):
    with pytest.raises(FulaError, match=f"'train_x' of 'f' is .*{words}"):
        image_array(images, "'train_x' of 'f'")


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y,
        lambda y: y[:, None],
        lambda y: y.astype(np.uint8),
        lambda y: np.eye(4, dtype=np.float32)[y],
        lambda y: np.eye(4, dtype=bool)[y],
        lambda y: y.tolist(),
    ],
)
def test_every_accepted_form_of_labels(form):
    found = label_array(form(LABELS), 12, "y")
    assert found.dtype == np.int64 and np.array_equal(found, LABELS)


@pytest.mark.parametrize(
    "labels, words",
    [
        (LABELS.astype(float), "labels are float64; give whole numbers"),
        (LABELS - 1, "has the label -1; number the classes from 0"),
        (LABELS[:5], r"has shape \(5,\), but there are 12 images"),
        (np.ones((12, 4)), r"shape \(12, 4\) and is not one-hot"),
        (np.eye(4)[LABELS] * 0.9, "not one-hot"),
        (np.array(["cat"] * 12), "labels are <U3"),
    ],
)
def test_other_labels_are_refused_by_name(labels, words):
    with pytest.raises(FulaError, match=words):
        label_array(labels, 12, "y")


def _file(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return str(folder / "a.npz")


@pytest.mark.parametrize("form", FORMS)
def test_the_keys_of_others(tmp_path, form, caplog):
    values = (COLOUR, LABELS[:, None], COLOUR[:4], LABELS[:4, None])
    arrays = dict(zip(FORMS[form], values, strict=True))
    more = {"val_images": COLOUR, "val_labels": LABELS}
    with caplog.at_level(logging.WARNING):
        source = load_source("npz", path=_file(tmp_path, **arrays, **more))
    assert np.array_equal(source.train.images, COLOUR) and source.classes == tuple("0123")
    assert np.array_equal(source.test.labels, LABELS[:4])
    assert "val_images, val_labels is left out" in caplog.text


def test_channels_first_in_a_file_gives_the_same_source(tmp_path):
    usual = {"train_x": COLOUR, "train_y": LABELS, "test_x": COLOUR, "test_y": LABELS}
    expected = load_source("npz", path=_file(tmp_path, **usual)).content_hash
    for images in (COLOUR.transpose(0, 3, 1, 2), COLOUR / 255):
        found = load_source("npz", path=_file(tmp_path, **usual | {"train_x": images}))
        assert found.image_shape == (3, 9, 7) and found.content_hash == expected


@pytest.mark.parametrize(
    "change, words",
    [
        ({"train_y": LABELS * 2}, "label 1 never occurs in 'train_y' of .*a.npz.* run to 6"),
        ({"train_y": LABELS + 1, "test_y": LABELS + 1}, "label 0 never occurs in 'train_y'"),
        ({"train_y": np.arange(12) * 100}, "run to 1100, more classes than its 12 images"),
        ({"classes": np.array(["a", "b"])}, "'classes' of .* has 2 names, but labels run to 3"),
        ({"test_x": COLOUR.astype(np.float32)}, "'test_x' of .*a.npz' is float32 from 0 to 255"),
        ({"test_y": LABELS[:3]}, r"'test_y' of .* has shape \(3,\), but there are 12 images"),
    ],
)
def test_what_is_wrong_in_a_file_names_the_key(tmp_path, change, words):
    usual = {"train_x": COLOUR, "train_y": LABELS, "test_x": COLOUR, "test_y": LABELS}
    with pytest.raises(FulaError, match=words):
        load_source("npz", path=_file(tmp_path, **usual | change))
