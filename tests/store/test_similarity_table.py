"""Similarity in a run's folder: a pair's file counts only where it is that pair's, of this run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pyarrow import csv, parquet

from fula_fast.errors import FulaError
from fula_fast.store import Store, StoreWarning
from fula_fast.store.similarity_table import (
    check_same,
    matrix_of,
    missing_pairs,
    read_pair,
    similarity_rows,
    write_pair,
    write_similarity,
)

PAIRS = [("a", "b"), ("b", "b")]
FACTS = {"front": "00", "images": "11"}


def row(pair, i: int, j: int, value: float | None) -> dict:
    sites = {"front_site": i, "end_site": j}
    return {"front": pair[0], "end": pair[1], **sites, "measure": "kappa", "value": value}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    plan = {"similarity": {"pairs": PAIRS}}
    return Store.create(tmp_path / "run", {"name": "t"}, plan, {"id": []})


def test_a_file_of_another_pair_or_run_counts_as_missing(store, tmp_path):
    write_pair(store, PAIRS[0], FACTS, [row(PAIRS[0], 1, 1, 0.5)])
    (first,) = store.folder.glob("similarity/*.json")
    write_pair(store, PAIRS[1], FACTS, [row(PAIRS[1], 1, 1, 0.25)])
    (second,) = set(store.folder.glob("similarity/*.json")) - {first}
    assert not missing_pairs(store) and [r["value"] for r in similarity_rows(store)] == [0.5, 0.25]
    shutil.copyfile(first, second)
    with pytest.warns(StoreWarning, match=f"{second.name}.* it is of another pair or run"):
        assert missing_pairs(store) == [PAIRS[1]]
    other = Store.create(tmp_path / "other", {"name": "u"}, store.plan, {"id": []})
    shutil.copytree(store.folder / "similarity", other.folder / "similarity")
    with pytest.warns(StoreWarning, match=f"{first.name}.* it is of another pair or run"):
        assert read_pair(other, PAIRS[0]) is None


def test_other_donors_are_refused_for_finished_pairs_alone(store):
    write_pair(store, PAIRS[0], FACTS, [])
    check_same(store, PAIRS[0], FACTS)
    check_same(store, PAIRS[1], FACTS | {"front": "22"})
    with pytest.raises(
        FulaError, match="front of the finished pair a, b .* content 00, and now 22"
    ):
        check_same(store, PAIRS[0], FACTS | {"front": "22"})


def test_tables_have_the_rows_and_the_matrix_their_places(store):
    rows = [row(PAIRS[0], i, j, None if i == j else 10 * i + j) for i in (1, 2) for j in (1, 2, 3)]
    write_pair(store, PAIRS[0], FACTS, rows)
    write_similarity(store)
    values = [None if r["value"] is None else float(r["value"]) for r in rows]
    for name, read in (("parquet", parquet.read_table), ("csv", csv.read_csv)):
        found = read(store.folder / f"similarity.{name}")
        assert (
            found["value"].to_pylist() == values and found["end_site"].to_pylist() == [1, 2, 3] * 2
        )
    expected = [[np.nan, 12, 13], [21, np.nan, 23]]
    assert np.array_equal(matrix_of(rows, "value"), expected, equal_nan=True)
    outputs = [row(PAIRS[0], None, None, 0.5)]
    assert matrix_of(outputs, "value").tolist() == [[0.5]]


def test_a_run_without_similarity_has_no_table(tmp_path):
    store = Store.create(tmp_path / "run", {"name": "t"}, {}, {"id": []})
    write_similarity(store)
    assert not missing_pairs(store) and not list(store.folder.glob("similarity*"))
