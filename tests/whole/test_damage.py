"""Damage at every file of a run: the same numbers in the end, or one line that names the file."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from fula_fast import FulaError, sweep
from fula_fast.pipelines.decode import cache
from fula_fast.runs.attack import attack_run
from fula_fast.store import Store

pytestmark = pytest.mark.usefixtures("without_plots")


def _beside(name: str, path: Path):
    found = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(found)  # for its dataclasses
    found.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
harness = _beside("harness", HERE / "faults/harness.py")
damage = _beside("damage", HERE.parent / "files/damage.py")

FILES = {
    "spec": "run/spec.json",
    "plan": "run/plan.json",
    "cells of the plan": "run/plan.parquet",
    "shard": "run/cells/*/*.json",
    "stitches": "run/stitches/*/*.safetensors",
    "checkpoint": "run/checkpoints/*.safetensors",
    "launch": "run/launches/*.json",
    "donor": "donors/*.safetensors",
    "decoded images": "cache/decoded/*/*/images.npy",
    "seal of the cache": "cache/decoded/*/*/seal.json",
    "digest": "cache/digests/*.json",
    "attack": "run/attacks/*/cells/*/*.json",
    "plan of an attack": "run/attacks/*/plan.json",
    "cells of an attack": "run/attacks/*/plan.parquet",
}
"""A file of every kind; where there are several, the first."""

SPEC = harness.SPEC | {
    "grid": {
        "front": "a", "end": "b", "sites": [[2, 3]], "methods": ["hint", "fula"], "seeds": [0, 1]
    },
}  # fmt: skip


class Killed(BaseException):
    pass


def run(root: Path, data: Path) -> dict:
    """The sweep and its attack, gone on with; its numbers."""
    cache._whole.clear()  # as a new process would begin
    spec = SPEC | {"data": SPEC["data"] | {"data_dir": str(data)}}
    resume = (root / "run/spec.json").exists()
    found = sweep(spec, root / "run", resume=resume, quiet=True, donors=root / "donors")
    stitches = {r["cell"]: harness._content(found.stitch(r["cell"])) for r in found.rows}
    rows = [[r["cell"], *(r[n] for n in harness._MEASURES)] for r in found.rows]
    robust = attack_run(root / "run", "pgd-1", limit=4, donors=root / "donors").rows
    return {"rows": rows, "stitches": stitches, "robust": [r["robust_accuracy"] for r in robust]}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A run that was killed in its second wave, attacked so far, with all it ever wrote; and the
    numbers that it ends with undisturbed."""
    root = tmp_path_factory.mktemp("damage") / "root"
    data = root.parent / "data"
    harness.make_data(data)
    harness.add_tiny_network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FULA_CACHE", str(root / "cache"))
        patch.setattr(cache, "_GRAIN_NS", 0)
        write, calls = Store.write, []

        def killed(store, *args):
            calls.append(args)
            if len(calls) == 2:
                raise Killed
            write(store, *args)

        patch.setattr(Store, "write", killed)
        with pytest.raises(Killed):
            run(root, data)
        patch.setattr(Store, "write", write)
        attack_run(root / "run", "pgd-1", limit=4, donors=root / "donors")
        expected = run(_copy(root, root.parent / "expected", patch), data)
    return root, data, expected


def _copy(root: Path, target: Path, patch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(root, target, symlinks=True)
    patch.setenv("FULA_CACHE", str(target / "cache"))
    return target


def only(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def harms(kind: str) -> list:
    headless = kind == "decoded images" or kind.startswith("cells of")
    return [*damage.BYTES, *(() if headless else damage.HEADS)]


CASES = [(kind, harm) for kind in FILES for harm in harms(kind)]


def holds(root: Path, data: Path, file: Path, expected: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert run(root, data) == expected
        except FulaError as error:
            assert "\n" not in str(error) and file.name in str(error), error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "harm"), CASES, ids=[f"{k}-{h.__name__}".replace(" ", "_") for k, h in CASES]
)
def test_the_numbers_are_the_same_or_the_file_is_named(
    snapshot, tmp_path, monkeypatch, caplog, kind, harm
):
    caplog.set_level(logging.ERROR, "fula_fast")
    root, data, expected = snapshot
    copied = _copy(root, tmp_path / "root", monkeypatch)
    file = only(copied, FILES[kind])
    if harm is damage.without_head and file.suffix != ".safetensors":
        pytest.skip("a JSON file has no head apart")
    harm(file)
    holds(copied, data, file, expected)


def test_two_exchanged_donors_are_noticed(snapshot, tmp_path, monkeypatch, caplog):
    root, data, expected = snapshot
    copied = _copy(root, tmp_path / "root", monkeypatch)
    first, second = sorted((copied / "donors").glob("*.safetensors"))
    kept = first.read_bytes()
    damage.exchanged(first, second)
    second.write_bytes(kept)
    assert run(copied, data) == expected
    assert caplog.text.count("it holds a donor of another recipe") == 2


def test_an_edited_plan_is_noticed(snapshot, tmp_path, monkeypatch):
    root, data, _ = snapshot
    copied = _copy(root, tmp_path / "root", monkeypatch)
    plan = copied / "run/plan.json"
    sound = plan.read_text()
    plan.write_text(sound.replace('"precision":"fp32"', '"precision":"bf16"'))
    assert plan.read_text() != sound
    with pytest.raises(FulaError, match=r"plan\.json' is damaged: .*it was altered"):
        run(copied, data)


@pytest.mark.parametrize(
    "kind", ["shard", "stitches", "checkpoint", "plan", "spec", "cells of the plan"]
)
def test_files_of_another_run_are_noticed(snapshot, tmp_path, monkeypatch, kind):
    root, data, expected = snapshot
    copied = _copy(root, tmp_path / "root", monkeypatch)
    other = tmp_path / "other"
    store = Store.create(other / "run", {"name": "other"}, {}, {"id": ["c"]})
    store.write("w", [{"cell": "c", "status": "ok", "accuracy": 1.0}], {"c": {"weight": [1.0]}})
    store.checkpoints.save("w", {"x": [1.0]}, {"epoch": 1})
    file = only(copied, FILES[kind])
    damage.exchanged(file, only(other, FILES[kind]))
    holds(copied, data, file, expected)


def test_a_moved_run_stops_at_its_next_write(tmp_path):
    store = Store.create(tmp_path / "run", {}, {}, {"id": ["c"]})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    for write in (
        lambda: store.write("w", [{"cell": "c", "status": "ok"}]),
        lambda: store.checkpoints.save("w", {"x": [1.0]}, {}),
    ):
        with pytest.raises(FulaError, match="moved, deleted or emptied"):
            write()
    assert not (tmp_path / "run").exists()
