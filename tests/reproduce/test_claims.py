"""Claims: each test against a table whose answer is plain, and what makes a claim hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from fula_fast.errors import FulaError
from fula_fast.reproduce import claim_tests as tests
from fula_fast.reproduce.claim_tests import rank_correlation
from fula_fast.reproduce.claims import FAILS, HOLDS, UNTESTED, every_one, judged, verdicts
from fula_fast.reproduce.evidence import Untestable, gathered
from fula_fast.reproduce.recipe import ClaimSpec, ExperimentRecipe, load_recipe


def _table(rows):
    usual = {"front": "b", "end": "a", "status": "ok", "seed": 0, "front_sites": 9, "end_sites": 9}
    return gathered({"p": [usual | row for row in rows]})


def _judged(test, args, rows, each=()):
    return judged(ClaimSpec(says="so", test=test, args=args, each=each), _table(rows), "Fig. 0")


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
    assert verdict.reason == "no row has 'accuracy' where method = slm"


def _by(columns, values):
    """Rows of (column values …, accuracy)."""
    return [dict(zip((*columns, "accuracy"), v, strict=True)) for v in values]


def test_every_one_must_meet_the_bound_and_the_worst_is_shown():
    of = {**A, "method": ["tlm", "fula"]}
    assert _judged("level", {"of": of, "more_than": 0.74}, METHODS).outcome == HOLDS  # 0.75
    alone = _judged("level", {"of": of, "more_than": 0.74}, METHODS, ["method"])
    assert (alone.outcome, alone.number, alone.worst) == (FAILS, 0.7, "tlm")
    assert alone.shown == "0.700, tlm"
    least = _judged("level", {"of": of, "less_than": 0.9}, METHODS, ["method"])
    assert (least.outcome, least.worst) == (HOLDS, "fula")


def test_of_every_one_a_missing_one_is_not_testable_unless_another_fails():
    of = {**A, "method": ["tlm", "slm"]}
    found = _judged("level", {"of": of, "more_than": 0.6}, METHODS, ["method"])
    assert found.outcome == UNTESTED and "method = slm" in found.reason
    assert _judged("level", {"of": of, "more_than": 0.8}, METHODS, ["method"]).outcome == FAILS


def test_one_that_fails_by_its_seeds_is_not_hidden_by_one_that_is_nearer_to_the_bound():
    rows = [{"seed": s, "method": "tlm", "accuracy": a} for s, a in enumerate([0.9, -0.1, -0.1])]
    rows += [{"seed": s, "method": "slm", "accuracy": 0.01} for s in range(3)]
    found = _judged("level", {"of": {**A, "method": ["slm", "tlm"]}}, rows, ["method"])
    assert (found.outcome, found.worst) == (FAILS, "tlm")


def test_equal_lists_go_together_and_different_ones_all_meet():
    both, other = {**A, "m": ["x", "y"]}, {**A, "m": ["z", "w"]}
    paired = every_one({"of": both, "less": both | {"side": "s"}}, ["m"], _table([]))
    assert [(c["of"]["m"], c["less"]["m"], words) for c, words in paired] == [
        ("x", "x", ["x"]),
        ("y", "y", ["y"]),
    ]
    crossed = every_one({"of": both, "less": other, "than": {"of": both}}, ["m"], _table([]))
    found = [(c["of"]["m"], c["less"]["m"], c["than"]["of"]["m"]) for c, _ in crossed]
    assert found == [("x", "z", "x"), ("x", "w", "x"), ("y", "z", "y"), ("y", "w", "y")]


def test_an_unlisted_column_takes_the_values_of_the_rows_that_a_claim_is_about():
    rows = _by(["m", "classes"], [("x", 2, 0.5), ("x", 3, 0.6), ("y", 9, 0.1)])
    cases = every_one({"of": {**A, "m": "x"}, "less": {**A, "m": "y"}}, ["classes"], _table(rows))
    assert [(c["of"]["classes"], c["less"]["classes"], w) for c, w in cases] == [
        (2, 2, ["classes 2"]),
        (3, 3, ["classes 3"]),
    ]
    of = {**A, "m": "none"}
    assert _judged("level", {"of": of}, rows, ["classes"]).outcome == UNTESTED


def test_a_claim_says_where_its_premise_fails():
    claims = [
        {"says": "far", "test": "level", "args": {"of": A, "less_than": 0.1}, "premise": "near"},
        {"says": "near", "test": "level", "args": {"of": A, "more_than": 0.4}, "key": "near"},
    ]
    recipe = ExperimentRecipe(name="r", title="t", figure="Fig. 0", claims=claims)
    far, near = verdicts(recipe, _table([{"accuracy": 0.3}]))
    assert near.outcome == FAILS
    assert (far.outcome, far.reason) == (FAILS, "but it rests on “near”: does not hold")
    far, near = verdicts(recipe, _table([{"accuracy": 0.5}]))
    assert (far.outcome, far.reason, near.outcome) == (FAILS, "", HOLDS)


def test_a_claim_of_our_own_says_so():
    claim = ClaimSpec(says="so", test="level", args={"of": A}, ours=True)
    assert judged(claim, _table(METHODS), "Fig. 0").ours
    assert not _judged("level", {"of": A}, METHODS).ours


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
    found = tests.gap(_table(rows), {**A, "method": "fula"}, {**A, "method": "hint"})
    np.testing.assert_allclose(found, [0.3, 0.3])


def test_a_gap_may_be_taken_against_another_gap():
    rows = _by(
        ["method", "alpha"], [("slm", 0, 0.9), ("slm", 1, 0.5), ("fula", 0, 0.6), ("fula", 1, 0.5)]
    )
    of, less, than_of, than_less = (
        {**A, "method": m, "alpha": a} for m in ("slm", "fula") for a in (0, 1)
    )
    args = {"of": of, "less": less, "than": {"of": than_of, "less": than_less}}
    assert _judged("gap", {**args, "more_than": 0.2}, rows).number == pytest.approx(0.4 - 0.1)
    assert _judged("gap", {**args, "more_than": 0.35}, rows).outcome == FAILS


def test_lead_over_the_best_other():
    table = _table([row | {"front": f} for row in METHODS for f in "bc"])
    of = {**A, "method": "fula", "front": "b"}
    assert tests.lead(table, of, ["hint", "tlm"]) == pytest.approx(0.1)
    assert tests.lead(table, {**A, "method": "hint"}, ["fula", "tlm"]) == pytest.approx(-0.3)
    assert tests.lead(table, of, ["tlm"], than={**of, "front": "c"}) == pytest.approx(0)
    with pytest.raises(Untestable, match="method = slm"):
        tests.lead(table, of, ["slm", "tlm"])


def test_spread_of_means_over_listed_values_or_those_there_are():
    table = _table([*METHODS, {"method": "tlm", "accuracy": 0.9}])  # tlm: 0.8 in the mean
    assert tests.spread(table, A, "method") == pytest.approx(0.3)
    assert tests.spread(table, {**A, "method": ["tlm", "fula"]}, "method") == pytest.approx(0)
    assert _judged("spread", {"of": A, "by": "method", "less_than": 0.2}, METHODS).outcome == FAILS
    with pytest.raises(Untestable, match="of 'method' there is 'accuracy' for fula only"):
        tests.spread(table, {**A, "method": ["fula", "slm"]}, "method")


def test_rank_correlation_is_spearmans_with_ties():
    draw = np.random.default_rng(3)
    x, y = draw.integers(0, 6, (2, 25)).astype(float)
    assert rank_correlation(list(zip(x, y, strict=True))) == pytest.approx(spearmanr(x, y)[0])
    assert rank_correlation([(1, 1), (np.nan, 9), (2, 2), (3, 3)]) == pytest.approx(1)
    with pytest.raises(Untestable, match="2 points have no trend"):
        rank_correlation([(1, 2), (2, 3)])
    with pytest.raises(Untestable, match="all points are equal"):
        rank_correlation([(1, 2), (1, 3), (1, 4)])


RADII = _by(["radius"], [(1, 0.9), (1, 0.7), (2, 0.75), (4, 0.1)])


def test_trend_is_over_means_along_a_column():
    assert tests.trend(_table(RADII), A, "radius") == pytest.approx(-1)
    flat = [row | {"accuracy": 0.5} for row in RADII]
    found = _judged("trend", {"of": A, "along": "radius", "less_than": -0.5}, flat)
    assert (found.outcome, found.number) == (FAILS, 0)


def test_a_trend_over_two_points_says_that_they_are_too_few():
    found = _judged("trend", {"of": A, "along": "radius"}, RADII[:3])
    assert (found.outcome, found.reason) == (UNTESTED, "2 points have no trend; it takes 3")


def _matrix(method, values, **columns):
    values = np.array(values)
    sites = {"front_sites": len(values), "end_sites": len(values)}
    return [
        {
            "method": method,
            "front_site": i + 1,
            "end_site": j + 1,
            "accuracy": a,
            **sites,
            **columns,
        }
        for (i, j), a in np.ndenumerate(values)
    ]


LOWER = [[0.9, 0.1], [0.95, 0.9]]  # row 2 peaks off the diagonal; averaged it does not
FULA, HINT = {**A, "method": "fula"}, {**A, "method": "hint"}


def test_self_accuracy_directed_and_averaged():
    table = _table(_matrix("fula", LOWER))
    assert tests.self_accuracy_of(table, FULA, averaged=False) == pytest.approx(0.5)
    assert tests.self_accuracy_of(table, FULA, averaged=True) == pytest.approx(1.0)
    args = {"of": FULA, "averaged": False, "more_than": 0.8}
    assert _judged("self_accuracy_of", args, _matrix("fula", LOWER)).outcome == FAILS


def test_what_averaging_adds_to_self_accuracy():
    rows = _matrix("fula", LOWER) + _matrix("hint", np.eye(2))
    assert tests.averaging_gain(_table(rows), FULA, less=HINT) == pytest.approx(0.5)
    args = {"of": HINT, "more_than": 0.0}
    assert _judged("averaging_gain", args, rows).outcome == FAILS


def test_a_matrix_that_is_not_whole_says_so():
    args = {"of": FULA, "averaged": True}
    found = _judged("self_accuracy_of", args, _matrix("fula", LOWER)[1:])
    assert (found.outcome, found.reason) == (UNTESTED, "1 of the matrix's 4 cells are not measured")
    longer = [row | {"end_sites": 3} for row in _matrix("fula", LOWER)]
    assert "different numbers of sites" in _judged("self_accuracy_of", args, longer).reason
    assert "no row" in _judged("self_accuracy_of", {**args, "of": HINT}, longer).reason


def test_directionality_by_the_number_of_terms():
    rows = [
        row
        | {"weighting": f"cutoff={n}", "accuracy": row["accuracy"] * (1 if j_low else 1 - n / 9)}
        for n in (0, 4, 8)
        for row in _matrix("fula", [[0.9, 0.6], [0.6, 0.9]])
        for j_low in [row["front_site"] > row["end_site"]]
    ]
    assert tests.directionality_trend(_table(rows)) == pytest.approx(1)
    args = {"less_than": 0.0}
    assert _judged("directionality_trend", args, rows).outcome == FAILS


def _directed(near, corner, scale=1.0):
    """A 9 x 9 matrix: 0.5, more below the diagonal by `near`, further off by `corner`."""
    i, j = np.indices((9, 9))
    return scale * (0.5 + np.where(i > j, np.where(i - j < 3, near, corner), 0.0))


def test_uniformly_worse_is_not_less_directional():
    """Of Fig. 10's Hint: what breaks is its direction, not its level."""
    recipe = load_recipe("fig10")
    breaks, less = recipe.claims[3:5]
    assert "breaks" in breaks.says and "less directional" in less.says
    others = [row for m in ("slm", "tlm", "fula") for row in _matrix(m, _directed(0.1, 0.3))]
    for hint, outcome in [
        (_directed(0.1, 0.0), HOLDS),
        (_directed(0.1, 0.3) - 0.4, FAILS),
        (_directed(0.1, 0.3, scale=0.5), FAILS),
    ]:
        rows = others + _matrix("hint", hint)
        found = {judged(claim, _table(rows), "").outcome for claim in (breaks, less)}
        assert outcome in found and (outcome == FAILS or found == {HOLDS})


