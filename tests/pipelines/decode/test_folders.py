"""What class folders hold beside images of a class is left out, counted and said."""

from __future__ import annotations

import logging
import shutil
import tarfile

import pytest

from fula_fast.pipelines import load_source

CLASSES = {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1}


def _with_rest(folder):
    picture = folder / "train/cat/000.png"
    (folder / "train/cat/more").mkdir()
    for place in ("train/cat/more/x.png", "train/dog/y.jfif", "train/dog/z.png.bak", "train/w.png"):
        shutil.copy(picture, folder / place)
    (folder / "test/cat/notes.txt").write_text("no image")
    (folder / "train/dog/l.png").symlink_to("000.png")
    return folder


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_what_is_left_out_is_counted(make_folder, tmp_path, caplog, form, cached):
    place = _with_rest(make_folder(CLASSES))
    if form == "archive":
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            tar.add(place, "data")
        place = tmp_path / "data.tar"
    with caplog.at_level(logging.WARNING):
        source = load_source("imagefolder", path=str(place), size=8, cached=cached)
    assert (len(source.train), len(source.test)) == (6, 2)  # the link is its image
    assert len(source.train.skipped) == 4 and len(source.test.skipped) == 1
    assert source.test.skipped[0].endswith("test/cat/notes.txt")
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "2 files in deeper folders are left out" in said  # train/w.png lies in no class
    assert said.count("2 files of other endings are left out") == 1
    assert "1 files of other endings are left out" in said
