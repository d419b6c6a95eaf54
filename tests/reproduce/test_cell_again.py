"""A cell made by itself is the cell of the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.reproduce import recipe_names, resolve
from fula_fast.reproduce.cell_again import _cells, _sweep_of, narrowed, run_cell, tasks_alone
from fula_fast.reproduce.runner import Ledger, identity, run
from fula_fast.store import Store

NOWHERE = Path("no-such-folder")
SWEPT = [name for name in recipe_names() if resolve(name, "tiny", NOWHERE).sweeps]
QUICK = ["grid.sites=[2, 9]", "grid.subset=[3, 'all']", "grid.methods=['hint', 'fula']"]
FRONT = "grid.pairs=[['cifar10_1', 'cifar10_0']]"


@pytest.mark.parametrize("name", SWEPT)
def test_its_grid_has_one_cell_of_the_same_id(name):
    experiment = resolve(name, "tiny", NOWHERE)
    for sweep in experiment.sweeps:
        cells = _cells(sweep)
        for place in (0, len(cells) // 3, len(cells) - 1):
            cell = cells[place]
            spec = narrowed(_sweep_of(experiment, cell.id), cell.id)
            assert set(spec.donors) == {cell.front, cell.end}
            (alone,) = _cells(type(sweep)(sweep.name, spec, sweep.data, sweep.donor_data))
            assert alone == cell and alone.id == cell.id


def test_an_unknown_cell_is_refused():
    with pytest.raises(FulaError, match="'fig9' at scale smoke has no cell 'abc'"):
        run_cell(resolve("fig9", "smoke", NOWHERE), "abc", Path("out"))


def test_a_drivers_task_is_made_alone(tmp_path):
    experiment = resolve("fig7", "smoke", NOWHERE)
    run(experiment, tmp_path / "whole")
    ledger = Ledger(tmp_path / "whole" / "fig7" / "driver", identity(experiment))
    words = ["reproduce", "fig7", "--scale", "smoke", "--cell", "pixel-random", "--out"]
    answer = CliRunner().invoke(commands.app, [*words, str(tmp_path / "one")])
    assert answer.exit_code == 0, answer.output
    (row,) = ledger.kept("pixel-random", list)
    for name in ("patterns", "patterns_per_class", "places", "fresh"):
        assert f"{name}: {row[name]}" in answer.output


def test_what_finished_cells_decide_is_no_task_alone():
    assert not tasks_alone(resolve("measures", "smoke", NOWHERE))
    assert not tasks_alone(resolve("fig9", "smoke", NOWHERE))
    assert "stitches" not in tasks_alone(resolve("mislead-colour", "smoke", NOWHERE))


def test_missing_data_is_told():
    with pytest.raises(FulaError, match="needs data that is not there"):
        run_cell(resolve("fig9", "tiny", NOWHERE), "abc", Path("out"))


@pytest.mark.slow
def test_it_gives_the_numbers_of_the_whole_run(tmp_path):
    experiment = resolve("fig9", "smoke", NOWHERE, [*QUICK, FRONT])
    run(experiment, tmp_path / "whole")
    rows = Store.open(tmp_path / "whole" / "fig9" / "fig9").rows()
    row = rows[len(rows) // 2]
    words = ["reproduce", "fig9", "--scale", "smoke", "--cell", row["cell"], "--out"]
    sets = [word for text in (*QUICK, FRONT) for word in ("--set", text)]
    answer = CliRunner().invoke(commands.app, [*words, str(tmp_path / "one"), *sets])
    assert answer.exit_code == 0, answer.output
    (again,) = Store.open(tmp_path / "one" / "cells" / experiment.name / row["cell"]).rows()
    for name in ("front_hash", "end_hash", "front_site", "end_site", "method", "subset", "seed"):
        assert again[name] == row[name]
    assert again["accuracy"] == pytest.approx(row["accuracy"], abs=0.011)  # an image of a hundred
    assert again["loss"] == pytest.approx(row["loss"], rel=1e-3)
    assert f"accuracy: {again['accuracy']}" in answer.output