def test_the_group_that_falls_and_the_group_that_is_least():
    rows = [
        {"kind_": kind, "front_site": site, "end_site": site, "cka": value}
        for kind, values in {"x": (0.9, 0.2), "y": (0.9, 0.8), "z": (0.9, 0.5)}.items()
        for site, value in zip((1, 9), values, strict=True)
    ]
    table, of = _table(rows), {"column": "cka"}
    assert tests.drop_of(table, of, "kind_", "x") == pytest.approx(0.7 - 0.4)
    assert tests.drop_of(table, of, "kind_", "z") == pytest.approx(0.4 - 0.7)
    last = {**of, "depth": "last"}
    assert tests.least(table, last, "kind_", "x") == pytest.approx(0.3)
    assert tests.least(table, last, "kind_", "y") == pytest.approx(-0.6)
    with pytest.raises(Untestable, match="'w' and another are needed"):
        tests.least(table, last, "kind_", "w")


def test_levels_relative_to_another_column():
    rows = [{"accuracy": 0.4, "front_accuracy": 0.8}, {"accuracy": 0.6, "front_accuracy": 0.8}]
    args = {"of": A, "to": "front_accuracy"}
    assert _judged("relative_level", args, rows).number == pytest.approx(0.625)
    assert _judged("relative_level", {**args, "more_than": 0.7}, rows).outcome == FAILS


