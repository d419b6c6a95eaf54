"""Named sources: small ones made here, the real archives, and what a user does wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from fula_fast.errors import FulaError
from fula_fast.pipelines import (
    Augmentation,
    FileSet,
    ImageSet,
    Source,
    check_classes,
    evaluation_batches,
    load_source,
    open_stream,
    source_names,
)
from fula_fast.pipelines.tools import verify

SPLITS = {"train/cat": 3, "train/dog": 4, "test/cat": 2, "test/dog": 2}


def test_digits_are_scikit_learns_split_by_class():
    from sklearn.datasets import load_digits

    source = load_source("digits")
    assert source.image_shape == (3, 8, 8) and source.num_classes == 10
    assert len(source.train) + len(source.test) == 1797
    counts = [np.bincount(s.labels, minlength=10) for s in (source.train, source.test)]
    assert (np.abs(counts[1] / (counts[0] + counts[1]) - 0.2) < 0.01).all()
    both = np.concatenate([source.train.images, source.test.images])
    assert (both[..., 0] == both[..., 2]).all() and both.min() == 0 and both.max() == 255
    raw = np.sort(load_digits().images.reshape(1797, -1).sum(1))
    assert np.allclose(np.sort(both[..., 0].reshape(1797, -1).sum(1) * 16 / 255), raw, atol=4)


def test_size_and_channels():
    source = load_source("digits", size=16, channels=1)
    assert source.image_shape == (1, 16, 16)
    whole = load_source("digits", channels=1)
    assert np.allclose(source.train.images.mean((1, 2)), whole.train.images.mean((1, 2)), atol=12)


def test_content_hash_follows_content():
    first = load_source("digits").train
    same = ImageSet(first.images.copy(), first.labels.copy(), first.classes)
    assert first.content_hash == same.content_hash
    changed = first.images.copy()
    changed[5, 3, 3, 0] ^= 1
    assert ImageSet(changed, first.labels, first.classes).content_hash != first.content_hash
    assert ImageSet(first.images, first.labels[::-1].copy(), first.classes).content_hash != (
        first.content_hash
    )


def test_imagefolder_reads_pixels_labels_and_order(make_folder):
    folder = make_folder(SPLITS)
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    source = load_source("imagefolder", path=str(folder), size=None)
    assert source.classes == ("cat", "dog") and source.image_shape == (3, 20, 24)
    assert source.train.labels.tolist() == [0] * 3 + [1] * 4
    files = sorted((folder / "train").glob("*/*.png"))
    for pixels, file in zip(source.train.images, files, strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(file)))


def test_val_stands_in_for_test_and_equal_names_are_different_images(make_folder):
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    source = load_source("imagefolder", path=str(folder))
    assert len(source.test) == 2
    assert not np.array_equal(source.train.images[0], source.train.images[2])  # both 000.png


def test_class_order_may_be_given(make_folder):
    folder = str(make_folder(SPLITS))
    plain, turned = (
        load_source("imagefolder", path=folder, classes=c) for c in (None, ["dog", "cat"])
    )
    assert turned.classes == ("dog", "cat")
    assert np.array_equal(turned.train.images[turned.train.labels == 0],
                          plain.train.images[plain.train.labels == 1])  # fmt: skip


def test_an_archive_loads_like_its_folder(make_folder, tmp_path):
    folder = make_folder(SPLITS)
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as tar:
        for split in ("train", "test"):
            tar.add(folder / split, split)
    ours = [load_source("imagefolder", path=str(p)) for p in (folder, tmp_path / "data.tar.xz")]
    assert ours[0].content_hash == ours[1].content_hash


def test_changed_content_is_decoded_again(make_folder):
    folder = make_folder(SPLITS)
    before = load_source("imagefolder", path=str(folder))
    file = folder / "train" / "cat" / "000.png"
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    after = load_source("imagefolder", path=str(folder))
    assert np.array_equal(after.train.images[0], 255 - before.train.images[0])


def test_the_cache_survives_a_moved_folder(make_folder, monkeypatch):
    """Decoding is keyed by content: another folder with the same files decodes nothing."""
    folder = make_folder(SPLITS)
    load_source("imagefolder", path=str(folder), size=8)
    shutil.copytree(folder, folder.with_name("copy"))

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("fula_fast.pipelines.decode.files._fill", refuse)
    load_source("imagefolder", path=str(folder.with_name("copy")), size=8)


def test_files_that_stay_files(make_folder):
    """The same images, batches and evaluation as the decoded set, from an index of names."""
    folder = str(make_folder({"train/a": 20, "train/b": 21, "test/a": 3, "test/b": 3}))
    options = {"path": folder, "size": 16, "decoder": "dali"}
    kept = load_source("imagefolder", **options)
    lazy = load_source("imagefolder", cached=False, **options)
    assert isinstance(lazy.train, FileSet) and lazy.image_shape == kept.image_shape
    assert np.array_equal(lazy.train.gather(np.arange(41)), kept.train.images)
    settings = {"batch_size": 6, "seed": 2, "augmentation": Augmentation(pad=2)}
    expected = list(open_stream(kept.train, backend="resident", **settings).epoch(1))
    for backend in ("dali", "reference"):
        batches = open_stream(lazy.train, backend=backend, **settings).epoch(1)
        for batch, other in zip(batches, expected, strict=True):
            assert all((a == b).all() for a, b in zip(batch, other, strict=True))
    for batch, other in zip(evaluation_batches(lazy.test, 4), evaluation_batches(kept.test, 4),
                            strict=True):  # fmt: skip
        assert (batch.images == other.images).all()
    assert len(lazy.train.first_classes(1)) == 20
    with pytest.raises(FulaError, match="resident stream needs decoded images"):
        open_stream(lazy.train, backend="resident", **settings)


def test_images_that_have_the_size_are_not_resized_and_others_are(make_folder):
    """Whatever came before: the decoder and the stream begin to resize when one image needs it."""
    folder = make_folder({"train/a": 12, "train/b": 4, "test/a": 2, "test/b": 2})
    for file in (folder / "train" / "a").iterdir():
        with Image.open(file) as image:
            image.resize((16, 16)).save(file)
    options = {"path": str(folder), "size": 16, "decoder": "dali"}
    mixed = load_source("imagefolder", **options)
    for pixels, file in zip(
        mixed.train.images, sorted((folder / "train" / "a").iterdir()), strict=False
    ):
        assert np.array_equal(pixels, np.asarray(Image.open(file)))
    lazy = load_source("imagefolder", cached=False, **options)
    assert np.array_equal(lazy.train.gather(np.arange(4)), mixed.train.images[:4])
    assert np.array_equal(lazy.train.gather(np.arange(16)), mixed.train.images)
    settings = {"batch_size": 4, "seed": 1, "augmentation": Augmentation(pad=2)}
    stream = open_stream(lazy.train, backend="dali", **settings)
    for epoch in (0, 1):
        expected = open_stream(mixed.train, backend="reference", **settings).epoch(epoch)
        for batch, other in zip(stream.epoch(epoch), expected, strict=True):
            assert (batch.images == other.images).all()


def test_gray_files_that_stay_files(make_folder):
    folder = str(make_folder(SPLITS))
    options = {"path": folder, "size": 16, "channels": 1, "decoder": "dali"}
    kept, lazy = (load_source("imagefolder", cached=c, **options) for c in (True, False))
    settings = {"batch_size": 3, "seed": 2, "augmentation": Augmentation(pad=2)}
    batches = [
        next(open_stream(s.train, backend=b, **settings).epoch(0))
        for s, b in ((kept, "resident"), (lazy, "dali"))
    ]
    assert batches[0].images.shape == (3, 1, 16, 16)
    assert (batches[0].images == batches[1].images).all()


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_are_named_or_skipped(make_folder, cached, caplog):
    folder = make_folder(SPLITS)
    (folder / "train" / "dog" / "001.png").write_bytes(b"no image")
    options = {"path": str(folder), "size": 8, "cached": cached}
    if cached:
        with pytest.raises(FulaError, match="001.png' cannot be read"):
            load_source("imagefolder", **options)
    source = load_source("imagefolder", on_error="skip", **options)
    assert source.train.labels.tolist() == [0] * 3 + [1] * 3
    assert [s.endswith("dog/001.png") for s in source.train.skipped] == [True]
    assert "1 unreadable images skipped" in caplog.text
    assert len(source.train.gather(np.arange(6))) == 6


def test_a_stream_over_files_names_the_broken_one(make_folder):
    folder = make_folder(SPLITS)
    (folder / "train" / "dog" / "001.png").write_bytes(b"no image")
    lazy = load_source("imagefolder", path=str(folder), size=8, cached=False, decoder="dali")
    settings = {"batch_size": 7, "seed": 0, "augmentation": Augmentation()}
    for backend in ("dali", "reference"):
        with pytest.raises(FulaError, match="dog/001.png' cannot be read"):
            next(open_stream(lazy.train, backend=backend, **settings).epoch(0))


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 6, 6), dtype=np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "a.npz", train_x=x, train_y=y, test_x=x[:3], test_y=y[:3])
    source = load_source("npz", path=str(tmp_path / "a.npz"), channels=1)
    assert np.array_equal(source.train.images[..., 0], x) and source.num_classes == 3
    np.savez(tmp_path / "b.npz", train_x=x, train_y=y, tset_x=x)
    with pytest.raises(FulaError, match="has no 'test_x'"):
        load_source("npz", path=str(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz", train_x=np.array([{}]), train_y=y, test_x=x, test_y=y)
    with pytest.raises(FulaError, match="cannot be read"):  # pickles are not loaded
        load_source("npz", path=str(tmp_path / "c.npz"))
    (tmp_path / "d.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(FulaError, match="cannot be read"):
        load_source("npz", path=str(tmp_path / "d.npz"))


def _remove(folder, part):
    for file in (folder / part).iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("break_it", "options", "message"),
    [
        (lambda f: _remove(f, "train/dog"), {}, "class folder '.*train/dog' has no .jpg or like"),
        (
            lambda f: (f / "test/dog").rename(f / "test/fox"),
            {},
            "label 1 is 'dog' for train/ but 'fox'",
        ),
        (lambda f: shutil.rmtree(f / "test/dog"), {}, "train/ has 2 classes, test/ 1.*dog"),
        (lambda f: shutil.rmtree(f / "test"), {}, "it needs train/<class>/"),
        (lambda f: None, {"classes": ["cat", "cow"]}, "classes = .* but 'dog'"),
        (lambda f: None, {"on_error": "ignore"}, "unknown on_error 'ignore'"),
        (lambda f: None, {"cached": False}, "need a size"),
        (lambda f: None, {"size": 0}, "size = 0 must be at least 1"),
        (lambda f: None, {"channels": 2}, "channels = 2 must be 1 or 3"),
        (lambda f: None, {"sise": 2}, "no option 'sise'"),
    ],
)
def test_folder_mistakes(make_folder, break_it, options, message):
    folder = make_folder(SPLITS)
    break_it(folder)
    with pytest.raises(FulaError, match=message) as error:
        load_source("imagefolder", path=str(folder), **options)
    assert "\n" not in str(error.value)


def test_images_of_several_sizes_need_a_size(make_folder):
    folder = make_folder(SPLITS)
    Image.new("RGB", (30, 30)).save(folder / "train" / "dog" / "001.png")
    with pytest.raises(FulaError, match="is 30x30, the first one 24x20; give one size"):
        load_source("imagefolder", path=str(folder))
    assert load_source("imagefolder", path=str(folder), size=12).image_shape == (3, 12, 12)


def test_another_class_order_than_the_donors_is_refused_with_the_difference():
    with pytest.raises(FulaError, match="label 1 is 'dog' for the donor but 'cat' for the data"):
        check_classes(("ape", "dog", "cat"), ("ape", "cat", "dog"), "the donor", "the data")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifra10", {}, "unknown source 'cifra10'; did you mean 'cifar10'"),
        ("cifar10", {"data_dir": "nowhere"}, "data folder 'nowhere' for 'cifar10' does not exist"),
        ("mnist", {"data_dir": "."}, "no 'mnist' in '.'.*download = true"),
        ("svhn", {"data_dir": "."}, "no 'svhn' in '.'.*download = true"),
        ("digits", {"colour": 1}, "source 'digits' has no option 'colour'; it takes none"),
        ("npz", {"path": "x.npz"}, "npz file 'x.npz' does not exist"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, name, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FulaError, match=message) as error:
        load_source(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "colour-mnist"]
)
@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_missing_data_that_could_be_downloaded_says_so(tmp_path, name, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FulaError, match="or download = true$") as error:
        load_source(name, data_dir=tmp_path / folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, bring",
    [
        ("mnist", "bring mnist.npz, or MNIST/raw"),
        ("fashion-mnist", "bring FashionMNIST/raw"),
        ("cifar10", "bring cifar-10-batches-py"),
        ("cifar100", "bring cifar-100-python"),
        ("svhn", "bring train_32x32.mat and test_32x32.mat"),
    ],
)
@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_download_that_fails_says_what_to_bring_and_leaves_nothing(
    tmp_path, monkeypatch, name, bring, folder
):
    def refuse(*_args, **_options):
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FulaError, match=f"'{name}' could not be downloaded .*known.*{bring}") as e:
        load_source(name, data_dir=tmp_path / folder, download=True)
    assert "\n" not in str(e.value) and "download = true" not in str(e.value)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_a_broken_archive_is_named(tmp_path):
    (tmp_path / "cifar10.tar.xz").write_bytes(b"\xfd7zXZ\x00 no archive")
    with pytest.raises(FulaError, match="cifar10.tar.xz' cannot be unpacked"):
        load_source("cifar10", data_dir=tmp_path)


def test_an_unwritable_cache_is_named(make_folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FULA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FulaError, match="set FULA_CACHE"):
        load_source("imagefolder", path=str(make_folder(SPLITS)))


@pytest.mark.parametrize("kind", ["FashionMNIST", "CIFAR100", "SVHN"])
def test_torchvision_sets_become_sources(kind, monkeypatch):
    """Torchvision's own arrays, in their own layouts, without a download."""
    from torchvision import datasets

    class Fake:
        classes = ("x", "y")

        def __init__(self, root, download, train=None, split=None):
            n = 4 if train or split == "train" else 2
            shape = {
                "FashionMNIST": (n, 28, 28),
                "CIFAR100": (n, 32, 32, 3),
                "SVHN": (n, 3, 32, 32),
            }
            self.data = np.arange(np.prod(shape[kind])).reshape(shape[kind]).astype(np.uint8)
            setattr(self, "labels" if kind == "SVHN" else "targets", [i % 2 for i in range(n)])

    monkeypatch.setattr(datasets, kind, Fake)
    names = {"FashionMNIST": "fashion-mnist", "CIFAR100": "cifar100", "SVHN": "svhn"}
    source = load_source(names[kind])
    side = 28 if kind == "FashionMNIST" else 32
    assert source.image_shape == (3, side, side) and len(source.train) == 4
    if kind == "SVHN":
        assert np.array_equal(source.test.images[1].transpose(2, 0, 1), Fake("", False).data[1])


