"""Differences between runs: paired by seed, of the cells that both have, against SciPy."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.report import differences
from fula_fast.report.comparison_page import difference_plot

from .conftest import make_row, write_run

ROWS = [
    make_row(
        100 * site + 10 * ("hint", "fula").index(method) + seed, front_site=site, end_site=site, method=method, seed=seed,
        accuracy=0.5 + 0.03 * site + 0.01 * seed**2,
    )
    for method in ("hint", "fula")
    for site in (1, 2)
    for seed in range(4)
]  # fmt: skip


def changed(by, **columns):
    return [row | columns | {"accuracy": row["accuracy"] + by(row)} for row in ROWS]


def test_they_are_means_of_paired_seeds_with_students_interval():
    shift = {0: 0.01, 1: 0.05, 2: -0.02, 3: 0.03}
    found = differences(changed(lambda row: shift[row["seed"]] * row["end_site"]), ROWS)
    assert [(each.group, each.measure) for each in found] == [
        ("a → b, Hint", "accuracy"), ("a → b, FuLA", "accuracy")
    ]  # fmt: skip
    points = 1.5 * np.array(list(shift.values()))  # mean over sites 1 and 2
    test = stats.ttest_1samp(points, 0)
    interval = test.confidence_interval(0.95)
    for each in found:
        assert (each.cells, each.seeds) == (2, 4)
        assert each.second == pytest.approx(np.mean([row["accuracy"] for row in ROWS]))
        assert each.first - each.second == pytest.approx(points.mean())
        got = each.difference
        assert (got.mean, got.low, got.high, got.p) == pytest.approx(
            (points.mean(), *interval, test.pvalue)
        )
        assert each.adjusted == pytest.approx(min(1, 2 * test.pvalue))


def test_a_seed_without_all_cells_and_cells_of_one_run_are_left_out():
    lame = [row for row in changed(lambda row: 0.1 * row["seed"])
            if (row["seed"], row["end_site"]) != (3, 2)]  # fmt: skip
    hint, fula = differences(lame + [ROWS[0] | {"end_site": 7}], ROWS)
    assert hint.cells == fula.cells == 2 and hint.seeds == fula.seeds == 3
    assert hint.difference.mean == pytest.approx(0.1)
    failed = [row | {"status": "failed", "accuracy": None} for row in ROWS if row["seed"] < 2]
    assert {each.seeds for each in differences(ROWS, failed + ROWS[2:4] + ROWS[6:8])} == {2}


def test_one_seed_has_a_difference_and_no_interval():
    one = [row for row in ROWS if row["seed"] == 0]
    for each in differences(changed(lambda row: 0.25), one):
        assert each.difference.mean == pytest.approx(0.25)
        assert np.isnan([each.difference.low, each.difference.p, each.adjusted]).all()


def test_settings_that_vary_within_a_run_keep_cells_apart_and_others_do_not():
    both = [row | {"alpha": a, "accuracy": row["accuracy"] + a} for row in ROWS for a in (0.0, 1.0)]
    found = differences(both, [row | {"epochs": 5, "alpha": 1.0} for row in ROWS])
    assert [each.group for each in found] == ["a → b, Hint, alpha 1.0", "a → b, FuLA, alpha 1.0"]
    assert [each.difference.mean for each in found] == pytest.approx([1, 1])


def test_a_setting_of_one_method_alone_keeps_no_cells_apart():
    other = changed(lambda row: 0.0)
    other = [row | {"weighting": row["weighting"] and "cutoff=2"} for row in other]
    assert [each.seeds for each in differences(other, ROWS)] == [4, 4]


def test_runs_without_a_shared_cell_are_refused():
    with pytest.raises(FulaError, match="share no finished cell"):
        differences(ROWS, [row | {"front": "c"} for row in ROWS])


def test_the_command_prints_differences_and_what_was_asked_differently(tmp_path, monkeypatch):
    monkeypatch.setattr("fula_fast.report.write_report", lambda run, **_: run / "report.html")
    more = changed(lambda row: 0.02 * (1 + row["seed"]), epochs=5, end_hash="cd" * 8)
    write_run(tmp_path / "more", more)
    write_run(tmp_path / "less", ROWS)
    command = ["report", str(tmp_path / "more"), "--compare", str(tmp_path / "less")]
    answer = CliRunner().invoke(commands.app, command)
    assert answer.exit_code == 0, answer.output
    line = next(text for text in answer.output.splitlines() if "FuLA" in text)
    assert "+5.0" in line and "…" in line and " 2 " in line and " 4 " in line
    assert "epochs: 5 | 30" in answer.output
    assert f"weights of b: {'cd' * 8} | {'ab' * 8}" in answer.output
    page = (tmp_path / "more" / "compare.html").read_text("utf-8")
    assert str(tmp_path / "more" / "compare.html") in answer.output
    assert "epochs: 5 | 30" in page and "http" not in page
    cells = line.split("  ")
    assert all(f">{cell.strip()}<" in page for cell in cells if cell.strip())
    (drawn,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert base64.b64decode(drawn) == (tmp_path / "more" / "plots" / "compare.svg").read_bytes()


def test_the_picture_shows_every_difference_and_marks_those_that_stay():
    shift = {0: 0.02, 1: 0.021, 2: 0.02, 3: 0.019}
    found = differences(
        changed(lambda row: shift[row["seed"]] if row["method"] == "fula" else (-1) ** row["seed"]),
        ROWS,
    )
    (panel,) = difference_plot(tuple(found)).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a → b, Hint", "a → b, FuLA"]
    points = [line for line in panel.lines if line.get_marker() == "o"]
    for line, each in zip(points, found, strict=True):
        assert line.get_xdata()[0] == pytest.approx(100 * each.difference.mean)
        assert (line.get_markerfacecolor() == "white") == (each.adjusted >= 0.05)
    assert [line.get_markerfacecolor() == "white" for line in points] == [True, False]
