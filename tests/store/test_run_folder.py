"""The run folder: atomic, resumable, honest about damage."""

from __future__ import annotations

import csv
import errno
import gc
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from fula_fast.errors import FulaError
from fula_fast.files import sealed
from fula_fast.store import COLUMNS, Store, StoreWarning, finished, shards, tables

_spec = importlib.util.spec_from_file_location(
    "damage", Path(__file__).parents[1] / "files/damage.py"
)
damage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(damage)

SPEC = {"name": "t", "epochs": 30, "donors": {"a": {"seed": 0, "width": 8}}, "seeds": [0, 1]}


PLAN = {"precision": "fp32"}


def cells(count: int = 6) -> dict:
    return {"id": [f"c{i}" for i in range(count)]}


def row(index: int, **values) -> dict:
    made = {"cell": f"c{index}", "front": "a", "end": "b", "front_site": index, "status": "ok"}
    return made | {"accuracy": index / 7, "seed": 0} | values


def stitch(index: int) -> dict[str, np.ndarray]:
    return {"weight": np.full((2, 3), index, np.float32), "bias": np.arange(2.0)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run", SPEC, PLAN, cells())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


class TestCells:
    def test_rows_come_back_in_plan_order_and_survive_reopening(self, store: Store) -> None:
        store.write("w1", [row(3), row(1)], {"c3": stitch(3), "c1": stitch(1)})
        store.write("w0", [row(0, status="failed", error="loss is nan at step 4")])
        again = Store.open(store.folder)
        assert [r["cell"] for r in again.rows()] == ["c0", "c1", "c3"]
        assert again.rows()[2] == row(3)
        assert (again.done(), again.failed()) == ({"c1", "c3"}, {"c0"})
        assert again.missing() == ["c0", "c2", "c4", "c5"]

    def test_ok_supersedes_failed_but_never_the_reverse(self, store: Store) -> None:
        store.write("w", [row(0, status="failed", error="first")])
        store.write("w", [row(0, status="failed", error="second")])
        assert store.rows()[0]["error"] == "second"
        store.write("x", [row(0, accuracy=0.5)])
        store.write("w", [row(0, status="failed", error="late")])
        assert [(r["status"], r["accuracy"]) for r in store.rows()] == [("ok", 0.5)]
        assert not store.failed()

    def test_a_process_sees_what_another_writes(self, store: Store) -> None:
        other = Store.create(store.folder, SPEC, PLAN, cells())
        other.write("w", [row(2)])
        assert store.done() == {"c2"}

    def test_stitches_round_trip_numpy_torch_and_slices(self, store: Store) -> None:
        flat = torch.arange(12.0)
        stitches = {
            "c0": stitch(7),
            "c1": {"weight": flat[:6].view(2, 3), "bias": flat[6:8]},
            "c2": {"weight": flat[2:8].view(2, 3).t(), "half": torch.ones(3, dtype=torch.bfloat16)},
        }
        store.write("w", [row(i) for i in range(3)], stitches)
        assert torch.equal(store.stitch("c0")["bias"], torch.arange(2.0, dtype=torch.float64))
        assert torch.equal(store.stitch("c1")["weight"], flat[:6].view(2, 3))
        assert torch.equal(store.stitch("c2")["weight"], flat[2:8].view(2, 3).t())
        assert store.stitch("c2")["half"].dtype is torch.bfloat16
        with pytest.raises(FulaError, match="no stitch of cell 'c5'"):
            store.stitch("c5")

    def test_statistics_lie_beside_the_stitch(self, store: Store) -> None:
        moved = {"front.stages.0.bn.running_mean": np.arange(3.0)}
        store.write("w", [row(0), row(1)], {"c0": stitch(1), "c1": stitch(2)}, {"c0": moved})
        (found,) = store.statistics("c0").items()
        assert found[0] in moved and found[1].tolist() == [0, 1, 2]
        assert set(store.stitch("c0")) == {"weight", "bias"}
        assert store.statistics("c1") == store.statistics("c5") == {}

    def test_a_shard_in_its_place_keeps_its_stitches(self, store: Store, monkeypatch) -> None:
        """The flush of the shard's folder fails after the rename: an error, but nothing is lost."""
        flush = os.fsync

        def fails(descriptor):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if Path(path).parent.name == "cells" and list(Path(path).glob("*.json")):
                raise OSError(errno.EIO, "Input/output error")
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(FulaError, match="cannot write .*Input/output error"):
            store.write("w", [row(0)], {"c0": stitch(3)})
        monkeypatch.undo()
        again = Store.open(store.folder)
        assert again.done() == {"c0"} and again.stitch("c0")["weight"].max() == 3

    def test_scalars_are_unwrapped_and_non_finite_numbers_are_null(self, store: Store) -> None:
        values = {"loss": float("nan"), "kappa": np.float32(0.5), "terms": [np.inf, 1.0]}
        store.write("w", [row(0, epochs=torch.tensor(3), **values)])
        (read,) = Store.open(store.folder).rows()
        assert (read["loss"], read["kappa"], read["terms"]) == (None, 0.5, [None, 1.0])
        assert read["epochs"] == 3

    @pytest.mark.parametrize(
        ("rows", "stitches", "message"),
        [
            ([{"cell": "zz", "status": "ok"}], {}, "not in the plan"),
            ([{"cell": "c0", "status": "fine"}], {}, "none of"),
            ([{"cell": "c0", "status": "ok"}], {"c1": {}}, "without a row"),
        ],
    )
    def test_a_callers_mistakes_are_refused(self, store, rows, stitches, message) -> None:
        with pytest.raises(ValueError, match=message):
            store.write("w", rows, stitches)
        assert not (store.folder / "cells").exists()

    def test_a_wave_id_must_be_a_file_name(self, store: Store) -> None:
        with pytest.raises(ValueError, match="file name"):
            store.write("../w", [row(0)])


class TestRefusals:
    def test_another_spec_is_refused_with_the_difference(self, store: Store) -> None:
        donors = {"a": {"seed": 5, "width": 8}}
        with pytest.raises(FulaError) as caught:
            Store.create(
                store.folder, {**SPEC, "epochs": 5, "donors": donors, "x": 1}, PLAN, cells()
            )
        message = str(caught.value)
        assert "(epochs: 30 -> 5; donors.a.seed: 0 -> 5; x: unset -> 1)" in message
        assert "seeds" not in message and "\n" not in message

    def test_the_same_spec_keeps_the_stored_plan(self, store: Store) -> None:
        spec = {**SPEC, "seeds": (0, 1)}
        again = Store.create(store.folder, spec, {"precision": "x"}, cells())
        assert again.plan["precision"] == "fp32"

    def test_other_cells_for_the_same_spec_are_refused(self, store: Store) -> None:
        with pytest.raises(FulaError, match="other cells"):
            Store.create(store.folder, SPEC, PLAN, cells(5))

    def test_other_donors_are_refused(self, store: Store) -> None:
        store.write("w", [row(0, front_hash="aa", end_hash="bb")])
        store.check_donors({"a": "aa", "b": "bb", "unused": "cc"})
        with pytest.raises(FulaError, match="donor 'b' has content hash xx.*used bb"):
            store.check_donors({"a": "aa", "b": "xx"})

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(FulaError, match="holds no run"):
            Store.open(tmp_path)

    def test_a_file_in_the_folders_place(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("x")
        with pytest.raises(FulaError, match="cannot write"):
            Store.create(tmp_path / "run", SPEC, PLAN, cells())


class TestDamage:
    @pytest.mark.parametrize("kept", [0, 1, 120, -3])
    def test_a_truncated_shard_is_named_missing_and_redone(self, store: Store, kept: int) -> None:
        store.write("w", [row(0), row(1)])
        store.write("v", [row(2)])
        path = only(store.folder, "cells/*/w-*.json")
        path.write_bytes(path.read_bytes()[:kept])
        again = Store.open(store.folder)
        with pytest.warns(StoreWarning, match=path.name):
            assert again.missing() == ["c0", "c1", "c3", "c4", "c5"]
        again.write("w", [row(0), row(1)])
        assert Store.open(store.folder).done() == {"c0", "c1", "c2"}  # and no warning any more

    def test_an_altered_number_is_noticed(self, store: Store) -> None:
        store.write("w", [row(0, accuracy=0.25)])
        path = only(store.folder, "cells/*/w-*.json")
        path.write_text(path.read_text().replace("0.25", "0.95"))
        with pytest.warns(StoreWarning, match="digest"):
            assert not Store.open(store.folder).done()

    def test_truncated_stitches_make_their_cells_missing(self, store: Store) -> None:
        store.write("w", [row(0)], {"c0": stitch(0)})
        path = only(store.folder, "stitches/*/w-*.safetensors")
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.warns(StoreWarning, match="stitches"):
            assert not Store.open(store.folder).done()

    def test_the_table_is_made_without_a_damaged_shard(self, store: Store) -> None:
        store.write("w", [row(0)])
        store.write("v", [row(2)])
        path = only(store.folder, "cells/*/w-*.json")
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.warns(StoreWarning, match=path.name):
            assert Store.open(store.folder).table()["cell"].to_pylist() == ["c2"]

    def test_altered_stitches_are_found_where_all_are_read(self, store: Store) -> None:
        for k in (0, 1):
            store.write(f"w{k}", [row(k)], {f"c{k}": stitch(k)})
        store.write("v", [row(2)])
        path = only(store.folder, "stitches/*/w0-*.safetensors")
        damage.last_bit(path)
        again = Store.open(store.folder)
        assert len(again.done()) == 3 and again.stitch("c1")["weight"].max() == 1
        with pytest.warns(StoreWarning, match=f"{path.name}.* it was altered"):
            again.verify_stitches()
        assert again.missing() == ["c0", "c3", "c4", "c5"]
        assert [r["cell"] for r in again.rows()] == ["c1", "c2"]
        with pytest.raises(FulaError, match="no stitch of cell 'c0'; see its results.csv"):
            again.stitch("c0")

    def test_files_of_another_run_are_named(self, store: Store, tmp_path: Path) -> None:
        other = Store.create(tmp_path / "other", SPEC, {"precision": "bf16"}, cells(3))
        other.checkpoints.save("w", {"x": np.ones(2)}, {"epoch": 1})
        (store.folder / "checkpoints").mkdir()
        for name in ("checkpoints/w.safetensors", "plan.json"):
            damage.exchanged(store.folder / name, other.folder / name)
        with pytest.warns(StoreWarning, match="it is of another wave or run; the wave starts anew"):
            assert store.checkpoints.load("w") is None
        assert not list(store.folder.glob("checkpoints/*"))
        with pytest.raises(FulaError, match=r"plan.json' is damaged: it does not belong to spec"):
            Store.open(store.folder)

    def test_how_far_a_damaged_checkpoint_came_is_not_known(self, store: Store) -> None:
        assert store.checkpoints.epochs_of("w") is None
        store.checkpoints.save("w", {"m": np.ones(5)}, {"epoch": 3})
        assert store.checkpoints.epochs_of("w") == 3
        path = only(store.folder, "checkpoints/w.safetensors")
        damage.changed(path, lambda head: head | {"meta": "["})
        assert store.checkpoints.epochs_of("w") is None

    def test_a_truncated_checkpoint_is_named_and_ignored(self, store: Store) -> None:
        store.checkpoints.save("w", {"m": np.ones(5)}, {"epoch": 3})
        path = only(store.folder, "checkpoints/w.safetensors")
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.warns(StoreWarning, match="w.safetensors"):
            assert store.checkpoints.load("w") is None


def test_checkpoints_are_replaced_and_dropped(store: Store) -> None:
    assert store.checkpoints.load("w") is None
    for epoch in (0, 1):
        store.checkpoints.save("w", {"flat": torch.full((3,), float(epoch))}, {"epoch": epoch})
    tensors, meta = store.checkpoints.load("w")
    assert torch.equal(tensors["flat"], torch.ones(3)) and meta == {"epoch": 1}
    store.checkpoints.drop("w")
    store.checkpoints.drop("w")
    assert store.checkpoints.load("w") is None


def test_what_killed_processes_left_is_tidied_when_nobody_works(store: Store) -> None:
    store.write("w", [row(k) for k in range(5)], {"c0": stitch(0)})
    store.checkpoints.save("v", {"x": np.ones(2)}, {"epoch": 1})
    kept = files(store.folder)
    orphan = only(store.folder, "stitches/*").parent / "ab" / "v-0000-0.safetensors"
    orphan.parent.mkdir()
    orphan.write_bytes(b"half")
    (store.folder / "writers").mkdir()
    note = {"host": "elsewhere", "pid": 1, "started": 0.0, "wave": "v"}
    sealed.write_json(store.folder / "writers/elsewhere-1.json", sealed.WRITER, note)
    store.tidy()
    assert orphan.exists()
    (store.folder / "writers/elsewhere-1.json").unlink()
    store.tidy()
    assert files(store.folder) == kept  # with the checkpoint: c5 is missing
    store.write("v", [row(5)])
    store.tidy()
    assert not list(store.folder.glob("checkpoints/*")) and store.stitch("c0")["weight"].max() == 0


def test_a_run_that_was_moved_away_is_not_begun_again(store: Store) -> None:
    store.folder.rename(store.folder.with_name("moved"))
    for write in (
        lambda: store.write("w", [row(0)]),
        lambda: store.checkpoints.save("w", {}, {}),
        lambda: store.add_launch({}),
    ):
        with pytest.raises(FulaError, match="no longer the folder of this run: .* move it back"):
            write()
    assert not store.folder.exists()


def test_a_cell_that_was_done_twice_has_the_stitch_that_there_is(store: Store) -> None:
    store.write("w", [row(0)])
    store.write("w", [row(0)], {"c0": stitch(2)})
    assert Store.open(store.folder).stitch("c0")["weight"].max() == 2


def test_a_program_that_collects_no_garbage_is_left_so(store: Store) -> None:
    gc.disable()
    try:
        store.table()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_launches_come_back_in_order(store: Store) -> None:
    store.add_launch({"torch": "2"})
    store.add_launch({"torch": "3"})
    assert [launch["torch"] for launch in store.launches()] == ["2", "3"]


def _resealed(path: Path, change) -> None:
    """Another content with the digest of that, as no accident makes it."""

    def resealed(found: dict) -> dict:
        change(found["content"])
        return found | {"digest": sealed.digest_of(found["content"])}

    damage.changed(path, resealed)


@pytest.mark.parametrize("started", [None, 3, "yesterday"])
def test_a_launch_without_a_time_is_left_out(store: Store, started) -> None:
    store.add_launch({})
    note = only(store.folder, "launches/*.json")
    _resealed(note, lambda content: content.update(started=started))
    with pytest.warns(StoreWarning, match="note of a launch .* its 'started' is wrong"):
        assert store.launches() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"written": "soon"}, "its 'written' is wrong"),
        ({"cells": [3]}, "its 'cells.0' is wrong"),
        ({"ok": [True, True]}, "it tells of 1 cells and 2 outcomes"),
        ({"donors": [["a", {}]]}, "its 'donors.0.1' is wrong"),
        ({"run": "another"}, "it is of another run"),
        ({"rows": "0"}, "its rows do not match their digest"),
    ],
)
def test_shards_of_another_form_count_as_missing(store: Store, change, reason) -> None:
    store.write("w", [row(0)])
    _resealed(only(store.folder, "cells/*/*.json"), lambda content: content.update(change))
    with pytest.warns(StoreWarning, match=f"shard of finished cells .* is damaged: {reason}"):
        assert Store.open(store.folder).rows() == []


