"""Data of the caller's own, in every form: the rows are those of the same data as a source."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import fula_fast
from fula_fast import FulaError
from fula_fast.models import build, save_checkpoint
from fula_fast.pipelines import ImageSet, load_source
from fula_fast.pipelines.sources import given
from fula_fast.runs.given_data import ImageForm, source_of
from fula_fast.store import Store

QUICK = {"epochs": 1, "dm_samples": 60, "crop_padding": 1, "flip": True, "batch_size": 256}
FORM = ImageForm(3, 8)


def donor(seed, **options):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4, **options).eval()


@pytest.fixture(scope="module")
def donors():
    return donor(0), donor(1)


@pytest.fixture(scope="module")
def digits():
    return load_source("digits", size=8, channels=3)


class Pairs(Dataset):
    """(image, label) by `image` of an index; class names as torchvision's data sets have them."""

    classes = [f"digit {n}" for n in range(10)]

    def __init__(self, images: ImageSet, image=None) -> None:
        self.set = images
        self.image = image or (lambda pixels: pixels)

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, i):
        return self.image(self.set.images[i]), int(self.set.labels[i])


class Endless(IterableDataset):
    """As `Pairs`, without a length."""

    def __init__(self, images: ImageSet) -> None:
        self.pairs = Pairs(images)

    def __iter__(self):
        return (self.pairs[i] for i in range(len(self.pairs)))


def as_tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def as_picture(pixels):
    return Image.fromarray(pixels)


