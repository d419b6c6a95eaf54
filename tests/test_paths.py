"""`~` is the home folder wherever text becomes a path."""

from pathlib import Path

import numpy as np
import pytest

import fula_fast
from fula_fast.donors.donor import donor_path
from fula_fast.errors import FulaError
from fula_fast.files.paths import cache_folder, user_path
from fula_fast.models import build, load_checkpoint, save_checkpoint
from fula_fast.pipelines import load_source
from fula_fast.pipelines.sources.by_name import data_folder
from fula_fast.reproduce import datasets
from fula_fast.store import Store
from fula_fast.study.spec import load_spec


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder; the current one is another, so that a folder named `~` would be seen."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not Path("~").exists()


def test_other_paths_stay(home):
    for text in ("/a/~/b", "runs/~x", ".", "a b"):
        assert user_path(text) == Path(text)
    assert user_path("~/x") == home / "x"
    with pytest.raises(FulaError, match="write the whole path"):
        user_path("~no-such-user-at-all/x")


@pytest.mark.parametrize(
    "use",
    [
        load_checkpoint,
        load_spec,
        Store.open,
        lambda path: fula_fast.sweep("quickstart", path),
        lambda path: save_checkpoint(
            build("resnet18", width=2, num_classes=2, input_shape=(3, 8, 8)), path
        ),
        lambda path: load_source("imagefolder", path=path),
        lambda path: fula_fast.sweep("quickstart", overrides={"name": path}),
    ],
)
def test_bytes_of_another_encoding_are_refused_before_any_work(home, use):
    """Safetensors, Parquet and reports need UTF-8, and would fail at the end."""
    with pytest.raises(FulaError, match=r"'caf\\udce9' is not UTF-8 text.* rename it"):
        use("caf\udce9")


def test_variables(home, monkeypatch):
    monkeypatch.setenv("FULA_CACHE", "~/cache")
    monkeypatch.setenv("FULA_DATA", "~/data")
    assert cache_folder() == home / "cache"
    assert data_folder() == datasets.data_folder() == home / "data"
    monkeypatch.delenv("FULA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert cache_folder() == home / "xdg" / "fula-fast"


def test_a_cache_that_has_no_place_is_named_with_the_cure(home, monkeypatch):
    (home / "file").write_text("x")
    monkeypatch.setenv("FULA_CACHE", "~/file/cache")
    with pytest.raises(FulaError, match="file/cache' cannot be made .Not a directory.; set FULA_C"):
        cache_folder()
    for name in ("FULA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # nobody's, as in some containers
    with pytest.raises(FulaError, match="no home folder to keep a cache in; set FULA_CACHE"):
        cache_folder()


def test_data_by_folder_and_by_option(home):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    labels = np.arange(4) % 2
    np.savez(home / "a.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    assert len(load_source("npz", path="~/a.npz").train) == 4
    assert len(load_source("npz", data_dir="~/a.npz").test) == 4


def test_checkpoints_and_donors(home):
    model = build("resnet18", width=2, num_classes=2, input_shape=(3, 32, 32))
    save_checkpoint(model, "~/new/m.safetensors")
    assert (home / "new" / "m.safetensors").is_file()
    assert load_checkpoint("~/new/m.safetensors").name == "resnet18"
    recipe = {"model": "resnet18", "source": "digits"}
    assert donor_path("~/donors", recipe).parent == home / "donors"


def test_specs_and_runs(home):
    (home / "s.toml").write_text(
        "[donors.a]\nmodel='resnet18'\n[grid]\nfront=['a']\nend=['a']\n", encoding="utf-8"
    )
    assert load_spec("~/s.toml").grid.front == ("a",)
    with pytest.raises(FulaError, match=str(home)):
        Store.open("~/runs/x")
    Store.create("~/runs/x", {}, {}, {"id": []})
    assert (home / "runs" / "x" / "spec.json").is_file()


def test_a_whole_sweep_lands_in_the_home_folder(home, without_plots):
    spec = {
        "data": {"size": 8, "train_images": 64, "test_images": 32},
        "donors": {"a": {"model": "resnet18", "options": {"width": 2}, "untrained": True}},
        "grid": {"front": "a", "end": "a", "methods": "dm", "sites": [[9, 9]]},
        "protocol": {"batch_size": 32, "dm_samples": 32},
        "engine": {"mode": "eager"},
    }
    found = fula_fast.sweep(spec, "~/runs/x", quiet=True, donors="~/donors")
    assert found.folder == home / "runs" / "x"
    assert (found.folder / "results.csv").is_file()
