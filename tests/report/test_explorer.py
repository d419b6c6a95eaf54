"""The interactive part of a report: its numbers against NumPy and SciPy, in a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.report import studies, write_report
from fula_fast.report.explorer import explorer

from .conftest import cross_layer_rows, in_browser, make_row, same_site_rows, write_run
from .test_similarity import FAR, NEAR, TABLE
from .test_similarity import write_run as write_similarities


@pytest.fixture
def some_library(monkeypatch) -> None:
    """In the place of plotly.js, which is no part of these numbers."""
    monkeypatch.setattr("fula_fast.report.explorer._library", lambda: "const Plotly = {};")


def test_the_data_are_the_rows(some_library) -> None:
    rows = [*same_site_rows((0.0, 1.0)), *cross_layer_rows()]
    rows[7] |= {"status": "failed", "accuracy": None}
    found = explorer(rows, studies(rows), []).data
    names = [name for name, *_ in found["measures"]]
    assert names[:3] == ["accuracy", "robust_accuracy", "agreement_soft"] and "loss" in names
    assert not {"alpha", "front_accuracy", "end_robust_accuracy"} & set(names)
    held = 0
    for study in found["studies"]:
        for place, method, front, end, seed, *values in study["rows"]:
            row = rows[place]
            assert (study["methods"][method], study["seeds"][seed]) == (
                row["method"],
                str(row["seed"]),
            )
            assert (front, end) == (row["front_site"], row["end_site"])
            want = [row.get(name) for name in names]
            assert values == [v if v is None else pytest.approx(v, rel=1e-5) for v in want]
            held += 1
    assert held == len(rows) - 1
    assert found["quantiles"] == pytest.approx([stats.t.ppf(0.975, 1), stats.t.ppf(0.975, 2)])


def test_without_plotly_the_command_says_so_in_a_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("fula_fast.report.explorer.find_spec", lambda name: None)
    write_run(tmp_path, list(same_site_rows())[:6])
    with pytest.raises(FulaError, match=r"pip install 'fula-fast\[interactive\]'"):
        write_report(tmp_path, interactive=True)
    assert not (tmp_path / "report.html").exists()
    answer = CliRunner().invoke(commands.app, ["report", str(tmp_path), "--interactive"])
    assert answer.exit_code == commands.BAD_INPUT and "Traceback" not in answer.output
    assert "plotly" not in write_report(tmp_path).read_text("utf-8")


def choose(**ticked: list[int]) -> str:
    """A script that ticks just these boxes, by value."""
    lines = [
        f"for (const tick of document.querySelectorAll('#choice fieldset[name={name}] input'))"
        f" tick.checked = {values}.includes(+tick.value);"
        for name, values in ticked.items()
    ]
    change = "at('choice').elements.measure.dispatchEvent(new Event('change'));"
    return "".join([*lines, change])


READ = """
  const curves = document.querySelector("#curve").data.map(trace => ({
    name: trace.name, x: trace.x, y: trace.y, up: trace.error_y.array, down: trace.error_y.arrayminus, text: trace.text }));
  const maps = (document.querySelector("#cross").data || []).map(trace => trace.z);
  const means = [...document.querySelectorAll("#means tbody tr")].map(line => [...line.cells].map(cell => cell.textContent));
  const buttons = [...document.querySelectorAll("#curve .modebar-btn")].map(button => button.dataset.title);
  return { curves, maps, means, buttons, fetched: performance.getEntriesByType("resource").map(each => each.name), rows: rows.length };