FORMS = {
    "NHWC uint8": lambda s: (s.images, s.labels),
    "NCHW float": lambda s: (s.images.transpose(0, 3, 1, 2) / np.float32(255), list(s.labels)),
    "gray": lambda s: (s.images[..., 0], torch.from_numpy(s.labels)),
    "tensors": lambda s: (torch.from_numpy(s.images).requires_grad_(False), s.labels[:, None]),
    "bf16-free half": lambda s: (torch.from_numpy(s.images / 255).double(), np.eye(10)[s.labels]),
    "Dataset": Pairs,
    "Dataset of tensors": lambda s: Pairs(s, as_tensor),
    "Dataset of Pillow images": lambda s: Pairs(s, as_picture),
    "Subset": lambda s: Subset(Pairs(s), range(len(s))),
    "TensorDataset": lambda s: TensorDataset(torch.from_numpy(s.images), torch.from_numpy(s.labels)),
    "DataLoader": lambda s: DataLoader(Pairs(s, as_tensor), batch_size=100),
    "DataLoader of single samples": lambda s: DataLoader(Pairs(s, as_tensor), batch_size=None),
    "DataLoader by columns": lambda s: DataLoader(
        [{"img": x, "label": int(y)} for x, y in zip(s.images, s.labels, strict=True)],
        batch_size=64,
    ),
    "IterableDataset": Endless,
    "DataLoader of an IterableDataset": lambda s: DataLoader(Endless(s), batch_size=33),
    "generator": lambda s: iter(Pairs(s)[i] for i in range(len(s))),
    "columns": lambda s: [{"image": x, "label": y} for x, y in zip(s.images, s.labels, strict=True)],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_and_labels(digits, form):
    found = source_of(tuple(map(FORMS[form], (digits.train, digits.test))), FORM).source
    for mine, theirs in ((found.train, digits.train), (found.test, digits.test)):
        assert np.array_equal(mine.images, theirs.images)
        assert np.array_equal(mine.labels, theirs.labels)
    named = any(word in form for word in ("Dataset", "DataLoader", "Subset"))
    unnamed = form in ("TensorDataset", "DataLoader by columns") or "Iterable" in form
    assert found.classes == tuple(Pairs.classes if named and not unnamed else map(str, range(10)))


def test_a_stitch_on_a_data_set_is_that_on_the_source(donors, digits):
    data = {"train": Pairs(digits.train, as_tensor), "test": DataLoader(Pairs(digits.test), 64)}
    ours, theirs = (
        fula_fast.stitch(*donors, 3, 5, d, "tlm", normalisation=None, quiet=True, **QUICK)
        for d in (data, digits)
    )
    assert torch.equal(ours.stitch.weight, theirs.stitch.weight)
    assert {**ours.metrics, "seconds": 0} == {**theirs.metrics, "seconds": 0}


def spec(**changes):
    return {
        "donors": {"a": {}, "b": {}},
        "grid": {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["dm", "fula", "tlm"]},
        "protocol": QUICK,
        "engine": {"device": "cpu"},
        **changes,
    }


def plain_rows(results):
    left_out = ("cell", "train_seconds")
    return [{k: v for k, v in row.items() if k not in left_out} for row in results.rows]


@pytest.fixture(scope="module")
def whole(digits):
    """The digits as they were published: one set, in order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target


def test_a_sweep_on_one_set_is_that_on_the_source(donors, digits, whole, tmp_path, without_plots):
    """The digits' own split is every fifth image of a class; resuming needs the same data."""
    models = dict(zip("ab", donors, strict=True))
    options = {"quiet": True, "models": models}
    data = list(zip(*whole, strict=True))
    theirs = fula_fast.sweep(spec(data={"source": "digits"}), tmp_path / "theirs", **options)
    ours = fula_fast.sweep(spec(), tmp_path / "ours", data=data, **options)
    assert plain_rows(ours) == plain_rows(theirs) and len(ours) == 3 and not ours.failed
    fitted = source_of(data, FORM).source
    assert ours.spec["data"]["options"] == {"content": fitted.content_hash}
    again = fula_fast.sweep(spec(), tmp_path / "ours", data=whole, resume=True, **options)
    assert again.rows == ours.rows
    changed = whole[0].copy()
    changed[5, 0, 0] ^= 1
    with pytest.raises(FulaError, match=r"another spec \(data\.options\.content"):
        fula_fast.sweep(spec(), tmp_path / "ours", data=(changed, whole[1]), resume=True, **options)
    assert fula_fast.load(tmp_path / "ours").rows == ours.rows
    with pytest.raises(FulaError, match=r"given from Python and are not at hand.*data=\.\.\."):
        fula_fast.sweep(ours.spec, tmp_path / "x", quiet=True)
    assert not given._sources


def test_data_without_labels(donors, digits, tmp_path, without_plots):
    """The same numbers as with labels, and none that would need them."""
    models = dict(zip("ab", donors, strict=True))
    grid = {**spec()["grid"], "methods": ["dm", "hint", "fula", "slm"]}
    bare = (digits.train.images, digits.test.images)
    labelled = tuple((s.images, s.labels) for s in (digits.train, digits.test))
    tables = [
        fula_fast.sweep(spec(grid=grid), tmp_path / n, data=d, models=models, quiet=True)
        for n, d in (("bare", bare), ("labelled", labelled))
    ]
    unknown = {"accuracy", "agreement_right_wrong", "kappa", "front_accuracy", "end_accuracy"}
    for ours, theirs in zip(*map(plain_rows, tables), strict=True):
        assert ours["status"] == "ok"
        assert {k for k in ours if ours[k] != theirs[k]} == unknown
        assert all(ours[name] is None for name in unknown)
    found = fula_fast.stitch(*donors, 3, 5, bare, "fula", normalisation=None, quiet=True, **QUICK)
    (row,) = tables[0].select(method="fula")
    assert found.accuracy is None and found.kappa is None and found.end_accuracy is None
    assert found.agreement_soft == pytest.approx(row["agreement_soft"], abs=1e-3)
    assert "None" not in repr(found) and "<table>" in found._repr_html_()


NEEDS = [
    ({"methods": ["hint", "tlm"]}, {}, "[grid] method 'tlm' needs labels, which the data do not"),
    ({"methods": [{"name": "half", "fula": 1, "tlm": 1}]}, {}, "[grid] method 'tlm' needs labels"),
    ({"methods": "fula", "alpha": 0.5}, {}, "[grid] alpha = 0.5 needs labels"),
    ({"methods": "fula", "subset": 3}, {}, "[grid] subset = 3 needs labels"),
    ({"methods": "fula", "shortcut": "pattern"}, {}, "shortcut 'pixel+random' needs labels"),
    ({"methods": "fula"}, {"evaluation": {"robust": "pgd-2"}}, "robust = 'pgd-2' needs labels"),
    ({"methods": "fula"}, {"donors": {"a": {"min_accuracy": 0.1}, "b": {}}},
     "[donors.a] min_accuracy needs labels"),
    ({"methods": "fula"}, {"similarity": {"measures": ["linear_cka", "kappa"]}},
     "[similarity] measure 'kappa' needs labels"),
    ({"methods": "fula", "front": "c"}, {"donors": {"b": {}, "c": {"model": "resnet18"}}},
     "[donors.c], which is trained or built for the classes of [data], needs labels"),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "tables", "message"), NEEDS, ids=range(len(NEEDS)))
