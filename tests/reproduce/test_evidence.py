"""Rows of experiments: derived columns, choosing, seeds and matrices."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.reproduce.evidence import Evidence, Untestable, gathered


def _row(**columns):
    return {"front": "cifar10_1", "end": "cifar10_0", "status": "ok", "seed": 0} | columns


def _table(*rows, part="p") -> Evidence:
    return gathered({part: rows})


def test_failed_rows_are_left_out_and_parts_are_named():
    table = gathered({"a": [_row(x=1), _row(status="failed")], "b": [_row(x=2)]})
    assert [(r["part"], r["x"]) for r in table.rows] == [("a", 1), ("b", 2)]


def test_donors_tell_pair_and_kind():
    (row,) = _table(_row(front="cifar10_1_robust")).rows
    assert (row["kind"], row["pair"]) == ("robust-plain", "cifar10_1_robust → cifar10_0")


def test_a_front_of_another_architecture_is_not_its_namesake():
    own, other = _table(_row(front="cifar10_0"), _row(front="cifar10_0-front")).rows
    assert own["self"] and own["pair"] == "cifar10_0 → cifar10_0"
    assert not other["self"] and other["front"] == "cifar10_0" and other["kind"] == "plain-plain"
    assert other["pair"] == "cifar10_0 (other architecture) → cifar10_0"


def test_what_a_shortcut_gains_and_costs_on_clean_images():
    cell = {"front_site": 2, "end_site": 2, "method": "tlm"}
    seen = {"shortcut": "pixel+random", "accuracy": 0.95, "clean_accuracy": 0.7}
    table = _table(
        _row(shortcut="none", accuracy=0.9, **cell),
        _row(**seen, rolled_accuracy=0.6, **cell),
        _row(**seen, **cell | {"end_site": 3}),
    )
    plain, marked, alone = table.rows
    assert marked["shortcut_gain"] == pytest.approx(0.25)
    assert marked["exploited"] == pytest.approx(0.35)  # a wrong marker hides as much
    assert marked["clean_loss"] == pytest.approx(0.2)
    assert "clean_loss" not in plain and "clean_loss" not in alone  # no partner to compare with
    assert "exploited" not in alone


@pytest.mark.parametrize(
    "accuracy, outside, surplus",
    [(0.7, 0.0, -0.2), (0.6, 0.0, -0.3), (0.5, 0.1, -0.4), (0.95, 0.05, 0.05), (None, None, None)],
)
def test_how_far_a_stitched_model_is_from_the_range_of_its_donors(accuracy, outside, surplus):
    donors = {"front_accuracy": 0.6, "end_accuracy": 0.9}
    robust = {"robust_accuracy": accuracy, "front_robust_accuracy": 0.6, "end_robust_accuracy": 0.9}
    (row,) = _table(_row(accuracy=accuracy, **donors, **robust)).rows
    assert row["outside"] == pytest.approx(outside) and row["robust_outside"] == row["outside"]
    assert row["surplus"] == pytest.approx(surplus)
    (row,) = _table(_row(accuracy=0.7, end_accuracy=0.9)).rows
    assert row["outside"] is row["robust_outside"] is None


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
    assert chosen(side="top right") == [(1, 9)]
    assert (chosen(side="near above"), chosen(side="near below")) == ([(3, 4)], [])
    assert chosen(depth="last") == chosen(depth="deep") == [(1, 9), (6, 9)]
    assert chosen(depth="shallow") == [(9, 1), (3, 4)]


def test_numbers_are_reduced_over_chosen_rows_and_missing_ones_ignored():
    table = _table(*(_row(m=m, a=a) for m, a in [("x", 1.0), ("x", None), ("y", 5.0), ("z", 9.0)]))
    assert table.reduced({"column": "a", "m": ["x", "y"]}) == 3.0
    assert table.reduced({"column": "a", "reduce": "max"}) == 9.0
    with pytest.raises(Untestable, match="no row has 'a' where m = none"):
        table.reduced({"column": "a", "m": "none"})


def test_seeds_are_taken_apart_and_rows_without_one_belong_to_all():
    table = _table(_row(a=1.0, seed=0), _row(a=3.0, seed=1), _row(a=10.0, seed=None))
    sums = table.per_seed(lambda t: float(t.values("a").sum()))
    assert sums.tolist() == [11.0, 13.0]
    assert _table(_row(a=2.0, seed=None)).per_seed(lambda t: t.reduced({"column": "a"})) == [2.0]


def test_seeds_without_a_number_are_left_out_but_one_must_have_it_where_demanded():
    table = _table(_row(a=1.0, seed=0), _row(b=3.0, seed=1))
    for found in (table.per_seed, table.demanded):
        assert found(lambda t: t.reduced({"column": "a"})).tolist() == [1.0]
    assert table.per_seed(lambda t: t.reduced({"column": "c"})).size == 0
    with pytest.raises(Untestable, match="no row has 'c'"):
        table.demanded(lambda t: t.reduced({"column": "c"}))


def test_a_matrix_is_the_mean_over_seeds():
    sites = {"front_sites": 2, "end_sites": 2}
    cells = [(1, 2, 0.2), (1, 2, 0.4), (2, 2, 1.0)]
    matrix = _table(*(_row(front_site=i, end_site=j, accuracy=a, **sites) for i, j, a in cells))
    found = matrix.matrix()
    assert found[0, 1] == pytest.approx(0.3) and found[1, 1] == 1.0 and np.isnan(found[:, 0]).all()