@pytest.mark.parametrize(
    "rows",
    ["", "[]", "{}", '{"same": 3, "each": [{}]}', '{"same": {}, "each": []}',
     '{"same": {"cell": "other", "status": "ok"}, "each": [{}]}',
     '{"same": {"status": "ok"}, "each": [{}]}', '{"same": {}, "each": {"cell": "c0"}}'],
)  # fmt: skip
def test_rows_that_are_not_what_their_shard_tells_are_refused(store: Store, rows) -> None:
    store.write("w", [row(0)])
    path = only(store.folder, "cells/*/*.json")
    found, _ = shards.read_shard(path, store.id, path.parent)
    with pytest.raises(FulaError, match=f"'{path}' tells of other rows than it holds.*delete it"):
        shards.rows_of(found, rows.encode())


class TestTables:
    def test_columns_types_and_equal_values(self, store: Store) -> None:
        extra = {"version_torch": "2.11", "rank": 3, "terms": [1.0, 2.5], "quick": True}
        store.write("w", [row(0, kappa=1 / 3, alpha=0, **extra)])
        store.write("v", [row(1, status="failed", error='a "quoted",\nerror', accuracy=None)])
        store.write_tables()
        table = parquet.read_table(store.folder / "results.parquet")
        known = list(COLUMNS)
        assert table.column_names == [*known, "version_torch", "quick", "rank", "terms"]
        types = {f.name: str(f.type) for f in table.schema}
        assert {n: types[n] for n in known} == COLUMNS
        assert (types["rank"], types["terms"], types["quick"]) == (
            "double",
            "list<element: double>",
            "bool",
        )
        with (store.folder / "results.csv").open(newline="") as file:
            for text, value in zip(csv.DictReader(file), table.to_pylist(), strict=True):
                assert text == {name: as_csv(v) for name, v in value.items()}
                for name in ("accuracy", "kappa"):
                    assert value[name] is None or float(text[name]) == value[name]

    def test_the_schema_does_not_depend_on_the_values(self, store: Store) -> None:
        store.write_tables()
        empty = parquet.read_table(store.folder / "results.parquet")
        store.write("w", [row(0)])
        store.write_tables()
        assert parquet.read_table(store.folder / "results.parquet").schema.equals(empty.schema)

    def test_a_value_of_another_type_is_refused(self, store: Store) -> None:
        store.write("w", [row(0, accuracy="high")])
        with pytest.raises(FulaError, match="column 'accuracy'"):
            store.write_tables()

    @pytest.mark.parametrize(
        "values",
        [
            [1, 2.5, None, 3],
            [True, None, False, True],
            [True, None, 0.5, 2],
            [None, None, None, [1.0, 2.0]],
            [[1.0], "text", None, 3],
            [{"a": 1}, None, 7, True],
            [None, None, None, None],
        ],
    )
    def test_batches_make_the_table_that_all_rows_make(self, store, monkeypatch, values) -> None:
        """Also where a column's type shows late, and where a failed row was tried again."""
        monkeypatch.setattr(tables, "_BATCH", 1)
        monkeypatch.setattr(finished, "_AT_HAND", 1)
        store.write("w", [row(3, status="failed", error="first"), row(0, odd=values[0])])
        for index in (2, 1, 3):
            store.write("v", [row(index, odd=values[index], **{f"version_{index}": "1"})])
        expected = tables.table(store.results())
        for reader in (store, Store.open(store.folder)):
            assert reader.table().equals(expected)
        assert expected["cell"].to_pylist() == ["c0", "c1", "c2", "c3"]
        assert [r["cell"] for r in store.rows({"c3", "c1"})] == ["c1", "c3"]

    def test_whole_matrices_have_their_numbers_in_the_tables(self, store: Store) -> None:
        places = [(i, j) for i in (1, 2) for j in (1, 2)]
        rows = [
            row(k, front_site=i, end_site=j, front_sites=2, end_sites=2, method="slm")
            for k, (i, j) in enumerate(places)
        ]
        store.write("w", [*rows, row(4, method="tlm")])
        found = store.table()
        assert found.equals(tables.table(store.results()))
        assert found["self_accuracy"].to_pylist() == [0.5, 0.5, 0.5, 0.5, None]