"""


@pytest.mark.slow
def test_what_is_chosen_is_drawn_with_its_intervals(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    rows = list(same_site_rows())
    write_run(tmp_path, rows)
    page = write_report(tmp_path, interactive=True)
    asked = choose(method=[1, 4], seed=[0, 2], end=[2, 3, 5])  # Hint and FuLA
    script = "at('choice').elements.table.checked = true;" + asked + READ
    found, _ = in_browser(page, script)
    assert found["fetched"] == [] and found["maps"] == []
    buttons = " ".join(found["buttons"])  # plotly's own would send the data away with one of them
    assert "Download plot" in buttons and "Share" not in buttons and "loud" not in buttons
    assert [curve["name"] for curve in found["curves"]] == ["Hint", "FuLA"]
    assert found["rows"] == 2 * 2 * 3  # the table follows
    for curve, method, line in zip(found["curves"], ("hint", "fula"), found["means"], strict=True):
        values = np.array([
            [row["accuracy"] for row in rows if row["method"] == method and row["end_site"] == site and row["seed"] in (0, 2)]
            for site in range(1, 10)
        ])  # fmt: skip
        shown = np.array([y is not None for y in curve["y"][1:-1]])
        assert list(np.flatnonzero(shown) + 1) == [3, 4, 6]
        assert curve["y"][0] == 0.934 and curve["y"][-1] == 0.921 and curve["x"] == [*range(11)]
        assert np.array(curve["y"][1:-1])[shown].astype(float) == pytest.approx(
            values[shown].mean(1), abs=1e-6
        )
        low, high = np.clip(
            stats.t.interval(0.95, 1, values[shown].mean(1), stats.sem(values[shown], axis=1)), 0, 1
        )
        assert np.array(curve["up"][1:-1])[shown] == pytest.approx(
            high - values[shown].mean(1), abs=1e-5
        )
        assert np.array(curve["down"][1:-1])[shown] == pytest.approx(
            values[shown].mean(1) - low, abs=1e-5
        )
        of_seeds = values[shown].mean(0)
        low, high = stats.t.interval(0.95, 1, of_seeds.mean(), stats.sem(of_seeds))
        assert line[1:3] == ["3", "2"] and line[3] == f"{of_seeds.mean():.1%}".replace("%", " %")
        assert line[4] == f"{max(low, 0):.1%} … {min(high, 1):.1%}".replace("%", " %")


@pytest.mark.slow
def test_cross_layer_cells_are_maps(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    rows = list(cross_layer_rows())
    write_run(tmp_path, rows)
    found, _ = in_browser(write_report(tmp_path, interactive=True), choose(method=[2]) + READ)
    want = np.array([row["accuracy"] for row in rows if row["method"] == "slm"]).reshape(9, 9)
    (drawn,) = found["maps"]
    assert np.array(drawn) == pytest.approx(want, abs=1e-6)
    assert found["means"][0][1:] == [
        "9",
        "1",
        f"{np.diag(want).mean():.1%}".replace("%", " %"),
        "–",
    ]


@pytest.mark.slow
def test_similarities_are_maps(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    panels = write_report(write_similarities(tmp_path, TABLE).folder, interactive=True)
    script = "return document.querySelector('#likenesses').data.map(trace => trace.z);"
    drawn, _ = in_browser(panels, script)
    assert np.array(drawn[:2], float) == pytest.approx(np.stack([NEAR, FAR]), abs=1e-5)
    assert len(drawn) == 6  # the first of them, until more are asked for


@pytest.mark.slow
def test_ten_thousand_rows_answer_without_delay(tmp_path: Path) -> None:
    """Two cores under other work here; a person notices 0.1 s, and is held up by one."""
    pytest.importorskip("plotly")
    rows = [
        make_row(
            number, front_site=site, end_site=site, method=method, seed=seed,
            accuracy=0.5 + 0.001 * (number % 400), agreement_soft=0.4,
        )
        for number, (method, site, seed) in enumerate(
            (m, s, k) for m in ("hint", "fula", "slm", "tlm") for s in range(1, 10) for k in range(280)
        )
    ]  # fmt: skip
    write_run(tmp_path, rows)
    script = f"""
      const timed = work => {{ const start = performance.now(); work(); return performance.now() - start; }};
      return [
        timed(() => sortBy(names.indexOf("accuracy"))),
        timed(() => {{ at("filter").value = "method=hint accuracy>0.6"; choose(); }}),
        timed(() => {{ {choose(seed=list(range(140)))} }}), rows.length,
      ];
    """
    (*times, left), _ = in_browser(write_report(tmp_path, interactive=True), script)
    assert max(times) < 1000, times
    assert left == sum(row["method"] == "hint" and row["accuracy"] > 0.6 for row in rows)