@pytest.fixture
def torchvisions_cifar10(tmp_path, monkeypatch):
    """A data folder with CIFAR-10 as torchvision has it."""
    from torchvision import datasets

    class Fake:
        classes = tuple("abcdefghij")

        def __init__(self, root, download, train):
            rng = np.random.default_rng(train)
            self.data = rng.integers(0, 256, (20 if train else 10, 32, 32, 3), dtype=np.uint8)
            self.targets = [i % 10 for i in range(len(self.data))]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    (tmp_path / "cifar-10-batches-py").mkdir()
    return tmp_path


@pytest.mark.parametrize("option", [{"cached": False}, {"decoder": "pillow"}, {"on_error": "skip"}])
def test_options_about_files_are_refused_for_torchvisions_cifar10(
    torchvisions_cifar10, tmp_path, option
):
    assert len(load_source("cifar10", data_dir=torchvisions_cifar10).train) == 20
    (tmp_path / "empty").mkdir()
    for place in (
        {"data_dir": torchvisions_cifar10},
        {"data_dir": tmp_path / "empty", "download": True},
    ):
        with pytest.raises(FulaError, match="cifar10: .* not torchvision's files") as error:
            load_source("cifar10", **place, **option)
        assert "\n" not in str(error.value)


def test_torchvisions_cifar10_can_be_verified(torchvisions_cifar10):
    found = verify("cifar10", data_dir=str(torchvisions_cifar10))
    assert found.train.images == 20 and found.test.images == 10 and not found.train.skipped
    with pytest.raises(FulaError, match="not torchvision's files"):
        verify("cifar10", data_dir=str(torchvisions_cifar10), on_error="skip")


def test_importing_is_cheap():
    code = (
        "import sys, fula_fast.pipelines as p; dir(p)\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'nvidia.dali') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_name_is_listed():
    assert {"digits", "mnist", "cifar10", "imagefolder", "npz"} <= set(source_names())
    with pytest.raises(FulaError, match=r"give one size"):
        a, b = (ImageSet(np.zeros((1, s, s, 1), np.uint8), np.zeros(1, np.int64), ("x",))
                for s in (4, 5))  # fmt: skip
        Source("odd", a, b)
