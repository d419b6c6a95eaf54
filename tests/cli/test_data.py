"""`fula-fast data`: what it prints and writes, and one line for every mistake."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.pipelines import load_source, source_names
from fula_fast.pipelines.sources.imagenet import CLASSES
from fula_fast.pipelines.sources.places import place_of


@pytest.fixture(autouse=True)
def no_data_elsewhere(monkeypatch, tmp_path):
    """Only what a test makes is found."""
    monkeypatch.delenv("FULA_DATA", raising=False)
    monkeypatch.setenv("FULA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            commands.app(["data", *arguments], prog_name="fula-fast")
        return (leaving.value.code or 0, *capsys.readouterr())

    return run


def picture(path: Path, colour: tuple[int, int, int], size=(40, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, one red and one blue, of six training and one or two test images."""
    for split, counts in {"train": (6, 6), "test": (1, 2)}.items():
        for name, count, red in zip(("cat", "dog"), counts, (200, 0), strict=True):
            for i in range(count):
                picture(tmp_path / f"set/{split}/{name}/{i}.png", (red, i, 200 - red))
    return tmp_path / "set"


def test_list_names_every_source_and_what_is_here(run, tmp_path):
    (tmp_path / "here").mkdir()
    np.savez(tmp_path / "here/mnist.npz", a=np.zeros(1))
    code, out, err = run("list", "--data-dir", "here")
    rows = {cells[1].strip(): cells for r in out.splitlines() if len(cells := r.split("│")) > 4}
    assert (code, err) == (0, "") and set(source_names()) <= set(rows)
    assert [rows[n][4].strip() for n in ("mnist", "colour-mnist", "svhn", "digits")] == [
        "mnist.npz", "mnist.npz", "no", "yes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, files",
    [
        ("cifar10", ["cifar-pngs/train/a/0.png", "cifar-pngs/test/a/0.png"]),
        ("cifar10", ["train/a/0.png", "test/a/0.png"]),
        ("cifar10", ["cifar-100-python/0.png"]),
        ("cifar10", []),
        ("imagefolder", ["deep/train/a/0.png", "deep/val/a/0.png"]),
        ("imagefolder", ["a/0.png"]),
        ("ls-imagenet-10", ["ls-imagenet-10/train/a/0.png", "ls-imagenet-10/val/a/0.png"]),
        ("ls-imagenet-10", ["imagenet/train/a/0.png"]),
        ("mnist", []),
        ("cifar100", []),
        ("digits", []),
    ],
)
def test_what_is_listed_as_found_is_what_loads(name, files, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for file in files:
        picture(data / file, (1, 2, 3))
    try:
        load_source(name, data_dir=data)
        loads = True
    except FulaError:
        loads = False
    assert place_of(name, data).there == loads


def test_the_real_files_are_found(data_folder):
    there = {name for name in source_names() if place_of(name, data_folder).there}
    assert there == {"digits", "clustered-noise", "mnist", "colour-mnist", "cifar10"}


def rows_of(path: Path, side: int, columns: int) -> np.ndarray:
    """The images on a sheet, (classes, columns, side, side, 3); they stand at its right edge."""
    sheet = np.asarray(Image.open(path))
    gap, left = side + 2, sheet.shape[1] - columns * (side + 2)
    count = (len(sheet) - 28) // gap
    tops = [28 + r * gap for r in range(count)]
    lefts = [left + c * gap for c in range(columns)]
    return np.stack([[sheet[t : t + side, x : x + side] for x in lefts] for t in tops])


def test_show_draws_classes_in_rows_with_their_markers(run, folder):
    common = ("imagefolder", "--data-dir", str(folder), "--size", "28", "--count", "6")
    code, out, err = run("show", *common, "--out", "sheet/grid.png")
    assert (code, out, err) == (0, "sheet/grid.png\n", "")
    plain = rows_of(Path("sheet/grid.png"), 56, 6)
    assert plain.shape[0] == 2 and not plain[0, ..., 2].any() and not plain[1, ..., 0].any()
    assert (plain == 0).all(-1).any()  # the crop's padding
    run("show", *common, "--out", "still.png", "--crop-padding", "0", "--no-flip")
    still = rows_of(Path("still.png"), 56, 6)
    assert (still[0, ..., 0] == 200).all() and (still[1, ..., 2] == 200).all()
    run(
        "show", *common, "--out", "marked.png", "--crop-padding", "0", "--no-flip",
        "--shortcut", "pixel+class",
    )  # fmt: skip
    changed = (rows_of(Path("marked.png"), 56, 6) != still).any(-1)
    assert changed.any((2, 3)).all() and changed.sum((2, 3)).max() <= 64  # 4x4, zoomed twice
    assert (changed == changed[:, :1]).all()  # one place per class


def test_the_seed_chooses_images_and_markers(run):
    shown = []
    for seed in ("0", "1", "0"):
        run("show", "digits", "--out", "g.png", "--seed", seed, "--split", "test", "--count", "3")
        shown.append(Path("g.png").read_bytes())
    assert shown[0] == shown[2] != shown[1]


def test_verify_counts_and_names_what_is_broken(run, folder):
    (folder / "train/dog/2.png").write_bytes(b"broken")
    (folder / "extra.bin").write_bytes(b"data")
    right = hashlib.sha256(b"data").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{right}  extra.bin\n")
    code, out, _ = run("verify", "imagefolder", "--data-dir", str(folder), "--size", "8")
    lines = [line.replace("│", " ").split() for line in out.splitlines()]
    assert code == 1
    assert ["cat", "6", "1"] in lines and ["dog", "5", "2"] in lines and ["all", "11", "3"] in lines
    assert ["smallest/largest", "class", "0.833", "0.500"] in lines
    assert "checked files: extra.bin" in out
    assert f"unreadable: {folder}/train/dog/2.png" in out.replace("\n", "")
    (folder / "extra.bin").write_bytes(b"other")
    code, _, err = run("verify", "imagefolder", "--data-dir", str(folder))
    assert code == 2 and "extra.bin' has SHA-256" in err and err.count("\n") == 1


def test_verify_finds_the_sums_of_the_environments_folder(run, tmp_path, monkeypatch):
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'x').hexdigest()}  x\n")
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setenv("FULA_DATA", str(tmp_path))
    code, out, _ = run("verify", "digits")
    assert code == 0 and "checked files: x" in out