def as_csv(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if value == 0 or value == 1 else f"{value}".removesuffix(".0")


WRITER = """
import sys, json
from fula_fast.store import Store
import numpy as np
cells = {"id": [f"c{i}" for i in range(60)]}
store = Store.create(sys.argv[1], {"name": "kill"}, {}, cells)
missing = set(store.missing())
for wave in range(20):
    rows = [{"cell": f"c{i}", "status": "ok", "front_site": i, "accuracy": 1 / (i + 2)}
            for i in range(3 * wave, 3 * wave + 3) if f"c{i}" in missing]
    if rows:
        store.checkpoints.save(f"w{wave}", {"x": np.full(50_000, wave)}, {"wave": wave})
        store.write(f"w{wave}", rows, {r["cell"]: {"weight": np.full(5000, 1.0)} for r in rows})
        store.write_tables()
        store.checkpoints.drop(f"w{wave}")
store.write_tables()
"""


def write_all(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(folder)])


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    assert write_all(tmp_path / "whole").wait() == 0
    draw, folder, kills = random.Random(5), tmp_path / "killed", 0
    while kills < 3:
        writer = write_all(folder)
        have = len(files(folder)) if folder.exists() else 0
        while writer.poll() is None and len(files_or_none(folder)) < have + draw.randint(2, 9):
            time.sleep(0.001)
        if writer.poll() is not None:
            break
        time.sleep(draw.random() * 0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        kills += 1
        for row in Store.open(folder).rows() if (folder / "spec.json").exists() else ():
            assert row["accuracy"] == 1 / (int(row["cell"][1:]) + 2)
    assert kills >= 2
    assert write_all(folder).wait() == 0
    for name in ("results.csv", "results.parquet"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def files_or_none(folder: Path) -> set[str]:
    try:
        return files(folder)
    except FileNotFoundError:  # a name went away while we listed
        return set()


def unprivileged(target, folder: Path) -> str:
    """The message of the `FulaError` that `target` raises as a user who may not write `folder`."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            target(folder)
            message = "no error"
        except FulaError as error:
            message = str(error)
        except BaseException as error:  # noqa: BLE001 - the parent asserts on it
            message = f"other: {error!r}"
        os.write(write, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(read, 65536).decode()


class TestUnwritable:
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_read_only_folder(self, tmp_path: Path) -> None:
        for folder in (tmp_path, *list(tmp_path.parents)[:2]):
            folder.chmod(0o755)
        run = tmp_path / "run"
        Store.create(run, SPEC, PLAN, cells())
        run.chmod(0o555)
        before = files(tmp_path)

        def write(folder: Path) -> None:
            Store.create(folder, SPEC, PLAN, cells()).write("w", [row(0)], {"c0": stitch(0)})

        assert "cannot write" in unprivileged(write, run)
        assert "Permission denied" in unprivileged(
            lambda f: Store.create(f / "x", {}, PLAN, cells()), run
        )
        assert "Permission denied" in unprivileged(lambda f: Store.open(f).logs, run)
        run.chmod(0o755)
        assert files(tmp_path) == before

    @pytest.mark.parametrize("limit", [0, 2_000, 40_000])
    def test_a_full_disk_leaves_nothing_half_written(self, store: Store, limit: int) -> None:
        store.write("w", [row(0)], {"c0": stitch(0)})
        before, old = files(store.folder), resource.getrlimit(resource.RLIMIT_FSIZE)
        big = {f"c{i}": {"weight": np.zeros(3000)} for i in (1, 2)}
        rows = [row(i, error="x" * 40_000) for i in (1, 2)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(FulaError, match="cannot write"):
                store.write("v", rows, big)
            with pytest.raises(FulaError, match="cannot write"):
                store.checkpoints.save("v", {"x": np.zeros(9000)}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert files(store.folder) == before
        assert store.done() == {"c0"}

    def test_temporary_files_of_dead_writers_are_removed_in_time(self, store: Store) -> None:
        old, young = (store.folder / f".x.json.{n}.tmp" for n in "ab")
        for path in (old, young):
            path.write_text("half")
        os.utime(old, (time.time() - 2 * 86_400,) * 2)
        Store.create(store.folder, SPEC, PLAN, cells())
        assert young.exists() and not old.exists()


def test_a_shard_of_an_older_format_is_refused(store: Store) -> None:
    """It is no damage, which would be done again."""
    store.write("w", [row(0)])
    path = only(store.folder, "cells/*/w-0000-*.json")
    sealed.write_json(path, replace(sealed.SHARD, format=1), {"rows": [row(0)]}, indent=None)
    with pytest.raises(sealed.Older, match="has format 1, and this version reads 2"):
        Store.open(store.folder).done()


def test_what_all_rows_say_stands_there_once_and_is_read_to_the_last_bit(store: Store) -> None:
    rows = [row(k, same=0.1, zero=-0.0, one=1, kind=["x"]) for k in range(3)]
    rows[2] |= {"zero": 0.0, "one": 1.0, "own": None}
    store.write("w", rows)
    content = json.loads(only(store.folder, "cells/*/w-0000-*.json").read_text())["rows"]
    assert {"same", "kind", "status"} <= content["same"].keys()
    assert not {"zero", "one", "own", "cell"} & content["same"].keys()
    assert list(map(repr, _sorted(Store.open(store.folder).rows()))) == list(
        map(repr, _sorted(rows))
    )


def _sorted(rows: list[dict]) -> list[dict]:
    return [dict(sorted(each.items())) for each in rows]


def test_shards_are_plain_json(store: Store) -> None:
    store.write("w", [row(0), row(1)])
    content = json.loads(only(store.folder, "cells/*/w-0000-*.json").read_text())
    assert content["content"]["cells"] == [r["cell"] for r in content["rows"]["each"]]
    assert content["content"]["cells"] == ["c0", "c1"]
