"""Listing, verifying, preparing and showing sources."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from fula_fast.errors import FulaError
from fula_fast.pipelines import Augmentation, ImageSet, Shortcut, Source, load_source, source_names
from fula_fast.pipelines.tools import list_sources, prepare, show_grid, verify

SPLITS = {"train/cat": 3, "train/dog": 4, "test/cat": 2, "test/dog": 2}


def test_every_source_is_listed_with_its_options():
    infos = {i.name: i for i in list_sources()}
    assert set(infos) == set(source_names())
    assert all(i.summary for i in infos.values())
    assert infos["colour-mnist"].options["variant"] == "correlated"


def test_verify_counts_and_finds_repeats_and_broken_files(make_folder):
    folder = make_folder(SPLITS)
    (folder / "train" / "cat" / "000.png").write_bytes(
        (folder / "train" / "cat" / "001.png").read_bytes()
    )
    (folder / "test" / "dog" / "001.png").write_bytes(
        (folder / "train" / "dog" / "001.png").read_bytes()
    )
    (folder / "train" / "dog" / "003.png").write_bytes(b"broken")
    found = verify("imagefolder", path=str(folder))
    assert found.train.counts == {"cat": 3, "dog": 3} and found.test.images == 4
    assert found.train.balance == 1 and found.train.repeated == 1 and found.shared == 1
    assert [s.rsplit("/", 1)[1] for s in found.train.skipped] == ["003.png"]
    assert found.image_shape == (3, 20, 24) and len(found.content_hash) == 64


def test_verify_checks_listed_sums(make_folder, tmp_path):
    folder = make_folder(SPLITS)
    right = hashlib.sha256(b"data").hexdigest()
    (folder / "extra.bin").write_bytes(b"data")
    (folder / "SHA256SUMS").write_text(f"{right}  extra.bin\n{right}  elsewhere.bin\n")
    assert verify("imagefolder", path=str(folder)).checked_files == ("extra.bin",)
    (folder / "extra.bin").write_bytes(b"other")
    with pytest.raises(FulaError, match="extra.bin' has SHA-256 .* fetch it again"):
        verify("imagefolder", path=str(folder))


def test_verify_of_made_up_samples():
    found = verify("clustered-noise", shape=(3,), train=20, test=10)
    assert found.train.counts["0"] == 2 and found.train.repeated == 0


def test_verify_of_a_source_that_reads_files_or_does_not(make_folder):
    assert verify("stylized", base="digits").train.images == 1442
    folder = make_folder(SPLITS)
    (folder / "train" / "dog" / "003.png").write_bytes(b"broken")
    found = verify("stylized", path=str(folder))
    assert found.train.images == 6 and len(found.train.skipped) == 1
    with pytest.raises(FulaError, match="003.png' cannot be read"):
        verify("stylized", path=str(folder), on_error="raise")


def test_prepare_says_what_is_there(tmp_path):
    assert prepare("digits").startswith("digits: 1442 training and 355 test images")
    with pytest.raises(FulaError, match="give its folder as imagenet"):
        prepare("ls-imagenet-10", data_dir=tmp_path)


def test_prepare_downloads_only_what_is_missing(monkeypatch, tmp_path):
    asked = []

    class Fake:
        classes = ("x", "y")

        def __init__(self, root, download, train):
            asked.append(download)
            if not download:
                raise RuntimeError("Dataset not found. You can use download=True")
            self.data, self.targets = np.zeros((2, 28, 28), np.uint8), [0, 1]

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", Fake)
    assert "2 training" in prepare("fashion-mnist", data_dir=tmp_path)
    assert asked == [False, True, True]


def _flat_source() -> Source:
    """Two classes of one gray level each."""
    pixels = np.full((40, 32, 32, 3), 80, dtype=np.uint8)
    pixels[20:] = 160
    images = ImageSet(pixels, np.repeat([0, 1], 20), ("dark", "light"))
    return Source("flat", images, images)


def _cells(path, columns: int) -> np.ndarray:
    """The images' own pixels (2, columns, 64, 64, 3): zoomed twice, at the sheet's right edge."""
    sheet = np.asarray(Image.open(path))
    left = sheet.shape[1] - columns * 66
    rows = [sheet[28 + r * 66 :][:64] for r in range(2)]
    return np.stack([[row[:, left + c * 66 :][:, :64] for c in range(columns)] for row in rows])


def test_the_sheet_shows_classes_in_rows(tmp_path):
    out = show_grid(_flat_source(), tmp_path / "grid.png", columns=12)
    cells = _cells(out, 12)
    assert (cells[0] == 80).all() and (cells[1] == 160).all()
    label = np.asarray(Image.open(out))[28 : 28 + 64, :40]
    assert (label < 100).any()  # a name is written


def test_the_sheet_shows_crops_and_markers(tmp_path):
    augmentation, shortcut = Augmentation(pad=4), Shortcut("pixel", "class", size=8)
    options = {"augmentation": augmentation, "shortcut": shortcut}
    cells = _cells(show_grid(_flat_source(), tmp_path / "grid.png", **options), 12)
    assert (cells[0] == 0).any()  # the crop's zero padding
    marked = [{tuple(p) for p in row.reshape(-1, 3)} - {(80,) * 3, (160,) * 3} for row in cells]
    assert (
        marked[0] == {(0, 0, 0)}
        and marked[1] == {(0, 0, 0), (255, 255, 255)}
        or (marked[1] == {(0, 0, 0)} and marked[0] == {(0, 0, 0), (255, 255, 255)})
    )
    rolled = show_grid(_flat_source(), tmp_path / "rolled.png", split="test", shortcut=shortcut,
                       marker_set="rolled")  # fmt: skip
    plain = show_grid(_flat_source(), tmp_path / "plain.png", split="test", shortcut=shortcut)
    assert not np.array_equal(_cells(rolled, 12), _cells(plain, 12))


def test_gray_images_and_mistakes(tmp_path):
    source = load_source("digits", channels=1)
    assert show_grid(source, tmp_path / "new" / "grid.png", classes=3).is_file()
    with pytest.raises(FulaError, match="unknown split 'tset'; did you mean 'test'"):
        show_grid(source, tmp_path / "a.png", split="tset")
    with pytest.raises(FulaError, match="at least 1 of each"):
        show_grid(source, tmp_path / "a.png", columns=0)
    with pytest.raises(FulaError, match="activations, not images"):
        show_grid(load_source("clustered-noise", shape=(2,)), tmp_path / "a.png")
