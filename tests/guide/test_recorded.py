"""Tables that ship with the guide: small, whole, and made by the commands that they name."""

from __future__ import annotations

from subprocess import CompletedProcess

import pyarrow
import pytest
from pyarrow import parquet

from fula_fast.errors import FulaError
from fula_fast.guide import recorded as module
from fula_fast.guide.recorded import TABLES, make, recipes, recorded


def test_each_recipe_has_its_table_and_each_table_its_recipe():
    assert {path.stem for path in TABLES.iterdir()} == set(recipes())


@pytest.mark.parametrize("name", recipes())
def test_they_are_small_and_name_what_made_them(name):
    recipe, found = recipes()[name], recorded(name)
    assert (TABLES / f"{name}.parquet").stat().st_size <= 40_000
    assert found.about["command"] == recipe["command"]
    assert found.about["scale"] == recipe["scale"]
    assert {"cpu", "threads"} <= set(found.about["hardware"])
    assert {"fula_fast", "torch"} <= set(found.about["versions"])
    assert found.rows and set(found.rows[0]) == set(recipe["columns"])


def test_benchmarks_are_recorded_too():
    found = recorded("grid-cpu")
    names = [row["name"] for row in found.rows]
    assert names == ["ours", "published", "fair", "vmap", "ours, within vmap's memory"]
    assert "`python -m fula_fast.bench.suites.grid" in str(found) and "a measurement" in str(found)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(FulaError, match="'dept'.*depth"):
        recorded("dept")


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    found = {"command": "fula-fast sweep 'a b'", "scale": "smoke", "table": "r/t.parquet"}
    found["columns"] = ["accuracy"]
    monkeypatch.setattr(module, "recipes", lambda: {"mine": found, "twin": found})
    monkeypatch.setattr(module, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(module, "environment", lambda device, command: {"command": command})
    return found


def test_make_runs_a_command_once_and_keeps_the_asked_columns(recipe, monkeypatch, tmp_path):
    ran = []

    def run(words, cwd, check):
        ran.append(words[1:])
        (cwd / "r").mkdir()
        table = pyarrow.table({"accuracy": [0.5], "cell": ["c"]})
        parquet.write_table(table, cwd / recipe["table"])
        return CompletedProcess(words, 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    assert [path.stem for path in make(tmp_path / "out")] == ["mine", "twin"]
    assert ran == [["-m", "fula_fast", "sweep", "a b"]]
    assert recorded("twin").rows == ({"accuracy": 0.5},)
    assert recorded("twin").about["command"] == recipe["command"]


@pytest.mark.parametrize("code, says", [(1, "failed"), (0, "wrote no")])
def test_a_command_that_fails_or_writes_nothing_is_told(recipe, monkeypatch, tmp_path, code, says):
    monkeypatch.setattr(module.subprocess, "run", lambda w, **_: CompletedProcess(w, code))
    with pytest.raises(FulaError, match=says):
        make(tmp_path, ["mine"])
