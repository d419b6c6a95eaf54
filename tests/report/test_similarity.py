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


def rows_of(name: str, values: np.ndarray, front: str = "a", **more: Any) -> list[dict[str, Any]]:
    return [
        {"front": front, "end": "a", "front_site": i + 1, "end_site": j + 1, "measure": name,
         "features": "mean", "value": float(v), "p": float(P[i, j]), "p_holm": 1.0,
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


def write_run(folder: Path, table: list[dict[str, Any]], cells: bool = True) -> Store:
    rows = list(cross_layer_rows()) if cells else []
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
    assert corners == (P > 0.05).sum() > 0
    assert not any(type(p) is Polygon for p in fula.patches)
    assert sum(type(p) is Rectangle for p in near.patches) == 2 * SITES


def test_the_profile_has_open_points_and_bands(pair):
    axes = similarity_profile(pair).axes
    line, full, empty = axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), NEAR.diagonal())
    assert len(full.get_ydata()) == (P.diagonal() <= 0.05).sum()
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
    assert f"{(P <= 0.05).sum()} of 81" in first and "0 of 81" in first
