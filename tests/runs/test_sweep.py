"""A sweep from its spec to its table, end to end: two tiny donors on real digits, both executors."""

from __future__ import annotations

import csv
import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from fula_fast import FulaError, sweep
from fula_fast.cli import commands
from fula_fast.models import build, save_checkpoint
from fula_fast.store import COLUMNS, Store, StoreWarning

EXECUTORS = ["solo", "wave"]
MEASURES = ("accuracy", "agreement_right_wrong", "agreement_soft", "kappa", "term_stitch", "loss")
METHODS = ["dm", "hint", "slm", "tlm", "fula"]
QUICK = {"epochs": 2, "batch_size": 256, "dm_samples": 60, "crop_padding": 1, "flip": False}


def network(seed: int, **options):
    options = {"num_classes": 10, "input_shape": (3, 8, 8), "width": 4, **options}
    torch.manual_seed(seed)
    return build("resnet18", **options).eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with the checkpoints a, b (ten classes) and five (five classes)."""
    folder = tmp_path_factory.mktemp("donors")
    for seed, name in enumerate("ab"):
        save_checkpoint(network(seed), folder / f"{name}.safetensors")
    save_checkpoint(network(2, num_classes=5), folder / "five.safetensors")
    return folder


@pytest.fixture
def spec(checkpoints):
    """A spec of four cells; keyword arguments replace the grid's lists."""

    def make(executor: str = "wave", protocol: dict | None = None, **grid) -> dict:
        donors = {n: {"checkpoint": str(checkpoints / f"{n}.safetensors")} for n in "ab"}
        usual = {"front": "a", "end": "b", "sites": [[3, 5], [9, 9]], "methods": ["dm", "fula"]}
        return {
            "name": "tiny",
            "data": {"source": "digits", "size": 8},
            "donors": donors,
            "grid": usual | grid,
            "protocol": QUICK | (protocol or {}),
            "engine": {"executor": executor, "precision": "fp32", "device": "cpu"},
        }

    return make


def run(spec: dict, folder: Path, **options):
    return sweep(spec, folder, quiet=True, **options)


def numbers(results) -> dict[str, dict[str, float]]:
    """Measures by cell."""
    return {row["cell"]: {m: row[m] for m in MEASURES} for row in results.rows}


def stitches(results) -> dict[str, dict[str, torch.Tensor]]:
    return {row["cell"]: results.stitch(row["cell"]) for row in results.rows}


def assert_same(first, second) -> None:
    """Two runs gave the same table and the same stitches, bit for bit."""
    assert numbers(first) == numbers(second)
    ours, theirs = stitches(first), stitches(second)
    for cell, tensors in ours.items():
        assert tensors.keys() == theirs[cell].keys()
        assert all(torch.equal(t, theirs[cell][name]) for name, t in tensors.items())


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """Draw no plots, which take most of a tiny run's time (module-wide runs do draw them)."""
    monkeypatch.setattr(
        "fula_fast.report.after_sweep.write_report", lambda folder: folder / "report.html"
    )


# The table

NULL = {"error", "subset", "loss", "weighting"}
"""Columns that may lack a value in a good row."""


@pytest.fixture(scope="module", params=[pytest.param("solo", marks=pytest.mark.slow), "wave"])
def whole(request, checkpoints, tmp_path_factory):
    """A run of every method at two sites, by either executor."""
    donors = {n: {"checkpoint": str(checkpoints / f"{n}.safetensors")} for n in "ab"}
    return sweep(
        {
            "data": {"source": "digits", "size": 8},
            "donors": donors,
            "grid": {"front": "a", "end": "b", "sites": [[3, 5], [9, 9]], "methods": METHODS},
            "protocol": QUICK,
            "engine": {"executor": request.param, "precision": "fp32", "device": "cpu"},
        },
        tmp_path_factory.mktemp("whole") / "run",
        quiet=True,
    )


