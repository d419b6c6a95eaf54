"""Plans in columns: the same as cell by cell, at the size of a laboratory's grids."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fula_fast.files import sealed
from fula_fast.store import Store
from fula_fast.study.cell import digest
from fula_fast.study.plan import Plan, plan
from fula_fast.study.spec import load_spec


def _beside(name: str):
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


CASES = _beside("plan_cases").CASES
objects = _beside("plan_by_objects")
RECORDED = json.loads(Path(__file__).with_name("plan_cases.json").read_text())
"""What the planner said of these specs when it still made an object for every cell; the memory and
the partition of their waves, when lanes first took turns."""
GIB = 2**30


def facts_of(planned: Plan) -> dict:
    cells = [c.to_json() | {"protocol": c.protocol.model_dump(mode="json")} for c in planned.cells]
    waves = [
        [w.id, [c.id for c in w.cells], _recorded(w.key), w.memory, w.flops, w.steps]
        for w in planned.waves
    ]
    return {
        "cells": len(cells), "waves": len(waves), "first": cells[0]["id"],
        "of_ids": digest([c["id"] for c in cells]), "of_cells": digest(cells),
        "of_waves": digest(waves), "notes": list(planned.notes),
    }  # fmt: skip


def _recorded(key) -> dict:
    """As it was recorded, before gradients could be combined in another way."""
    return {n: v for n, v in asdict(key).items() if (n, v) != ("combine", "sum")}


@pytest.mark.parametrize("name", CASES)
def test_plans_are_those_that_were_recorded(name):
    spec, more = CASES[name]
    assert facts_of(plan(load_spec(spec), **more)) == RECORDED[name]


@pytest.mark.parametrize("name", CASES)
def test_a_stored_plan_is_the_plan(tmp_path, name):
    spec, more = CASES[name]
    planned = plan(load_spec(spec), **more)
    Store.create(tmp_path / "run", {"of": name}, *planned.stored())
    store = Store.open(tmp_path / "run")
    back = Plan.from_stored(store.plan, store.planned)
    assert back == planned and back.notes == planned.notes
    assert list(store.cell_ids) == [cell.id for cell in planned.cells]
    assert store.waves() == {w.id: [c.id for c in w.cells] for w in planned.waves}
    last = planned.cells[-1]
    assert back.lanes.named(last.id) == last
    with pytest.raises(KeyError):
        back.lanes.named("0" * 16)


HALF = {"name": "half", "fula": 1, "slm": 1}
STAGED = {"name": "staged", "stages": [{"fula": 1}, {"hint": 1, "slm": 2}]}
COMBINED = {"name": "combined", "fula": 1, "hint": 1, "combine": "pcgrad"}
grids = st.fixed_dictionaries(
    {
        "front": st.sampled_from([["a"], ["a", "b"]]),
        "methods": st.lists(
            st.sampled_from(["dm", "hint", "slm", "fula", HALF, STAGED, COMBINED]),
            min_size=1, max_size=3, unique_by=str,
        ),
        "alpha": st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=3),
        "seeds": st.lists(st.integers(0, 3), min_size=1, max_size=2),
        "data_seeds": st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=2),
        "sites": st.sampled_from([["layer4.1"], [[1, 1], [4, 7], [4, 8]]]),
        "subset": st.lists(st.sampled_from([2, 10, "all"]), min_size=1, max_size=2),
        "shortcut": st.lists(st.sampled_from(["none", "both", "location"]), min_size=1, max_size=2),
        "weightings": st.lists(st.sampled_from(["uniform", "last", "cutoff=1"]), max_size=2),
        "axes": st.fixed_dictionaries(
            {},
            optional={
                "bn": st.just(["train", "eval"]),
                "init": st.just(["dm", "random"]),
                "dm_stats": st.just(["stale", "refreshed"]),
                "lr": st.lists(st.sampled_from([0.1, 0.2]), min_size=1, max_size=2),
                "fula_soft": st.just([False, True]),
            },
        ),
    }
)  # fmt: skip


@given(grids, st.sampled_from([None, GIB // 2, 2 * GIB]), st.sampled_from(["fp32", "bf16"]))
@settings(max_examples=25, deadline=None)
def test_plans_are_those_of_objects(grid, budget, precision):
    donors = {name: {"model": "resnet18", "width": 8, "seed": k} for k, name in enumerate("ab")}
    table = {"data": {"source": "digits", "size": 16}, "donors": donors}
    spec = load_spec({**table, "grid": {"end": "b", **grid}})
    planned = plan(spec, budget=budget, precision=precision)
    cells, merged = objects.cells_of(spec)
    assert list(planned.cells) == cells
    assert [cell.id for cell in planned.cells] == [cell.id for cell in cells]
    expected = objects.waves_of(spec, cells, budget, precision)
    found = [([c.id for c in w.cells], w.key, w.memory, w.flops) for w in planned.waves]
    assert found == expected
    notes = [note for note in planned.notes if "merged" in note]
    assert len(notes) == len(merged)
    for note, (count, methods, differences) in zip(notes, merged, strict=True):
        assert note.startswith(f"{count} cell") and ", ".join(methods) in note
        assert all(name in note for name in differences)


SCALE = """
import json, resource, sys, time
from pathlib import Path
from fula_fast.store import Store
from fula_fast.study.plan import Plan, plan
from fula_fast.study.spec import load_spec

