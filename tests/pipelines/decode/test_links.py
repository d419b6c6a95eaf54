"""Links, pipes and names of other encodings in data: hashing and listing neither fail nor hang."""

from __future__ import annotations

import logging
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from fula_fast.errors import FulaError
from fula_fast.pipelines import load_source
from fula_fast.pipelines.decode.cache import content_digest


@pytest.fixture
def folder(tmp_path):
    """Two classes of three 4x4 images for training, one for the test."""
    rng = np.random.default_rng(0)
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "data" / place).mkdir(parents=True)
        for number in range(3 if place.startswith("train") else 1):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / place / f"{number}.png")
    return tmp_path / "data"


def packed(folder):
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, ".")
    return folder.with_suffix(".tar")


def load(path, **options):
    return load_source("imagefolder", path=str(path), size=4, channels=3, **options)


def link(name, target):
    return lambda folder: (folder / name).symlink_to(target)


ODD = {
    "to nothing": (link("train/cat/x.png", "nowhere.png"), "train/cat/x.png"),
    "to itself": (link("train/cat/x.png", "x.png"), "train/cat/x.png"),
    "to its folder": (link("train/cat/me", "."), "train/cat/me"),
    "to its split": (link("train/cat/up", ".."), "train/cat/up"),
    "as a class": (link("train/cow", "../train"), "train/cow"),
    "out of the data": (link("train/up", "../.."), "train/up"),
    "to the root": (link("train/cat/all", os.path.abspath(os.sep)), "train/cat/all"),
    "pipe": (lambda folder: os.mkfifo(folder / "train/cat/x.png"), "train/cat/x.png"),
}


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("options", [{}, {"on_error": "skip"}, {"cached": False}], ids=str)
@pytest.mark.parametrize(("make", "name"), ODD.values(), ids=ODD)
def test_what_is_no_file_is_left_out_and_counted(folder, caplog, make, name, options, form):
    make(folder)
    path = folder if form == "folder" else packed(folder)
    with caplog.at_level(logging.WARNING):
        source = load(path, **options)
    assert source.classes == ("cat", "dog") and (len(source.train), len(source.test)) == (6, 2)
    assert source.train.skipped == (f"{path}/{name}",)
    assert "1 files that are links to nothing or in a circle, pipes or devices are" in caplog.text


def test_two_folders_that_link_to_each_other(folder, caplog):
    (folder / "train/cat/d").symlink_to("../dog")
    (folder / "train/dog/c").symlink_to("../cat")
    source = load(folder)
    assert len(source.train) == 6 and "6 files in deeper folders are left out" in caplog.text


def test_links_that_lead_somewhere_are_what_they_lead_to(folder, tmp_path):
    plain = load(folder).train
    (folder / "train/dog").rename(tmp_path / "elsewhere")
    (folder / "train/dog").symlink_to(tmp_path / "elsewhere")
    (folder / "train/cat/0.png").rename(tmp_path / "0.png")
    (folder / "train/cat/0.png").symlink_to(tmp_path / "0.png")
    found = load(folder).train
    assert np.array_equal(found.images, plain.images) and not found.skipped


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("cached", [True, False])
def test_names_of_another_encoding(folder, form, cached):
    """File and class names that are Latin-1 bytes; the images count as any others."""
    root, latin = os.fsencode(folder), b"caf\xe9"
    shutil.copy(root + b"/train/cat/0.png", root + b"/train/cat/" + latin + b".png")
    for split in (b"/train/", b"/test/"):
        shutil.copytree(root + split + b"dog", root + split + latin)
    source = load(folder if form == "folder" else packed(folder), cached=cached)
    assert source.classes == (os.fsdecode(latin), "cat", "dog")
    assert np.bincount(source.train.labels).tolist() == [3, 4, 3]
    images = source.train.gather(np.arange(10))
    assert np.array_equal(images[:3], images[7:])


def test_a_broken_image_of_such_a_name_is_as_any_other(folder, caplog):
    with open(os.fsencode(folder) + b"/train/cat/caf\xe9.png", "wb") as file:
        file.write(b"broken")
    with pytest.raises(FulaError, match="set on_error = 'skip'"):
        load(folder)
    assert len(load(folder, on_error="skip").train.skipped) == 1
    told = [record.getMessage() for record in caplog.records]
    assert told and all("caf\\udce9.png" in line and line.encode() for line in told)


def test_a_digest_does_not_fail_on_what_cannot_be_read(tmp_path):
    """It differs from that of the same files with the content there, and is not remembered."""
    file = tmp_path / "a.png"
    absent = content_digest([file], tmp_path)
    file.write_bytes(b"1")
    os.utime(file, (0, 0))
    assert content_digest([file], tmp_path) != absent
    file.unlink()
    assert content_digest([file], tmp_path) == absent
