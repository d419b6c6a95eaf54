"""Layers found by measures and by stitching: rows and table against SciPy and by hand."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from fula_fast.reproduce import load_recipe
from fula_fast.reproduce.drivers import measures
from fula_fast.reproduce.evidence import gathered
from fula_fast.store import Store
from fula_fast.store.similarity_table import write_pair
from fula_fast.study.similarity_plan import PlannedSimilarity

SITES, SEEDS = 4, (0, 1, 2)
DRAW = np.random.default_rng(0)
CKA = DRAW.uniform(size=(SITES, SITES)) + np.eye(SITES)
ACCURACY = {m: DRAW.uniform(size=(3, SITES, SITES)) for m in ("hint", "fula")}
TOGETHER = np.where(CKA > 0.5, 0.01, 0.5)


def cells():
    return [
        {"cell": f"{method}{seed}{i}{j}", "front": "a", "end": "b", "method": method, "seed": seed,
         "front_site": i + 1, "end_site": j + 1, "front_sites": SITES, "end_sites": SITES,
         "accuracy": float(value), "status": "ok"}
        for method, every in ACCURACY.items()
        for (seed, i, j), value in np.ndenumerate(every)
    ]  # fmt: skip


def compared():
    return [
        {"front": "a", "end": "b", "front_site": i + 1, "end_site": j + 1, "value": value,
         "measure": "linear_cka", "features": "mean", "p_family": float(TOGETHER[i, j])}
        for (i, j), value in np.ndenumerate(CKA)
    ]  # fmt: skip


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "_compute", lambda lab, spec: None)
    cell_rows = cells()
    planned_cells = {"id": [row["cell"] for row in cell_rows]}
    Store.create(tmp_path / "fig10", {"name": "x"}, {}, planned_cells).write("w0", cell_rows)
    planned = PlannedSimilarity((("a", "b"),), ("linear_cka",), 50, 50, 1)
    plan = {"similarity": asdict(planned)}
    store = Store.create(tmp_path / "similarity", {"name": "y"}, plan, {"id": []})
    write_pair(store, ("a", "b"), {}, compared())
    sweep = SimpleNamespace(name="fig10", spec=None)
    (tmp_path / "plots").mkdir()
    experiment = SimpleNamespace(sweeps=[sweep])
    return SimpleNamespace(folder=tmp_path, experiment=experiment, plots=tmp_path / "plots")


@pytest.fixture
def rows(lab):
    return measures.run(None, lab)


def share(matrix):
    return np.mean(matrix.argmax(1) == np.arange(SITES))


def test_a_measure_has_a_row_beside_every_seed_of_the_stitches(rows):
    mine = {row["seed"]: row for row in rows if row["by"] == "linear_cka"}
    assert tuple(mine) == SEEDS
    for seed, row in mine.items():
        assert row["self_accuracy"] == share(CKA)
        assert row["self_accuracy_averaged"] == share(CKA + CKA.T)
        assert row["above_chance"] == (TOGETHER <= 0.05).mean()
        for method, every in ACCURACY.items():
            tau = stats.kendalltau(CKA.ravel(), every[seed].ravel()).statistic
            assert row[f"tau_{method}"] == pytest.approx(tau)


def test_methods_are_ranked_against_each_other_seed_by_seed(rows):
    for seed in SEEDS:
        (row,) = (r for r in rows if (r["by"], r["seed"]) == ("fula", seed))
        hint, fula = (ACCURACY[m][seed] for m in ("hint", "fula"))
        assert row["self_accuracy"] == share(fula) and row["stitched"]
        tau = stats.kendalltau(hint.ravel(), fula.ravel()).statistic
        assert row["tau_hint"] == pytest.approx(tau) and "tau_fula" not in row


def test_the_table_has_means_and_intervals_over_seeds(lab, rows):
    (table,) = measures.tables(lab, rows)
    lines = {row[1]: dict(zip(table.heads, row, strict=True)) for row in table.rows}
    assert list(lines) == ["linear CKA", "Hint", "FuLA"]
    taus = [r["tau_fula"] for r in rows if r["by"] == "linear_cka"]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(taus), scale=stats.sem(taus))
    low, high = max(low, -1), min(high, 1)
    shown = f"{np.mean(taus):.2f} ({low:.2f} … {high:.2f})"
    assert lines["linear CKA"]["τ with FuLA"] == shown
    assert lines["linear CKA"]["Self-Accuracy"] == f"{100 * share(CKA):.0f} %"
    assert lines["FuLA"]["τ with FuLA"] == lines["FuLA"]["above chance"] == "–"


def test_pictures_are_drawn(lab, rows):
    found = measures.pictures(lab, rows)
    assert [f.path.name for f in found] == ["measures-maps-0.svg", "measures-tau-0.svg"]
    assert all(f.path.exists() for f in found)


def test_claims_ask_for_columns_that_there_are(rows):
    columns = {name for row in gathered({"measures": rows}).rows for name in row}
    for claim in load_recipe("measures").claims:
        for table in (claim.args["of"], claim.args.get("less", {})):
            assert table.get("column", "by") in columns | {"tau_slm", "tau_tlm"}
            assert set(table) <= columns | {"column"}