def test_rows_are_complete_and_typed(whole):
    table = parquet.read_table(whole.folder / "results.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert list(types)[: len(COLUMNS)] == list(COLUMNS)
    assert {name: types[name] for name in COLUMNS} == COLUMNS
    assert len(whole) == table.num_rows == whole.cells == 10
    for row in table.to_pylist():
        missing = {name for name, value in row.items() if value is None}
        assert missing <= NULL, row["method"]
        assert (row["loss"] is None) == (row["method"] == "dm")
        assert row["status"] == "ok" and row["train_seconds"] > 0
        assert (row["front_sites"], row["end_sites"], row["epochs"]) == (9, 9, 2)
        assert 0 <= row["accuracy"] <= 1 and row["version_torch"] == version("torch")


def test_csv_and_parquet_hold_the_same(whole):
    table = parquet.read_table(whole.folder / "results.parquet").to_pylist()
    with open(whole.folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for text, typed in zip(rows, table, strict=True):
        assert text["cell"] == typed["cell"] and float(text["accuracy"]) == typed["accuracy"]
        assert list(text) == list(typed)


def test_the_run_folder_is_complete(whole):
    names = {path.name for path in whole.folder.iterdir()}
    assert {"spec.json", "plan.json", "cells", "stitches", "launches", "report.html"} <= names
    assert not list(whole.folder.rglob("*.tmp"))
    assert not list((whole.folder / "checkpoints").glob("*"))  # a finished wave drops its own


def test_fula_is_hint_at_the_last_site(whole):
    fula, hint = (whole.select(method=m, end_site=9)[0] for m in ("fula", "hint"))
    for name in MEASURES:
        assert fula[name] == pytest.approx(hint[name], rel=1e-6, abs=1e-9)


def test_both_executors_give_the_same_numbers(spec, tmp_path, monkeypatch):
    """In double precision every measure of every method agrees to rounding; of the environment,
    the folder says what rounds."""
    monkeypatch.setenv("FULA_NUM_THREADS", "1")
    found = []
    for executor in EXECUTORS:
        asked = spec(executor, methods=METHODS)
        asked["engine"]["precision"] = "fp64"
        found.append(numbers(run(asked, tmp_path / executor)))
        launch = Store.open(tmp_path / executor).launches()[-1]
        assert launch["environment"]["FULA_NUM_THREADS"] == "1"
    assert found[0].keys() == found[1].keys()
    for cell, ours in found[0].items():
        theirs = {name: value for name, value in found[1][cell].items() if value is not None}
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-7), cell
        assert (ours["loss"] is None) == ("loss" not in theirs)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_self_stitch_at_the_identity_has_no_loss_and_full_agreement(spec, tmp_path, executor):
    rule = {"init": "identity", "bn": "eval", "weight_decay": 0.0}
    results = run(
        spec(executor, rule, end="a", sites=[2, 7], methods=["hint", "fula", "slm"]), tmp_path / "r"
    )
    for row in results.rows:
        assert row["loss"] == pytest.approx(0, abs=1e-6)
        assert row["agreement_right_wrong"] == 1 and row["agreement_soft"] == pytest.approx(
            1, abs=1e-3
        )
        assert row["accuracy"] == row["end_accuracy"] == row["front_accuracy"]


# Interruptions


def command(spec_file: Path, folder: Path, *options: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fula_fast", "sweep", str(spec_file), "--out", str(folder), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def spec_file(spec: dict, folder: Path) -> Path:
    import tomli_w

    path = folder / "spec.toml"
    path.write_text(tomli_w.dumps(spec))
    return path


@pytest.fixture(scope="module", params=EXECUTORS)
def reference(request, checkpoints, tmp_path_factory):
    """(spec file, an uninterrupted run of it in a process of its own, seconds that it computed)."""
    folder = tmp_path_factory.mktemp("interrupted")
    donors = {n: {"checkpoint": str(checkpoints / f"{n}.safetensors")} for n in "ab"}
    asked = {
        "data": {"source": "digits", "size": 8},
        "donors": donors,
        "grid": {"front": "a", "end": "b", "sites": [[2, 2], [3, 5]], "methods": ["fula", "tlm"]},
        "protocol": QUICK | {"epochs": 4},
        "engine": {"executor": request.param, "precision": "fp32", "device": "cpu"},
    }
    path = spec_file(asked, folder)
    process = command(path, folder / "whole")
    began = launched(folder / "whole", process)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return path, read(folder / "whole"), time.monotonic() - began


def read(folder: Path):
    from fula_fast.results import Results

    store = Store.open(folder)
    return Results(folder, tuple(store.rows()), len(store.planned))


def launched(folder: Path, process: subprocess.Popen, *signs: str) -> float:
    """Wait until the run has begun to compute, or has written one of the `signs`; the time then."""
    while not any(list(folder.glob(sign)) for sign in signs or ["launches/*.json"]):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return time.monotonic()


def finish(spec_file: Path, folder: Path) -> None:
    process = command(spec_file, folder, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 4])
def test_a_run_killed_at_a_random_moment_goes_on_to_the_same_table(reference, tmp_path, kills):
    path, expected, seconds = reference
    seed = random.randrange(10**6)
    print("seed of the moments:", seed)
    moments = random.Random(seed)
    for _ in range(kills):
        options = ("--resume",) if (tmp_path / "run/spec.json").exists() else ()
        process = command(path, tmp_path / "run", *options)
        launched(tmp_path / "run", process)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.communicate()
    finish(path, tmp_path / "run")
    assert_same(read(tmp_path / "run"), expected)


@pytest.fixture
def sigint_heard():
    """Processes started inside hear SIGINT, which a shell's background jobs are told to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_heard")
@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_loses_nothing(reference, tmp_path):
    path, expected, _ = reference
    for attempt in range(3):
        folder = tmp_path / f"run{attempt}"
        process = command(path, folder)
        launched(folder, process, "cells/*/*.json", "checkpoints/*.safetensors")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        # On a busy machine the run may end before the signal comes; and CPython prints and drops
        # what is raised inside a destructor. Neither happens three times.
        if process.returncode != 0 and "Exception ignored" not in errors:
            break
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert errors.splitlines()[-1].startswith("interrupted; ") and "--resume" in errors
    assert not list(folder.rglob("*.tmp"))
    finish(path, folder)
    assert_same(read(folder), expected)


def test_a_truncated_cell_file_is_named_and_done_again(spec, tmp_path):
    first = run(spec("solo"), tmp_path / "run")
    before = numbers(first)
    damaged = sorted((tmp_path / "run/cells").rglob("*.json"))[1]
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.warns(StoreWarning, match=damaged.name):
        again = run(spec("solo"), tmp_path / "run", resume=True)
    assert numbers(again) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(run(spec("solo"), tmp_path / "run", resume=True)) == before


def test_a_finished_run_is_left_alone(spec, tmp_path):
    run(spec(), tmp_path / "run")
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/cells").rglob("*.json")}
    run(spec(), tmp_path / "run", resume=True)
    assert shards == {p: p.stat().st_mtime_ns for p in (tmp_path / "run/cells").rglob("*.json")}


# Cells that fail

SGD = {"optimiser": "sgd"}
DIVERGING = {"weight_decay": [1e-4, 1e30]}
"""The second decay multiplies all parameters by 1e27 at every step."""


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_diverging_cell_fails_alone(spec, tmp_path, executor):
    bad, good = (
        run(spec(executor, SGD, methods="hint", axes=axes), tmp_path / name)
        for name, axes in (("bad", DIVERGING), ("good", {"weight_decay": [1e-4]}))
    )
    assert len(bad.failed) == 2
    for row in bad.failed:
        assert row["weight_decay"] == 1e30 and row["accuracy"] is None
        assert "the loss became" in row["error"] and "at step 1 (terms:" in row["error"]
    kept = {c: values for c, values in numbers(bad).items() if values["accuracy"] is not None}
    assert kept.keys() == numbers(good).keys()
    for cell, values in numbers(good).items():
        assert kept[cell] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_exit_code_1_says_that_something_failed(spec, tmp_path, capsys, executor):
    asked = spec(executor, SGD, methods="hint", sites=[[9, 9]], axes=DIVERGING)
    arguments = ["sweep", str(spec_file(asked, tmp_path)), "--out", str(tmp_path / "run")]
    for extra in ([], ["--resume"]):
        with pytest.raises(SystemExit) as leaving:
            commands.app([*arguments, *extra], prog_name="fula-fast")
        assert leaving.value.code == 1
        assert "1 failed" in capsys.readouterr().out
    with pytest.raises(FulaError, match=r"cell \w+ failed: the loss became .* \(--fail-fast\)"):
        run(asked, tmp_path / "strict", fail_fast=True)


# What a user does wrong


def test_a_folder_of_another_spec_is_refused_with_the_difference(spec, tmp_path):
    run(spec(), tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(FulaError, match=r"another spec \(protocol\.epochs: 2 -> 3\)"):
        run(spec(protocol={"epochs": 3}), tmp_path / "run", resume=True)
    with pytest.raises(FulaError, match="holds a run of this spec already; add --resume"):
        run(spec(), tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_where_and_how_fast_it_runs_is_no_other_spec(spec, tmp_path):
    run(spec(), tmp_path / "run")
    asked = spec()
    asked["engine"] |= {"memory": "50%", "device": "auto"}
    assert len(run(asked, tmp_path / "run", resume=True)) == 4


def test_other_donors_under_the_same_names_are_refused(spec, tmp_path, checkpoints):
    copied = tmp_path / "a.safetensors"
    copied.write_bytes((checkpoints / "a.safetensors").read_bytes())
    asked = spec("solo", SGD, axes=DIVERGING, methods="hint")
    asked["donors"]["a"]["checkpoint"] = str(copied)
    run(asked, tmp_path / "run")  # half of its cells fail, and are tried again
    save_checkpoint(network(7), copied)
    with pytest.raises(FulaError, match="donor 'a' has content hash .* used .*restore that donor"):
        run(asked, tmp_path / "run", resume=True)


def test_labels_must_mean_the_same_to_front_and_end(spec, tmp_path, checkpoints):
    import numpy as np

    rng = np.random.default_rng(0)
    five = {
        f"{p}_x": rng.integers(0, 255, (40, 8, 8, 3), dtype=np.uint8) for p in ("train", "test")
    }
    five |= {f"{p}_y": np.arange(40) % 5 for p in ("train", "test")}
    np.savez(tmp_path / "five.npz", **five)
    asked = spec(methods=["fula", "tlm"])
    asked["donors"]["a"] = {
        "checkpoint": str(checkpoints / "five.safetensors"),
        "data": {"source": "npz", "data_dir": str(tmp_path / "five.npz"), "size": 8},
    }
    with pytest.raises(FulaError, match=r"'a' \(5 classes\) and end 'b' \(10\).*leave tlm out"):
        run(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked["grid"]["methods"] = ["fula"]
    assert all(row["status"] == "ok" for row in run(asked, tmp_path / "run").rows)


def test_a_donor_below_its_accuracy_stops_the_run(spec, tmp_path):
    asked = spec()
    asked["donors"]["a"]["min_accuracy"] = 0.99
    with pytest.raises(FulaError, match=r"\[donors\.a\].*below min_accuracy = 0\.99"):
        run(asked, tmp_path / "run")
    asked["donors"]["a"] = {"model": "resnet18", "width": 2, "epochs": 1, "min_accuracy": 0.99}
    with pytest.raises(
        FulaError, match=r"\[donors\.a\] .*below min_accuracy = 0\.99; train longer"
    ):
        run(asked, tmp_path / "run", donors=tmp_path / "donors")


def test_donors_are_trained_once_and_found_again(spec, tmp_path):
    asked = spec(methods="dm", sites=[[9, 9]])
    asked["donors"]["a"] = {"model": "resnet18", "width": 2, "epochs": 1}
    first = run(asked, tmp_path / "first", donors=tmp_path / "donors")
    (path,) = (tmp_path / "donors").glob("*.safetensors")
    written = path.stat().st_mtime_ns
    second = run(asked, tmp_path / "second", donors=tmp_path / "donors")
    assert path.stat().st_mtime_ns == written
    assert_same(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": [[3, 12]]}, "end 'b' has sites 1 to 9, so site 12 is out of range"),
        ({"methods": ["fulla"]}, "unknown method 'fulla'; did you mean 'fula'"),
        ({"sedes": [1]}, "unknown key 'sedes'; did you mean 'seeds'"),
        ({"end": "c"}, "which has no \\[donors.c\\] table"),
        ({"subset": 11}, "subset = 11 is out of range"),
    ],
)
def test_mistakes_in_the_grid_stop_before_anything_is_written(spec, tmp_path, change, message):
    with pytest.raises(FulaError, match=message) as error:
        run(spec(**change), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_truncated_checkpoint_is_named(spec, tmp_path, checkpoints):
    asked = spec()
    short = tmp_path / "short.safetensors"
    whole = (checkpoints / "a.safetensors").read_bytes()
    short.write_bytes(whole[: len(whole) // 2])
    asked["donors"]["a"]["checkpoint"] = str(short)
    with pytest.raises(FulaError, match=r"short\.safetensors.*truncated"):
        run(asked, tmp_path / "run")
    assert len(run(spec(), tmp_path / "run")) == 4  # the folder is free for the corrected spec


def test_a_folder_that_cannot_be_written(spec, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", Path("/proc/run")):
        with pytest.raises(FulaError, match="cannot (write|read)") as error:
            run(spec(), folder)
        assert "\n" not in str(error.value)


def test_a_full_disk_stops_at_once_with_nothing_half_written(spec, tmp_path, monkeypatch):
    """The fourth cell's file meets a full disk: three cells are kept, and the run goes on later."""
    flush, left = os.fsync, [1]

    def full(descriptor):
        written = len(list((tmp_path / "run/cells").rglob("[!.]*.json")))
        if written >= 3 and left and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FulaError, match=r"No space left on device.*--resume"):
        run(spec("solo"), tmp_path / "run")
    left.clear()
    assert not list((tmp_path / "run").rglob(".*"))
    assert len(Store.open(tmp_path / "run").done()) == 3
    again = run(spec("solo"), tmp_path / "run", resume=True)
    assert_same(again, run(spec("solo"), tmp_path / "whole"))
