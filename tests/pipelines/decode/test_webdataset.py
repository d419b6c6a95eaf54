"""WebDataset shards give the pixels and labels of class folders; what is wrong with one is named."""

from __future__ import annotations

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from fula_fast.errors import FulaError
from fula_fast.pipelines import Augmentation, load_source, open_stream
from fula_fast.pipelines.decode import webdataset

CLASSES = ("cat", "dog", "eel")


def jpeg(seed: int, side: int = 20) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def write(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(first: int, count: int, labelled: bool = True):
    """(name, content) of so many samples: an image, its label, and what nobody reads."""
    for n in range(first, first + count):
        yield f"{n:06}.jpg", jpeg(n)
        if labelled:
            yield f"{n:06}.cls", f"{n % 3}\n".encode()
        yield f"{n:06}.json", json.dumps({"label": 9}).encode()


@pytest.fixture
def folder(tmp_path):
    """Two shards to train (12 and 9 images) and one to test (6)."""
    root = tmp_path / "shards"
    write(root / "set-train-0000.tar", samples(0, 12))
    write(root / "set-train-0001.tar", samples(12, 9))
    write(root / "set-validation-0000.tar", samples(21, 6))
    return root


def load(folder, **options):
    return load_source("webdataset", path=str(folder), **{"size": 16} | options)


def class_folders(root):
    """The same images as class folders, whose order is by class and then by number."""
    for split, numbers in (("train", range(21)), ("val", range(21, 27))):
        for n in numbers:
            place = root / split / CLASSES[n % 3] / f"{n:06}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(jpeg(n))
    return root


@pytest.mark.parametrize("cached", [False, True])
def test_pixels_and_labels_are_those_of_class_folders(folder, tmp_path, cached):
    ours = load(folder, classes=CLASSES, cached=cached)
    usual = load_source(
        "imagefolder", path=str(class_folders(tmp_path / "usual")), size=16, cached=cached
    )
    assert ours.classes == usual.classes == CLASSES
    for one, other, numbers in (
        (ours.train, usual.train, range(21)), (ours.test, usual.test, range(21, 27)),
    ):  # fmt: skip
        by_class = sorted(numbers, key=lambda n: (n % 3, n))
        order = np.array(by_class) - numbers.start
        assert one.labels.tolist() == [n % 3 for n in numbers]
        everything = np.arange(len(one))
        assert np.array_equal(one.gather(everything)[order], other.gather(everything))
        assert np.array_equal(one.labels[order], other.labels)


@pytest.mark.parametrize("backend", ["reference", "dali"])
def test_streams_give_the_batches_of_images_in_memory(folder, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="pip install nvidia-dali")
    settings = {"batch_size": 4, "seed": 3, "augmentation": Augmentation()}
    decoder = "dali" if backend == "dali" else "pillow"
    lazy, whole = (
        open_stream(load(folder, decoder=decoder, cached=c).train, backend=b, **settings)
        for c, b in ((False, backend), (True, "reference"))
    )
    for one, other in zip(lazy.epoch(1), whole.epoch(1), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("count", [1, 4, 7, 20, 99])
def test_fewer_images_are_those_of_images_in_memory(folder, count):
    lazy, whole = (
        load(folder, decoder="pillow", cached=c).train.evenly(count) for c in (False, True)
    )
    everything = np.arange(len(whole))
    assert len(lazy) == len(whole) == min(count, 21)
    assert np.array_equal(lazy.labels, whole.labels)
    assert np.array_equal(lazy.gather(everything), whole.gather(everything))


def test_names_of_classes_are_their_numbers(folder):
    assert load(folder).classes == ("0", "1", "2")


def test_without_labels_images_are_unlabelled(tmp_path):
    write(tmp_path / "train/a.tar", samples(0, 5, labelled=False))
    write(tmp_path / "val/a.tar", samples(5, 3, labelled=False))
    found = load(tmp_path)
    assert not found.labelled and found.train.labels.tolist() == [0] * 5 and len(found.test) == 3


def test_headers_are_read_once(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first = load(folder)
    assert [r for r in caplog.records if "headers of 2 shards" in r.getMessage()]
    monkeypatch.setattr(webdataset, "_samples", None)
    assert np.array_equal(load(folder).train.labels, first.train.labels)


def test_a_shard_that_changed_is_read_again(folder):
    before = load(folder).train
    write(folder / "set-train-0001.tar", samples(30, 3))
    after = load(folder).train
    assert (len(before), len(after)) == (21, 15) and before.content_hash != after.content_hash


def test_labels_belong_to_the_content(folder, tmp_path):
    other = tmp_path / "other"
    for shard in folder.iterdir():
        with tarfile.open(shard) as tar:
            held = [(member.name, tar.extractfile(member).read()) for member in tar]
        write(
            other / shard.name,
            [(name, b"0" if name.endswith("3.cls") else content) for name, content in held],
        )
    same, changed = load(folder).train, load(other).train
    assert same.labels.tolist() != changed.labels.tolist()
    assert same.content_hash != changed.content_hash


def test_names_with_folders_and_dots_and_long_names(tmp_path):
    long = "n/" * 80 + "x" * 120
    files = [(f"{long}.jpg", jpeg(1)), (f"{long}.cls", b"0"), ("./b/2.JPG", jpeg(2)), ("./b/2.cls", b"1"),
             (".hidden.jpg", b"x"), ("__meta__.jpg", b"x"), ("b/2.seg.png", b"x")]  # fmt: skip
    write(tmp_path / "train.tar", files, "w")
    write(tmp_path / "test.tar", files[:2])
    found = load(tmp_path).train
    assert found.labels.tolist() == [0, 1]
    one = np.asarray(Image.open(io.BytesIO(jpeg(2))).convert("RGB"))
    assert (
        load(tmp_path, size=20, decoder="pillow").train.gather(np.array([1]))[0].tolist()
        == one.tolist()
    )


REFUSED = {
    "holds 'cat'; a label is a whole number": [("0.jpg", jpeg(0)), ("0.cls", b"cat")],
    "holds '-1'": [("0.jpg", jpeg(0)), ("0.cls", b"-1")],
    "a label is a whole number": [("0.jpg", jpeg(0)), ("0.cls", b"1" * 4000)],
    "has label 99999999, but": [("0.jpg", jpeg(0)), ("0.cls", b"99999999")],
    "has two images": [("0.jpg", jpeg(0)), ("0.png", b"x"), ("0.cls", b"0")],
    "1 of 14 samples have no label": [("0.jpg", jpeg(0)), ("0.cls", b"0"), ("1.jpg", jpeg(1))],
    "holds no image": [("0.txt", b"x")],
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_samples_are_named(folder, message):
    write(folder / "set-train-0001.tar", REFUSED[message])
    with pytest.raises(FulaError, match=message):
        load(folder)


def test_wrong_folders_and_patterns_are_named(folder):
    for path, options, message in (
        (folder / "none", {}, "is no folder"),
        (folder, {"train": "other-*.tar"}, r"has no shards 'other-\*\.tar'"),
        (folder, {"test": "*train*.tar"}, "found for both training and test"),
        (folder, {"classes": ["a", "b"]}, "has label 2, but options.classes names 2"),
        (folder, {"size": None}, "need a size"),
    ):
        with pytest.raises(FulaError, match=message):
            load(path, **options)


@pytest.mark.parametrize("damage", ["cut", "gzip", "noise"])
def test_broken_shards_are_named(folder, damage):
    path = folder / "set-train-0001.tar"
    content = path.read_bytes()
    if damage == "gzip":
        write(path, samples(0, 3), "w:gz")
    else:
        path.write_bytes(content[:700] if damage == "cut" else np.random.default_rng(0).bytes(4096))
    with pytest.raises(FulaError, match="set-train-0001.tar"):
        load(folder)


def test_a_shard_cut_after_its_index_names_the_image(folder):
    found = load(folder, decoder="pillow").train
    path = folder / "set-train-0001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FulaError, match=r"set-train-0001.tar/000020.jpg"):
        found.gather(np.array([20]))