def test_the_trend_of_a_gap():
    rows = [
        {"images": kind, "end_site": site, "accuracy": 0.9 - drop}
        for site in (1, 5, 9)
        for kind, drop in (("own", 0.0), ("alike", site / 20))
    ]
    own, alike = ({**A, "images": kind} for kind in ("own", "alike"))
    assert tests.trend_of_gap(_table(rows), own, alike, "end_site") == pytest.approx(1)
    args = {"of": alike, "less": own, "along": "end_site"}
    assert _judged("trend_of_gap", args, rows).outcome == FAILS


def test_the_onset_of_a_fall_and_which_method_sees_it_first():
    falls = {"fula": (0.80, 0.82, 0.70, 0.2), "hint": (0.80, 0.78, 0.75, 0.1), "slm": (0.8,) * 4}
    rows = [
        {"method": m, "front_site": s, "end_site": s, "accuracy": a}
        for m, values in falls.items()
        for s, a in zip((1, 3, 5, 9), values, strict=True)
    ]
    args = {"of": FULA, "over": "hint", "lost": 0.1}
    assert _judged("onset_lead", args, rows).number == 9 - 5
    assert _judged("onset_lead", {**args, "over": "slm"}, rows).number == 10 - 5
    assert _judged("onset_lead", {**args, "of": HINT, "over": "fula"}, rows).outcome == FAILS