def test_prepare_builds_ls_imagenet_10_and_it_loads(run, tmp_path):
    for split in ("train", "val"):
        for i, name in enumerate((*CLASSES, "n99999999")):
            picture(tmp_path / f"imagenet/{split}/{name}/{name}_1.JPEG", (20 * i, 9, 9), (64, 48))
    build = ("prepare", "ls-imagenet-10", "--imagenet", "imagenet", "--data-dir", "made")
    code, out, _ = run(*build)
    assert code == 0 and out.startswith("ls-imagenet-10: 20 images in made/ls-imagenet-10")
    with Image.open(f"made/ls-imagenet-10/train/{CLASSES[3]}/{CLASSES[3]}_1.png") as image:
        assert image.size == (32, 32) and abs(image.getpixel((16, 16))[0] - 60) <= 2
    assert run("verify", "ls-imagenet-10", "--data-dir", "made")[0] == 0
    code, _, err = run(*build)
    assert code == 2 and "exists; remove it" in err


def test_prepare_leaves_unreadable_images_out_and_counts_them(run, tmp_path, folder):
    for split in ("train", "val"):
        for name in CLASSES:
            for i in range(2):
                picture(tmp_path / f"imagenet/{split}/{name}/{i}.JPEG", (9, 9, 9))
    Path(f"imagenet/train/{CLASSES[0]}/1.JPEG").write_bytes(b"broken")
    build = ("prepare", "ls-imagenet-10", "--imagenet", "imagenet", "--data-dir", "made")
    code, _, err = run(*build)
    assert code == 2 and "or set on_error = 'skip'" in err
    code, out, _ = run(*build, "--option", "on_error=skip")
    assert code == 0 and out.startswith(
        "ls-imagenet-10: 39 images in made/ls-imagenet-10; 1 unread"
    )
    (folder / "train/cat/3.png").write_bytes(b"broken")
    place = ("--data-dir", str(folder), "--size", "8", "--option", "on_error=skip")
    code, out, _ = run("prepare", "imagefolder", *place)
    assert code == 0 and "11 training and 3 test images" in out
    assert "1 unreadable images left out, first '" in out


def test_options_of_a_stylised_base_are_nested(run, folder):
    options = ("--option", "base=imagefolder", "--option", f"base_options.path={folder}")
    code, out, err = run("prepare", "stylized", "--size", "8", *options)
    assert (code, err) == (0, "") and out.startswith("stylized/imagefolder: 12 training")


def test_prepare_fills_the_cache_of_decoded_images(run, folder, tmp_path):
    code, out, _ = run("prepare", "imagefolder", "--data-dir", str(folder), "--size", "16")
    assert code == 0 and "12 training and 3 test images, (3, 16, 16)" in out
    assert list((tmp_path / "cache").glob("decoded/*16x16x3*/*/images.npy"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("show", "digts", "--out", "g.png"), "unknown source 'digts'; did you mean 'digits'?"),
        (("show", "digits", "--out", "grid"), "'grid' is no name of a picture; give one"),
        (("show", "digits", "--out", "grid.txt"), "'grid.txt' is no name of a picture"),
        (("show", "cifar10", "--out", "g.png"), "'data' for 'cifar10' does not exist; make it"),
        (("show", "cifar10", "--out", "g.png"), "or download = true"),
        (("show", "digits", "--out", "g.png", "--split", "tset"), "did you mean 'test'?"),
        (("show", "digits", "--out", "g.png", "--shortcut", "pixle"), "unknown shortcut 'pixle'"),
        (("show", "digits", "--out", "g.png", "--marker-set", "roled"), "did you mean 'rolled'?"),
        (("show", "digits", "--out", "g.png", "--marker-set", "rolled"), "and give a shortcut"),
        (("show", "digits", "--out", "g.png", "--channels", "2"), "[data] channels = 2: should be"),
        (("show", "digits", "--out", "g.png", "--option", "a=1"), "has no option 'a'; it takes none"),
        (("show", "digits", "--out", "file/g.png"), "picture 'file/g.png' cannot be written"),
        (("verify", "svhn", "--data-dir", "nowhere"), "no 'svhn' in 'nowhere'"),
        (("prepare", "ls-imagenet-10"), "give its folder as imagenet (--imagenet)"),
        (("prepare", "ls-imagenet-10", "--imagenet", "nowhere"), "'nowhere' is missing; give the"),
        (
            ("prepare", "ls-imagenet-10", "--imagenet", "x", "--size", "64"),
            "always made at 32x32 in colour; leave size out",
        ),
        (("prepare", "digits", "--imagenet", "x"), "'digits' is not built from ImageNet"),
        (("list", "--data-dir"), "--data-dir"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_the_fix(run, arguments, words):
    Path("file").write_text("no folder")
    code, _, err = run(*arguments)
    assert code == 2 and words in err and "Traceback" not in err
    assert err.count("\n") == 1 or arguments == ("list", "--data-dir")
    assert not Path("g.png").exists()