def test_what_needs_labels_is_refused_by_name(donors, digits, tmp_path, grid, tables, message):
    asked = spec(**{"grid": {**spec()["grid"], **grid}, **tables})
    with pytest.raises(FulaError) as error:
        fula_fast.sweep(
            asked, tmp_path / "x", data=(digits.train.images, digits.test.images), quiet=True,
            models=dict(zip("ab", donors, strict=True)),
        )  # fmt: skip
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "tlm"}, "method 'tlm' needs labels"),
        ({"alpha": 0.5}, "alpha = 0.5 needs labels"),
        ({"shortcut": "both"}, "shortcut 'pixel+class' needs labels"),
        ({"subset": 2}, "subset = 2 needs labels"),
    ],
)
def test_a_stitch_that_needs_labels(donors, digits, change, message):
    bare = (digits.train.images, digits.test.images)
    with pytest.raises(FulaError, match=re.escape(message)):
        fula_fast.stitch(*donors, 3, 5, bare, normalisation=None, quiet=True, **QUICK, **change)


def test_one_set_is_split_and_said(donors, digits, whole, capsys):
    found = source_of(whole, FORM)
    assert found.source.test.content_hash == digits.test.content_hash
    assert found.source.train.content_hash == digits.train.content_hash
    assert found.notes == (
        "one set of data: every fifth image of a class is a test image (355 of 1797), the others "
        "train; give (train, test) for another choice",
    )
    bare = source_of(whole[0], FORM)
    assert np.array_equal(bare.source.test.images[..., 0], whole[0][4::5])
    assert "every fifth image is a test image (359 of 1797)" in bare.notes[0]
    fula_fast.stitch(*donors, 3, 3, whole, "dm", normalisation=None, **{**QUICK, "epochs": 0})
    assert "every fifth image of a class is a test image" in "".join(capsys.readouterr())


def test_pillow_images_are_resized_as_files_are(tmp_path):
    """Of several sizes and modes; against the same pictures as an image folder."""
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        for shape in [(9, 14, 3), (20, 11, 3), (13, 13), (16, 10, 4)]
    ]
    for split in ("train", "test"):
        for i, picture in enumerate(pictures):
            folder = tmp_path / split / f"c{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    theirs = load_source("imagefolder", path=str(tmp_path), size=8, decoder="pillow")
    order = [0, 2, 1, 3]
    mine = source_of([(pictures[i], i % 2) for i in order] * 5, FORM).source
    for number in range(4):
        assert np.array_equal(mine.train.images[number], theirs.train.images[number])
    with pytest.raises(FulaError, match=r"image 1 is 20x11x3, those before are 9x14x3.*size in"):
        source_of([(picture, 0) for picture in pictures] * 2, ImageForm(3))


class Flips(Pairs):
    """A transform that draws at random."""

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return (image[:, ::-1].copy() if torch.rand(()) < 0.5 else image), label


class Broken(Pairs):
    def __getitem__(self, i):
        if i == 40:
            raise KeyError("no file 40")
        return super().__getitem__(i)


def small(s):
    return ImageSet(s.images[:60], s.labels[:60], s.classes)


WRONG = {
    "shuffles": (lambda s: DataLoader(Pairs(s), shuffle=True), r"shuffles \(RandomSampler\).*shuff"),
    "draws": (Flips, r"the given data: item \d+ differs when it is read again.*data_seed"),
    "draws in a loader": (lambda s: DataLoader(Flips(s)), "differs when it is read again"),
    "breaks": (Broken, r"item 40 of the given data cannot be read \(KeyError: 'no file 40'\)"),
    "normalised": (lambda s: Pairs(s, lambda x: as_tensor(x) * 4 - 2),
                   r"the part of the given data from image 0 on is float32 from -2 to .*\[0, 1\]"),
    "three parts": (lambda s: TensorDataset(*[torch.from_numpy(s.images)] * 3),
                    "items of 3 parts; give"),
    "texts": (lambda s: ["a", "b", "c"], "gives a str where an image belongs"),
    "two channels": (lambda s: Pairs(s, lambda x: x[..., :2]), r"shape \(1, 8, 8, 2\); images are"),
    "sizes": (lambda s: Pairs(s, lambda x: x[: 7 + int(x[0, 5, 0] > 0)]), r"image \d+ is 8x8x3, those bef|image \d+ is 7x8x3, those"),
    "label texts": (lambda s: [(x, "cat") for x in s.images], "labels are <U3; give whole numbers"),
    "labels of floats": (lambda s: [(x, 0.5) for x in s.images], "labels are float64"),
    "some labels": (lambda s: [(x, None if i == 30 else 0) for i, x in enumerate(s.images)],
                    "gives labels to some images only"),
    "negative": (lambda s: [(x, -1) for x in s.images], "the given data has the label -1; number"),
    "too few labels": (lambda s: (s.images, s.labels[:50]), r"has shape \(50,\), but there are 60"),
    "too many labels": (lambda s: (s.images, [*s.labels, 0]), r"has shape \(61,\), but there are 60"),
    "column": (lambda s: [{"picture": x} for x in s.images], "has the columns picture; the images'"),
    "nothing": (lambda s: DataLoader([]), "the given data has no images"),
    "three": (lambda s: (s, s, s), "data is a tuple of 3; give a Source"),
    "splits": (lambda s: {"tran": s, "test": s}, "splits tran, test, but none is called 'train'"),
    "one side": (lambda s: (Pairs(s), s.images), "the test data have no labels, the others do"),
    "few": (lambda s: (s.images[:4], s.labels[:4]), "are 4 images, too few to take every fifth"),
    "names": (lambda s: Named(s), "the data name 2 classes, but labels run to 9"),
}  # fmt: skip