folder, seeds = Path(sys.argv[1]), int(sys.argv[2])
donors = {"a": {"model": "resnet18"}, "b": {"model": "resnet18", "seed": 1}}
grid = {"front": "a", "end": "b", "sites": "all-pairs", "seeds": list(range(seeds))}
grid["methods"] = ["hint", "slm", "tlm", "fula"]
spec = load_spec({"data": {"source": "cifar10"}, "donors": donors, "grid": grid})
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.process_time()
planned = plan(spec, budget=20 * 2**30, precision="bf16", workers=16)
seconds, size = time.process_time() - start, peak() - before
store = Store.create(folder, {}, *planned.stored())
files = sum(path.stat().st_size for path in folder.iterdir())
back = Plan.from_stored(store.plan, store.planned)
assert list(back.waves[-1].cells) == list(planned.waves[-1].cells)
print(json.dumps([len(planned.lanes), len(planned.waves), seconds, size, files]))
"""


def planned_at(folder: Path, seeds: int) -> list:
    """Cells, waves, processor seconds, bytes of memory, bytes on disk; in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SCALE, str(folder), str(seeds)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_hundred_thousand_cells(tmp_path):
    cells, waves, seconds, memory, stored = planned_at(tmp_path / "run", 309)
    assert cells == 100_116 and waves >= 309
    assert seconds <= 2 and memory <= 200 * 2**20 and stored <= 3 * 2**20


@pytest.mark.slow
def test_a_million_cells(tmp_path):
    cells, waves, seconds, memory, stored = planned_at(tmp_path / "run", 3087)
    assert cells == 1_000_188 and waves >= 3087
    assert seconds <= 10 and memory <= GIB and stored <= 30e6


def test_a_wave_is_read_without_the_rest(tmp_path):
    """Damage elsewhere in the plan's cells is not even seen."""
    spec, more = CASES["one pair"]
    spec = spec | {"grid": spec["grid"] | {"seeds": list(range(90))}}
    planned = plan(load_spec(spec), **more)
    assert len(planned.lanes) == 36_450
    Store.create(tmp_path / "run", {}, *planned.stored())
    file = tmp_path / "run/plan.parquet"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    store = Store.open(tmp_path / "run")
    back = Plan.from_stored(store.plan, store.planned)
    assert tuple(back.waves[-1].cells) == tuple(planned.waves[-1].cells)
    for whole in (lambda: tuple(back.waves[0].cells), store.missing):
        with pytest.raises(sealed.Damaged, match=r"plan\.parquet' is damaged"):
            whole()


def test_a_plan_of_objects_is_refused(tmp_path):
    """The format before this one listed an object for every cell."""
    planned = plan(load_spec(CASES["one pair"][0]))
    Store.create(tmp_path, {}, *planned.stored())
    old = sealed.Kind(sealed.RUN_PLAN.name, sealed.RUN_PLAN.fix)
    sealed.write_json(tmp_path / "plan.json", old, {"cells": [{"id": "c"}]})
    with pytest.raises(sealed.Older, match="format 1.*reads 2 and later.*older fula_fast") as found:
        Store.open(tmp_path)
    assert "\n" not in str(found.value)


def test_cells_are_a_sequence():
    cells = plan(load_spec(CASES["seeds"][0])).cells
    listed = list(cells)
    assert cells[0] == listed[0] and cells[-1].id == listed[-1].id
    assert list(cells[3:7]) == listed[3:7] and list(cells[::-2]) == listed[::-2]
    assert cells[5:2] == () and len(cells[5:2]) == 0
    assert list(cells.take(np.array([4, 1]))) == [listed[4], listed[1]]
    assert cells == listed and cells != listed[:-1] and cells != [*listed[1:], listed[0]]
    with pytest.raises(IndexError):
        cells[len(cells)]
