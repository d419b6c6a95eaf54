"""Claims: each test against a table whose answer is plain, and what makes a claim hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from fula_fast.errors import FulaError
from fula_fast.reproduce import claims
from fula_fast.reproduce.claims import FAILS, HOLDS, UNTESTED, judged, rank_correlation
from fula_fast.reproduce.evidence import gathered
from fula_fast.reproduce.recipe import ClaimSpec


def _table(rows):
    usual = {"front": "b", "end": "a", "status": "ok", "seed": 0, "front_sites": 9, "end_sites": 9}
    return gathered({"p": [usual | row for row in rows]})


def _judged(test, args, rows):
    return judged(ClaimSpec(says="so", test=test, args=args), _table(rows), "Fig. 0")


METHODS = [{"method": m, "accuracy": a} for m, a in [("hint", 0.5), ("tlm", 0.7), ("fula", 0.8)]]
A = {"column": "accuracy"}


def test_a_level_meets_its_bound_or_does_not():
    of = {**A, "method": "fula"}
    assert _judged("level", {"of": of, "more_than": 0.79}, METHODS).outcome == HOLDS
    assert _judged("level", {"of": of, "less_than": 0.79}, METHODS).outcome == FAILS
    verdict = _judged("gap", {"of": of, "less": {**A, "method": "tlm"}, "within": 0.2}, METHODS)
    assert (verdict.outcome, verdict.bound) == (HOLDS, "|n| < 0.2")
    assert verdict.number == pytest.approx(0.1)


def test_without_rows_a_claim_is_not_testable():
    verdict = _judged("level", {"of": {**A, "method": "slm"}}, METHODS)
    assert (verdict.outcome, verdict.number, verdict.shown) == (UNTESTED, None, "–")
    assert "no rows" in verdict.reason


def test_most_seeds_must_agree_with_their_mean():
    rows = [{"seed": s, "accuracy": a} for s, a in enumerate([0.9, -0.1, -0.1])]
    verdict = _judged("level", {"of": A, "more_than": 0.0}, rows)
    assert verdict.outcome == FAILS and verdict.number == pytest.approx(0.7 / 3)
    assert (verdict.seeds, verdict.low, verdict.high) == (3, -0.1, 0.9)
    assert verdict.shown == "0.233 (-0.100 … 0.900)"


def test_gap_is_taken_within_a_seed():
    rows = [
        {"seed": s, "method": m, "accuracy": a + s}
        for s in (0, 1)
        for m, a in [("fula", 0.5), ("hint", 0.2)]
    ]
    found = claims.gap(_table(rows), {**A, "method": "fula"}, {**A, "method": "hint"})
    np.testing.assert_allclose(found, [0.3, 0.3])


def test_lead_over_the_best_other_and_spread():
    table = _table(METHODS)
    assert claims.lead(table, "fula", ["hint", "tlm"], "accuracy") == pytest.approx(0.1)
    assert claims.lead(table, "hint", ["fula", "tlm"], "accuracy") == pytest.approx(-0.3)
    assert claims.spread(table, ["hint", "tlm", "fula"], "accuracy") == pytest.approx(0.3)
    assert claims.lead(table, "slm", ["fula"], "accuracy").size == 0


def test_rank_correlation_is_spearmans_with_ties():
    draw = np.random.default_rng(3)
    x, y = draw.integers(0, 6, (2, 25)).astype(float)
    assert rank_correlation(list(zip(x, y, strict=True))) == pytest.approx(spearmanr(x, y)[0])
    assert np.isnan(rank_correlation([(1, 2), (2, 3)]))
    assert np.isnan(rank_correlation([(1, 2), (1, 3), (1, 4)]))
    assert rank_correlation([(1, 1), (np.nan, 9), (2, 2), (3, 3)]) == pytest.approx(1)


def test_trend_is_over_means_along_a_column():
    rows = [{"radius": r, "accuracy": a} for r, a in [(1, 0.9), (1, 0.7), (2, 0.75), (4, 0.1)]]
    assert claims.trend(_table(rows), A, "radius") == pytest.approx(-1)


def _matrix(method, values, **columns):
    return [
        {"method": method, "front_site": i + 1, "end_site": j + 1, "accuracy": a} | columns
        for (i, j), a in np.ndenumerate(np.array(values))
    ]


LOWER = [[0.9, 0.1], [0.95, 0.9]]  # row 2 peaks off the diagonal; averaged it does not


def test_self_accuracy_directed_and_averaged():
    sites = {"front_sites": 2, "end_sites": 2}
    table = _table(_matrix("fula", LOWER, **sites))
    assert claims.self_accuracy_of(table, "fula", averaged=False) == pytest.approx(0.5)
    assert claims.self_accuracy_of(table, "fula", averaged=True) == pytest.approx(1.0)
    rows = _matrix("fula", LOWER, **sites) + _matrix("hint", np.eye(2), **sites)
    assert claims.averaging_gain(_table(rows), ["fula"], against=["hint"]) == pytest.approx(0.5)
    assert claims.self_accuracy_of(_table(METHODS), "fula", averaged=True).size == 0


def test_directionality_by_the_number_of_terms():
    rows = [
        row
        | {"weighting": f"cutoff={n}", "accuracy": row["accuracy"] * (1 if j_low else 1 - n / 9)}
        for n in (0, 4, 8)
        for row in _matrix("fula", [[0.9, 0.6], [0.6, 0.9]], front_sites=2, end_sites=2)
        for j_low in [row["front_site"] > row["end_site"]]
    ]
    assert claims.directionality_trend(_table(rows)) == pytest.approx(1)


def test_the_group_that_falls_and_the_group_that_is_least():
    rows = [
        {"kind_": kind, "front_site": site, "end_site": site, "cka": value}
        for kind, values in {"x": (0.9, 0.2), "y": (0.9, 0.8)}.items()
        for site, value in zip((1, 9), values, strict=True)
    ]
    table = _table(rows)
    assert claims.drop_of(table, "cka", "kind_", "x") == pytest.approx(0.6)
    assert claims.least(table, "cka", "kind_", "x", depth="last") == pytest.approx(0.6)
    assert claims.least(table, "cka", "kind_", "y", depth="last") == pytest.approx(-0.6)


def test_the_worst_of_the_best():
    rows = [{"pair_": p, "accuracy": a} for p, a in [("x", 0.2), ("x", 0.9), ("y", 0.7)]]
    assert claims.worst_best(_table(rows), "accuracy", "pair_") == pytest.approx(0.7)


def test_levels_relative_to_another_column():
    rows = [{"accuracy": 0.4, "front_accuracy": 0.8}, {"accuracy": 0.6, "front_accuracy": 0.8}]
    assert claims.relative_level(_table(rows), A, "front_accuracy") == pytest.approx(0.625)


def test_the_trend_of_a_gap():
    rows = [
        {"images": kind, "end_site": site, "accuracy": 0.9 - drop}
        for site in (1, 5, 9)
        for kind, drop in (("own", 0.0), ("alike", site / 20))
    ]
    found = claims.trend_of_gap(_table(rows), "accuracy", "images", "own", "alike", "end_site")
    assert found == pytest.approx(1)


def test_the_largest_difference_of_two_methods_in_a_cell():
    rows = [
        {"method": m, "front_site": s, "end_site": s, "accuracy": a}
        for s, m, a in [(1, "hint", 0.5), (1, "fula", 0.6), (9, "hint", 0.7), (9, "fula", 0.7)]
    ]
    table = _table(rows)
    assert claims.largest_difference(table, "accuracy", "hint", "fula") == pytest.approx(0.1)
    assert claims.largest_difference(table, "accuracy", "hint", "fula", depth="last") == 0.0


def test_agreement_of_two_columns_over_groups():
    rows = [{"end_site": s, "cka": 1 / s, "robust_accuracy": s} for s in (1, 2, 3, 4)]
    rows += [{"end_site": 1, "cka": 1.0}]  # rows of another part hold one of the columns
    found = claims.agreement(_table(rows), "cka", "robust_accuracy", ["end_site"])
    assert found == pytest.approx(-1)


def test_an_unknown_test_is_refused():
    with pytest.raises(FulaError, match="claim test 'levels' is unknown"):
        _judged("levels", {}, METHODS)
