"""How rows become studies, curves and matrices."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.report.studies import studies, title, varying
from fula_fast.report.summary import findings, summary


def rows_of(*variants: dict, method: str = "fula", sites: int = 3) -> list[dict]:
    base = {"front": "a", "end": "b", "method": method, "status": "ok", "accuracy": 0.5, "seed": 0}
    places = [{"front_site": s, "end_site": s, "front_sites": sites, "end_sites": sites}
              for s in range(1, sites + 1)]  # fmt: skip
    return [base | place | variant for variant in variants for place in places]


def test_each_setting_is_a_study() -> None:
    rows = rows_of({"alpha": 0.0}, {"alpha": 0.5}, {"alpha": 0.5, "shortcut": "pixel"})
    found = studies(rows)
    assert [dict(s.setting) for s in found] == [
        {"alpha": 0.0}, {"alpha": 0.5}, {"alpha": 0.5, "shortcut": "pixel"},
    ]  # fmt: skip
    shown = varying(found)
    assert [title(s, shown) for s in found] == ["α = 0", "α = 0.5", "α = 0.5, shortcut: pixel"]


def test_what_does_not_vary_stays_out_of_titles() -> None:
    found = studies(
        rows_of({"alpha": 0.0, "bn": "train", "subset": 1}, {"alpha": 0.0, "bn": "train"})
    )
    assert [title(s, varying(found)) for s in found] == ["first class", ""]


def test_methods_without_a_weighting_join_every_weighting() -> None:
    cut = rows_of({"weighting": "uniform"}, {"weighting": "cutoff=1"})
    found = studies([*rows_of({"weighting": ""}, method="hint"), *cut])
    assert [s.methods for s in found] == [["hint", "fula"], ["hint", "fula"]]
    assert [dict(s.setting)["weighting"] for s in found] == ["uniform", "cutoff=1"]


def test_axes_of_the_run_tell_studies_apart() -> None:
    rows = rows_of({"norm": "batch"}, {"norm": "sample"})
    assert len(studies(rows)) == 1
    assert [title(s, {"norm"}) for s in studies(rows, ["norm"])] == ["norm: batch", "norm: sample"]


def test_a_curve_has_donors_at_its_ends_and_a_band_over_seeds() -> None:
    donors = {"front_accuracy": 0.8, "end_accuracy": 0.9}
    rows = rows_of({**donors, "accuracy": 0.4}, {**donors, "accuracy": 0.6, "seed": 1})
    rows[1]["accuracy"] = None  # site 2, seed 0
    rows[2]["status"] = rows[5]["status"] = "failed"  # site 3, both
    curve = studies(rows)[0].curve("fula", "accuracy")
    assert curve.depths.tolist() == [0, 1, 2, 3, 4] and curve.seeds == 2
    np.testing.assert_allclose(curve.mean, [0.9, 0.5, 0.6, np.nan, 0.8])
    np.testing.assert_allclose(curve.low, [0.9, 0.4, 0.6, np.nan, 0.8])
    np.testing.assert_allclose(curve.high, [0.9, 0.6, 0.6, np.nan, 0.8])


def test_same_site_of_donors_with_different_site_counts() -> None:
    places = [(1, 1), (3, 2), (5, 3), (5, 5), (9, 5)]
    rows = rows_of({"front_sites": 9, "end_sites": 5}, sites=len(places))
    for row, (front, end) in zip(rows, places, strict=True):
        row |= {"front_site": front, "end_site": end, "front_sites": 9, "end_sites": 5}
    study = studies(rows)[0]
    assert [(r["front_site"], r["end_site"]) for r in study.same_site()] == [
        (1, 1), (3, 2), (5, 3), (9, 5),
    ]  # fmt: skip
    assert study.cross_layer and study.matrix("fula", "accuracy").shape == (9, 5)


def test_a_matrix_has_front_sites_in_rows_and_means_over_seeds() -> None:
    rows = rows_of({}, sites=2)[:1]
    rows[0] |= {"front_site": 2, "end_site": 1, "accuracy": 0.2}
    rows.append(rows[0] | {"seed": 1, "accuracy": 0.4})
    np.testing.assert_allclose(
        studies(rows)[0].matrix("fula", "accuracy"), [[np.nan, np.nan], [0.3, np.nan]]
    )


def test_the_shortcut_set_is_not_shown_twice() -> None:
    sets = {"shortcut_accuracy": 0.5, "clean_accuracy": 0.3, "rolled_accuracy": 0.1}
    assert studies(rows_of(sets))[0].metrics() == list(sets)
    assert studies(rows_of({"clean_accuracy": 0.3}))[0].metrics() == ["accuracy", "clean_accuracy"]


def test_findings_and_summary(study_rows) -> None:
    study_rows[0] |= {"status": "failed", "error": "loss is nan"}
    last = studies(study_rows)[-1]
    fula = next(f for f in findings(last) if f.method == "fula")
    diagonal = [r["accuracy"] for r in last.same_site() if r["method"] == "fula"]
    assert fula.mean == pytest.approx(np.mean(diagonal)) and fula.cells == 81
    assert fula.lowest == min(diagonal) and fula.lowest_at[0] == fula.lowest_at[1]
    assert fula.self_accuracy is not None and min(fula.self_accuracy) >= 0
    text = summary(study_rows)
    assert "a → b (α = 1)" in text and "Self-Accuracy" in text
    assert text.endswith("1 failed, first 0000000000000000: loss is nan")
    assert summary([]) == "no finished cells"