class Named(Pairs):
    classes = ["even", "odd"]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_are_one_line(digits, case):
    make, message = WRONG[case]
    with pytest.raises(FulaError, match=message) as error:
        source_of(make(small(digits.train)), FORM)
    assert "\n" not in str(error.value)


def test_memory_is_predicted_and_bounded(digits, monkeypatch):
    monkeypatch.setattr(given, "available_memory", lambda: 30_000)
    read = []

    class Counted(Pairs):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    with pytest.raises(FulaError, match=r"the given data: 1442 images of 8x8x3 need 0\.0 GiB"):
        source_of(Counted(digits.train), FORM)
    assert max(read) < 20  # refused before the data are read
    with pytest.raises(FulaError, match="more than the .* GiB that data in memory may take"):
        source_of(Endless(digits.train), FORM)


def test_what_is_left_out_of_a_loader_is_said(digits):
    loader = DataLoader(Pairs(digits.test), batch_size=100, drop_last=True)
    found = source_of((Pairs(digits.train), loader), FORM)
    assert len(found.source.test) == 300
    assert found.notes == ("the test data: drop_last = True leaves its last 55 images out",)


def test_a_spec_with_its_own_source(donors, digits, tmp_path):
    options = {"data": digits, "models": dict(zip("ab", donors, strict=True)), "quiet": True}
    with pytest.raises(FulaError, match=r"\[data\] sets source, but data gives the images"):
        fula_fast.sweep(spec(data={"source": "mnist"}), tmp_path / "x", **options)
    with pytest.raises(FulaError, match=r"data is the name 'digits'; name a source in the spec"):
        fula_fast.sweep(spec(), tmp_path / "x", **{**options, "data": "digits"})
    with pytest.raises(FulaError, match=r"data of this process cannot be given to workers"):
        made = {name: {"model": "resnet18", "width": 4, "untrained": True} for name in "ab"}
        fula_fast.sweep(spec(donors=made), tmp_path / "x", data=digits, donors=tmp_path, quiet=True,
                        overrides=["engine.workers=2"])  # fmt: skip


def test_donors_from_files_on_given_data(donors, digits, tmp_path, without_plots):
    for name, model in zip("ab", donors, strict=True):
        save_checkpoint(model, tmp_path / f"{name}.safetensors")
    files = {n: {"checkpoint": str(tmp_path / f"{n}.safetensors")} for n in "ab"}
    grid = {**spec()["grid"], "methods": "fula"}
    for number, data in enumerate((digits, (digits.train.images, digits.test.images))):
        folder = tmp_path / f"run{number}"
        found = fula_fast.sweep(spec(donors=files, grid=grid), folder, data=data, quiet=True)
        assert [row["status"] for row in found.rows] == ["ok"]
        assert Store.open(folder).spec["data"]["source"] == "given"
        assert (found.rows[0]["front_accuracy"] is None) == bool(number)


def test_hugging_face_data_sets(digits, tmp_path, monkeypatch):
    """Columns and class names of the real library, where it is installed."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    datasets = pytest.importorskip("datasets")
    names = [f"digit {n}" for n in range(10)]
    kinds = datasets.Features(
        {"picture": datasets.Image(), "digit": datasets.ClassLabel(names=names)}
    )

    def made(s):
        columns = {"picture": list(map(Image.fromarray, s.images)), "digit": s.labels.tolist()}
        return datasets.Dataset.from_dict(columns, features=kinds)

    sets = datasets.DatasetDict(train=made(digits.train), test=made(digits.test))
    streamed = {name: part.to_iterable_dataset() for name, part in sets.items()}
    for data in (sets, streamed, {"train": sets["train"], "validation": sets["test"]}):
        found = source_of(data, FORM).source
        assert found.classes == tuple(names)
        assert np.array_equal(found.train.images, digits.train.images)
        assert np.array_equal(found.test.labels, digits.test.labels)
    bare = source_of(sets["train"].remove_columns("digit"), FORM).source
    assert not bare.labelled and len(bare.train) == len(digits.train) * 4 // 5 + 1
