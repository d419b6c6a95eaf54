"""Rows of experiments: derived columns, choosing, seeds and matrices."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.reproduce.evidence import Table, gathered


def _row(**columns):
    return {"front": "cifar10_1", "end": "cifar10_0", "status": "ok", "seed": 0} | columns


def _table(*rows, part="p") -> Table:
    return gathered({part: rows})


def test_failed_rows_are_left_out_and_parts_are_named():
    table = gathered({"a": [_row(x=1), _row(status="failed")], "b": [_row(x=2)]})
    assert [(r["part"], r["x"]) for r in table.rows] == [("a", 1), ("b", 2)]


def test_donors_tell_pair_and_kind_also_under_another_architecture():
    (row,) = _table(_row(front="cifar10_1_robust-front")).rows
    assert row["kind"] == "robust-plain" and row["pair"] == "cifar10_1_robust → cifar10_0"


def test_shortcut_gain_and_what_it_costs_on_clean_images():
    cell = {"front_site": 2, "end_site": 2, "method": "tlm"}
    table = _table(
        _row(shortcut="none", accuracy=0.9, **cell),
        _row(shortcut="pixel+random", accuracy=0.95, clean_accuracy=0.7, **cell),
        _row(shortcut="pixel+random", accuracy=0.95, clean_accuracy=0.7, **cell | {"end_site": 3}),
    )
    plain, marked, alone = table.rows
    assert marked["shortcut_gain"] == pytest.approx(0.25)
    assert marked["clean_loss"] == pytest.approx(0.2)
    assert "clean_loss" not in plain and "clean_loss" not in alone  # no partner to compare with


@pytest.mark.parametrize(
    "subset, classes, full, few, several",
    [(1, 1, False, True, False), (5, 5, False, True, True), (9, 9, False, False, True)]
    + [(None, 10, True, False, False)],
)
def test_subsets(subset, classes, full, few, several):
    (row,) = _table(_row(subset=subset)).rows
    assert [row[c] for c in ("classes", "full", "few", "several")] == [classes, full, few, several]


def test_accuracy_is_lost_against_the_identity_stitch_where_there_is_one():
    table = gathered(
        {
            "main": [_row(accuracy=0.80, end_accuracy=0.99)],
            "identity": [_row(accuracy=0.90, end_accuracy=0.99)],
        }
    )
    assert table.rows[0]["accuracy_loss"] == pytest.approx(0.1)
    (alone,) = _table(_row(accuracy=0.80, end_accuracy=0.85)).rows
    assert alone["accuracy_loss"] == pytest.approx(0.05)


def test_places_are_relative_depths():
    pairs = [(1, 9), (5, 5), (9, 1), (6, 9), (3, 4)]
    rows = [_row(front_site=i, end_site=j, front_sites=9, end_sites=9) for i, j in pairs]
    table = _table(*rows)

    def chosen(**conditions):
        found = table.where(conditions).rows
        return [(r["front_site"], r["end_site"]) for r in found]

    assert chosen(side="deep to shallow") == chosen(side="bottom left") == [(9, 1)]
    assert chosen(side="shallow to deep") == [(1, 9), (6, 9), (3, 4)]
    assert chosen(depth="last") == chosen(depth="deep") == [(1, 9), (6, 9)]
    assert chosen(depth="shallow") == [(9, 1), (3, 4)]


def test_numbers_are_reduced_over_chosen_rows_and_missing_ones_ignored():
    table = _table(*(_row(m=m, a=a) for m, a in [("x", 1.0), ("x", None), ("y", 5.0), ("z", 9.0)]))
    assert table.reduced({"column": "a", "m": ["x", "y"]}) == 3.0
    assert table.reduced({"column": "a", "reduce": "max"}) == 9.0
    assert np.isnan(table.reduced({"column": "a", "m": "none"}))


def test_seeds_are_taken_apart_and_rows_without_one_belong_to_all():
    table = _table(_row(a=1.0, seed=0), _row(a=3.0, seed=1), _row(a=10.0, seed=None))
    sums = table.per_seed(lambda t: float(t.values("a").sum()))
    assert sums.tolist() == [11.0, 13.0]
    assert _table(_row(a=2.0, seed=None)).per_seed(lambda t: t.reduced({"column": "a"})) == [2.0]


def test_a_matrix_is_the_mean_over_seeds():
    sites = {"front_sites": 2, "end_sites": 2}
    cells = [(1, 2, 0.2), (1, 2, 0.4), (2, 2, 1.0)]
    matrix = _table(*(_row(front_site=i, end_site=j, accuracy=a, **sites) for i, j, a in cells))
    found = matrix.matrix()
    assert found[0, 1] == pytest.approx(0.3) and found[1, 1] == 1.0 and np.isnan(found[:, 0]).all()
