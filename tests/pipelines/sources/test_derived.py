"""Stylised images, class pairs, and LS-ImageNet-10."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.pipelines import (
    Augmentation,
    FileSet,
    ImageSet,
    PairedStream,
    load_source,
    open_stream,
    paired_evaluation,
    prepare_ls_imagenet_10,
)
from fula_fast.pipelines.sources.imagenet import CLASSES
from fula_fast.pipelines.sources.stylized import swap_amplitude
from fula_fast.pipelines.streams.paired import draw_partners


def test_stylised_images_keep_phase_and_borrow_amplitude():
    rng = np.random.default_rng(0)
    # gentle images, so that nothing is clipped
    shapes, textures = (rng.integers(110, 140, (2, 16, 16, 1), dtype=np.uint8) for _ in range(2))
    out = swap_amplitude(shapes, textures).astype(float)
    spectra = [np.fft.fft2(x.astype(float), axes=(1, 2)) for x in (out, shapes, textures)]
    strong = np.abs(spectra[2]) > 40  # rounding to uint8 drowns weak ones
    assert np.abs(np.abs(spectra[0]) / np.abs(spectra[2]) - 1)[strong].max() < 0.2
    assert np.abs(np.angle(spectra[0] / spectra[1]))[strong].max() < 0.2


def test_stylised_source_keeps_labels_and_changes_every_image():
    plain, styled = load_source("digits", size=16), load_source("stylized", base="digits", size=16)
    assert np.array_equal(plain.train.labels, styled.train.labels)
    changed = (plain.train.images != styled.train.images).any((1, 2, 3))
    assert changed.mean() > 0.99
    assert styled.content_hash == load_source("stylized", base="digits", size=16).content_hash
    assert (
        styled.content_hash != load_source("stylized", base="digits", size=16, seed=1).content_hash
    )


def test_stylised_folder(make_folder):
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    assert len(load_source("stylized", path=str(folder)).train) == 4
    for options in ({}, {"path": "x", "base": "digits"}):
        with pytest.raises(FulaError, match="give one of the two"):
            load_source("stylized", **options)


def test_stylised_files_may_stay_files(make_folder):
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    options = {"path": str(folder), "size": 16, "decoder": "pillow"}
    files, images = (load_source("stylized", cached=c, **options).train for c in (False, True))
    assert isinstance(files, FileSet) and files.decoder.name.startswith("pillow")
    assert np.array_equal(files.gather(np.arange(4)), images.images)


def test_the_options_of_a_stylised_base(make_folder):
    folder = str(make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}))
    options = {"path": folder, "classes": ["b", "a"]}
    styled = load_source("stylized", base="imagefolder", base_options=options)
    assert styled.name == "stylized/imagefolder" and styled.classes == ("b", "a")
    for given, words in (
        ({"path": folder, "base_options": options}, "not of path"),
        ({"base": "digits", "base_options": {"size": 8}}, "base_options has size"),
        ({"base": "digits", "base_options": {"pth": 8}}, "'digits' has no option 'pth'"),
        ({"base": "digits", "decoder": "dali"}, "give those of base in base_options"),
        ({"base": "clustered-noise", "base_options": {"shape": [2]}}, "needs decoded images"),
    ):
        with pytest.raises(FulaError, match=words):
            load_source("stylized", **given)


@pytest.fixture(scope="module")
def two_sets():
    rng = np.random.default_rng(3)

    def make(count, side, names):
        pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        return ImageSet(pixels, np.arange(count) % 4, names)

    return make(90, 8, tuple("abcd")), make(50, 12, ("one", "two", "three", "four"))


@pytest.mark.parametrize("backend", ["reference", "resident", "dali"])
def test_pairs_share_the_class_and_are_keyed(two_sets, backend):
    settings = {"seed": 5, "augmentation": Augmentation(pad=1)}
    stream = PairedStream(*two_sets, batch_size=16, backend=backend, **settings)
    assert stream.steps == 5
    single = open_stream(two_sets[0], batch_size=16, **settings)
    pairs = list(stream.epoch(2))
    for (first, second), alone in zip(pairs, single.epoch(2), strict=True):
        assert torch.equal(first.images, alone.images)
        assert torch.equal(first.labels, second.labels)
        assert second.images.shape == (16, 3, 12, 12)
        assert np.array_equal(two_sets[1].labels[second.index], second.labels)
    resumed = list(stream.epoch(2, 3))
    assert torch.equal(resumed[0][1].images, pairs[3][1].images)


def test_partners_are_uniform_within_the_class_and_fresh(two_sets):
    draws = np.stack([draw_partners(*two_sets, 0, epoch) for epoch in range(600)])
    assert (two_sets[1].labels[draws] == two_sets[0].labels).all()
    for sample in (0, 41):
        members = np.flatnonzero(two_sets[1].labels == two_sets[0].labels[sample])
        counts = np.bincount(draws[:, sample], minlength=50)[members]
        assert stats.chisquare(counts).pvalue > 1e-4
    assert (draws[0] != draws[1]).mean() > 0.7


def test_paired_evaluation_is_fixed_and_in_order(two_sets):
    first, again = (list(paired_evaluation(*two_sets, 32)) for _ in range(2))
    assert torch.equal(torch.cat([a.index for a, _ in first]), torch.arange(90))
    for (a, b), (_, other) in zip(first, again, strict=True):
        assert torch.equal(a.labels, b.labels) and torch.equal(b.images, other.images)


def test_unpairable_sets(two_sets):
    first, second = two_sets
    fewer = ImageSet(second.images, second.labels % 3, ("x", "y", "z"))
    with pytest.raises(FulaError, match="4 and 3 classes"):
        next(paired_evaluation(first, fewer))
    with pytest.raises(FulaError, match="class 'four' of the second source has no image"):
        next(paired_evaluation(first, second.first_classes(3)))


def _imagenet(folder, classes) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in (*classes, "n09999999"):
            (folder / split / name).mkdir(parents=True)
            for i, size in enumerate([(50, 40), (33, 90)]):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{name}_{i}.JPEG", "JPEG")


def test_ls_imagenet_10_is_prepared_and_loaded(tmp_path):
    _imagenet(tmp_path / "imagenet", CLASSES)
    made = prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "ls-imagenet-10")
    assert (made.images, made.skipped) == (40, ())
    source = load_source("ls-imagenet-10", data_dir=tmp_path)
    assert source.classes == CLASSES and source.image_shape == (3, 32, 32)
    assert np.bincount(source.train.labels).tolist() == [2] * 10
    file = tmp_path / "imagenet" / "train" / CLASSES[3] / f"{CLASSES[3]}_0.JPEG"
    with Image.open(file) as image:  # 40x50: shorter side to 32, then the centre
        whole = image.resize((32, 40), Image.Resampling.BILINEAR).crop((0, 4, 32, 36))
    ours = source.train.images[source.train.labels == 3][0]
    assert np.abs(ours.astype(int) - np.asarray(whole)).max() <= 2
    with pytest.raises(FulaError, match="exists; remove it"):
        prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "ls-imagenet-10")


def test_incomplete_imagenet_is_refused_and_leaves_nothing(tmp_path):
    _imagenet(tmp_path / "imagenet", CLASSES[:-1])
    with pytest.raises(FulaError, match=f"lacks class {CLASSES[-1]}"):
        prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["imagenet"]


def test_ls_imagenet_10_may_stay_files(tmp_path):
    _imagenet(tmp_path / "imagenet", CLASSES)
    prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "ls-imagenet-10")
    options = {"data_dir": tmp_path, "size": 32, "decoder": "pillow"}
    files, images = (load_source("ls-imagenet-10", cached=c, **options).test for c in (False, True))
    assert isinstance(files, FileSet)
    assert np.array_equal(files.gather(np.arange(20)), images.images)


def test_two_images_of_one_name_are_refused(tmp_path):
    _imagenet(tmp_path / "imagenet", CLASSES)
    folder = tmp_path / "imagenet" / "val" / CLASSES[2]
    Image.new("RGB", (40, 40)).save(folder / f"{CLASSES[2]}_1.png")
    with pytest.raises(FulaError, match=r"_1.JPEG' and '.*_1.png' would both become .*; rename"):
        prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["imagenet"]


def test_unreadable_images_of_imagenet_are_named_or_left_out(tmp_path):
    _imagenet(tmp_path / "imagenet", CLASSES)
    broken = tmp_path / "imagenet" / "train" / CLASSES[4] / f"{CLASSES[4]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(FulaError, match=f"image '{broken}' cannot be read .* on_error = 'skip'"):
        prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "out")
    made = prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "out", on_error="skip")
    assert (made.images, made.skipped) == (39, (str(broken),))
    assert len(list((tmp_path / "out").rglob("*.png"))) == 39
    with pytest.raises(FulaError, match="unknown on_error 'skp'; did you mean 'skip'"):
        prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "more", on_error="skp")


def test_a_class_of_imagenet_without_a_readable_image_is_refused(tmp_path):
    _imagenet(tmp_path / "imagenet", CLASSES)
    for file in (tmp_path / "imagenet" / "val" / CLASSES[4]).iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(FulaError, match=f"class '{CLASSES[4]}' .* has no readable image"):
        prepare_ls_imagenet_10(tmp_path / "imagenet", tmp_path / "out", on_error="skip")
    assert [p.name for p in tmp_path.iterdir()] == ["imagenet"]