def test_the_largest_difference_of_two_methods_in_a_cell():
    rows = [
        {"method": m, "front_site": s, "end_site": s, "accuracy": a}
        for s, m, a in [(1, "hint", 0.5), (1, "fula", 0.6), (9, "hint", 0.7), (9, "fula", 0.7)]
    ]
    table = _table(rows)
    assert tests.largest_difference(table, HINT, FULA) == pytest.approx(0.1)
    last = {"depth": "last"}
    assert tests.largest_difference(table, HINT | last, FULA | last) == 0.0
    args = {"of": HINT, "less": FULA, "less_than": 0.05}
    assert _judged("largest_difference", args, rows).outcome == FAILS
    with pytest.raises(Untestable, match="no cell has both"):
        tests.largest_difference(_table(rows[:1]), HINT, FULA)


def test_agreement_of_two_columns_over_groups():
    rows = [{"end_site": s, "cka": 1 / s, "robust_accuracy": s} for s in (1, 2, 3, 4)]
    rows += [{"end_site": 1, "cka": 1.0}]  # rows of another part hold one of the columns
    args = {"a": "cka", "b": "robust_accuracy", "keys": ["end_site"]}
    assert _judged("agreement", args, rows).number == pytest.approx(-1)
    assert _judged("agreement", args, rows).outcome == FAILS


def test_an_unknown_test_is_refused():
    with pytest.raises(FulaError, match="claim test 'levels' is unknown"):
        _judged("levels", {}, METHODS)
