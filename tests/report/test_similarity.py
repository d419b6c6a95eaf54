"""Similarity in the report: what is marked, ranked and written, against SciPy and by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Polygon, Rectangle
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.report import write_latex, write_report
from fula_fast.report.latex import escaped
from fula_fast.report.over_seeds import accuracies, comparisons, seed_rows
from fula_fast.report.similarity_cells import pair_similarities, similarity_summary
from fula_fast.report.similarity_plots import similarity_maps, similarity_profile, tau_map
from fula_fast.report.studies import studies
from fula_fast.store import Store
from fula_fast.store.similarity_table import write_pair, write_similarity
from fula_fast.study.similarity_plan import PlannedSimilarity

from .conftest import cross_layer_rows

SITES = 9
DRAW = np.random.default_rng(5)
NOISE = DRAW.normal(0, 0.02, (SITES, SITES))
NEAR = 1 - np.abs(np.subtract.outer(np.arange(SITES), np.arange(SITES))) / SITES + NOISE
FAR = 2 * (1 - NEAR)
P = np.where(NEAR > 0.5, 0.01, 0.4)
TOGETHER = np.where(NEAR > 0.8, 0.03, 0.6)


def rows_of(name: str, values: np.ndarray, front: str = "a", **more: Any) -> list[dict[str, Any]]:
    return [
        {"front": front, "end": "a", "front_site": i + 1, "end_site": j + 1, "measure": name,
         "features": "mean", "value": float(v), "p": float(P[i, j]), "p_holm": 1.0,
         "p_family": float(TOGETHER[i, j]),
         "p_best": 0.01, "low": float(v) - 0.1, "high": float(v) + 0.1, "n": 50, "samples": 50,
         **more}
        for (i, j), v in np.ndenumerate(values)
    ]  # fmt: skip


KAPPA = {"front": "a", "end": "a", "measure": "kappa", "features": "outputs", "value": 0.25,
         "p": 0.3, "n": 50, "samples": 50}  # fmt: skip
TABLE = [*rows_of("linear_cka", NEAR), *rows_of("angular_shape", FAR), KAPPA]


@pytest.fixture
def pair():
    (found,) = pair_similarities(TABLE, studies(cross_layer_rows()))
    return found


def write_run(
    folder: Path, table: list[dict[str, Any]], cells: bool | list[dict[str, Any]] = True
) -> Store:
    rows = list(cross_layer_rows()) if cells is True else cells or []
    planned = PlannedSimilarity((("a", "a"),), ("linear_cka", "angular_shape"), 50, 50, 1)
    spec = {"name": "synthetic", "data": {"source": "digits"}}
    cells = {"id": [row["cell"] for row in rows]}
    store = Store.create(folder, spec, {"similarity": asdict(planned)}, cells)
    if rows:
        store.write("w0", rows)
    if table:
        write_pair(store, ("a", "a"), {}, table)
    write_similarity(store)
    return store


def test_stitching_stands_beside_the_measures(pair):
    names = [panel.name for panel in pair.panels]
    assert names[:2] == ["linear_cka", "angular_shape"]
    assert names[2:] == [f"stitching, {m}" for m in ("DM", "Hint", "SLM", "TLM", "FuLA")]
    by_hand = np.full((SITES, SITES), np.nan)
    for row in cross_layer_rows():
        if row["method"] == "fula":
            by_hand[row["front_site"] - 1, row["end_site"] - 1] = row["accuracy"]
    np.testing.assert_array_equal(pair.panels[-1].values, by_hand)


def test_distances_are_ranked_by_their_smallest(pair):
    near, far = pair.panels[:2]
    assert far.distance and near.self_accuracy == far.self_accuracy
    assert near.self_accuracy[0] == np.mean(NEAR.argmax(1) == np.arange(SITES))


def test_tau_is_scipys_over_the_cells(pair):
    found = pair.tau()
    fula = pair.panels[-1]
    expected = stats.kendalltau(NEAR.ravel(), fula.values.ravel()).statistic
    assert found["linear_cka", fula.name].tau == pytest.approx(expected)
    assert found["linear_cka", "angular_shape"].tau == pytest.approx(1)


def test_cells_not_above_chance_are_marked(pair):
    near, *_, fula = similarity_maps(pair).axes[: len(pair.panels)]
    corners = sum(type(p) is Polygon for p in near.patches)
    assert corners == (TOGETHER > 0.05).sum() > (P > 0.05).sum() > 0
    assert not any(type(p) is Polygon for p in fula.patches)
    assert sum(type(p) is Rectangle for p in near.patches) == 2 * SITES


def test_the_profile_has_open_points_and_bands(pair):
    axes = similarity_profile(pair).axes
    line, full, empty = axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), NEAR.diagonal())
    assert len(full.get_ydata()) == (TOGETHER.diagonal() <= 0.05).sum()
    assert len(full.get_ydata()) + len(empty.get_ydata()) == SITES
    band = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(NEAR.diagonal().min() - 0.1)
    assert axes[1].yaxis_inverted() and not axes[0].yaxis_inverted()


def test_tau_map_names_every_panel(pair):
    labels = [t.get_text() for t in tau_map(pair).axes[0].get_yticklabels()]
    assert labels == [panel.label for panel in pair.panels]


def test_the_page_shows_table_and_pictures(tmp_path):
    page = write_report(write_run(tmp_path, TABLE).folder).read_text("utf-8")
    page = page.partition('<h2 id="similarity">')[2]
    assert page.count("<h3>a → a</h3>") == 1 and "similarity.csv" in page
    assert "error consistency κ" in page and "0.250" in page
    for kind in ("maps", "profile", "tau"):
        assert f"plots/similarity-{kind}-a-a.png" in page
        assert (tmp_path / "plots" / f"similarity-{kind}-a-a.svg").exists()


def test_a_run_without_cells_speaks_of_similarity_alone(tmp_path):
    page = write_report(write_run(tmp_path, TABLE, cells=False).folder).read_text("utf-8")
    assert "Similarity of networks" in page
    assert "No cell is finished" not in page and 'id="findings"' not in page


def test_an_unfinished_run_says_so(tmp_path):
    page = write_report(write_run(tmp_path, [], cells=False).folder).read_text("utf-8")
    assert "1 pairs of donors are not compared yet" in page


def test_latex_has_a_row_for_every_measure_and_method(tmp_path):
    paths = write_latex(write_run(tmp_path, TABLE).folder)
    names = [path.name for path in paths]
    assert names == ["stitching.tex", "similarity-a-a.tex", "tau-a-a.tex"]
    lines = paths[1].read_text("utf-8").splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrr}"
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == 2 + 5 + 1
    assert all(line.count("&") == 6 and line.endswith(r"\\") for line in body)
    assert body[-1].startswith(r"error consistency $\kappa$ & -- & answers & 0.250 & 0.3 &")


def test_latex_of_an_empty_run_is_refused(tmp_path):
    with pytest.raises(FulaError, match="holds no finished cell or pair"):
        write_latex(write_run(tmp_path, [], cells=False).folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50% of a_b", r"50\% of a\_b"), ("-0.5", "$-$0.5"), ("a-b → c", r"a-b $\to$ c"),
     ("{\\x}", r"\{\textbackslash{}x\}")],
)  # fmt: skip
def test_escaped(text, expected):
    assert escaped(text) == expected


def test_the_terminals_table(pair):
    head, titles, first, *_ = similarity_summary(TABLE).splitlines()
    assert head == "similarity a → a" and titles.split()[0] == "measure"
    assert first.split()[-6:] == [*f"{(TOGETHER <= 0.05).sum()} of 81".split(),
                                  *f"{(P <= 0.05).sum()} of 81".split()]  # fmt: skip


# --- over seeds


def seeded_rows(change):
    """Two seeds more than the usual one, whose accuracies differ by what `change` gives."""
    rows = list(cross_layer_rows())
    return [
        row | {"seed": seed, "cell": f"{row['cell']}-{seed}",
               "accuracy": row["accuracy"] + change(row, seed)}
        for seed in range(3) for row in rows
    ]  # fmt: skip


def shift(row, seed):
    return 0.01 * seed + (0.004 * (seed - 1) ** 2 if row["method"] == "fula" else 0)


def test_bands_of_stitching_are_students_intervals_over_seeds():
    (pair,) = pair_similarities(TABLE, studies(seeded_rows(shift)))
    hint = next(p for p in pair.panels if p.name == "stitching, Hint")
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    np.testing.assert_allclose(hint.high - hint.values, half)
    np.testing.assert_allclose(hint.values - hint.low, half)
    band = similarity_profile(pair).axes[pair.panels.index(hint)].collections[0]
    widths = band.get_paths()[0].vertices[:, 1]
    assert np.ptp(widths) >= 100 * 2 * half  # in percent, as the line is


def test_methods_differ_by_pairs_of_seeds_with_holms_p():
    (study,) = studies(seeded_rows(shift))
    values = accuracies(study)
    found = {(c.first, c.second): c for c in comparisons(values)}
    each = [np.array([values[m][s] for s in values[m]]) for m in ("Hint", "FuLA")]
    expected = stats.ttest_rel(*each)
    assert found["Hint", "FuLA"].difference.p == pytest.approx(expected.pvalue)
    mean = np.mean([r["accuracy"] for r in study.same_site() if r["method"] == "hint"])
    assert each[0].mean() == pytest.approx(mean)
    ordered = sorted(c.difference.p for c in found.values())
    least = min(found.values(), key=lambda c: c.difference.p)
    assert least.adjusted == pytest.approx(min(1, len(found) * ordered[0]))


def test_a_measure_stands_against_every_seed():
    found = seed_rows({"CKA": 0.5, "FuLA": {0: 0.6, 1: 0.8}, "RSA": 0.1})
    assert [row[0] for row in found] == ["FuLA", "CKA − FuLA", "FuLA − RSA"]
    p = stats.ttest_1samp([0.6, 0.8], 0.5).pvalue
    assert found[0][1:3] == ("2", "70.0 %") and found[1][2] == "-20.0 %"
    assert found[1][4:] == (f"{p:.2g}", f"{p:.2g}")
    assert seed_rows({"CKA": 0.5, "FuLA": {0: 0.6}}) == []


def test_the_page_compares_methods_over_seeds(tmp_path):
    store = write_run(tmp_path, TABLE, cells=seeded_rows(shift))
    page = write_report(store.folder).read_text("utf-8")
    assert page.count("Hint − FuLA") == 1  # of mean accuracy
    assert "linear CKA − stitching, FuLA" in page  # of Self-Accuracy


def test_latex_of_several_seeds_has_their_differences(tmp_path):
    paths = write_latex(write_run(tmp_path, TABLE, cells=seeded_rows(shift)).folder)
    assert [path.name for path in paths][2:] == ["seeds-a-a.tex", "tau-a-a.tex"]
    lines = paths[2].read_text("utf-8").splitlines()
    assert lines[2].startswith(" & seeds & mean & 95 \\% interval & p & p after Holm")
    assert any(line.startswith("linear CKA $-$ stitching, FuLA & 3 & ") for line in lines)
