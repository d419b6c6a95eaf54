"""The report of a run: whole, self-contained, honest about what is missing."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.report import write_report
from fula_fast.report.page import Live
from fula_fast.store import Store

from .conftest import in_browser, same_site_rows, write_run


class Page(HTMLParser):
    """Links, sources, ids and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references, self.ids, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        values = dict(attrs)
        self.references += [values[k] for k in ("src", "href", "data", "srcset") if k in values]
        self.ids += [values["id"]] if "id" in values else []

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, Page]:
    from .conftest import cross_layer_rows

    rows = [*same_site_rows((0.0, 1.0)), *cross_layer_rows()]
    rows[5] |= {"status": "failed", "error": "loss is <nan> at step 7", "accuracy": None}
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, rows, planned=2)
    path = write_report(folder)
    return folder, Page(path.read_text("utf-8"))


def test_the_page_needs_no_network(reported) -> None:
    folder, page = reported
    for reference in page.references:
        assert reference.startswith(("data:", "#")) or (folder / reference).is_file(), reference
    text = (folder / "report.html").read_text()
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)


def test_a_run_that_goes_on_is_read_again(tmp_path: Path, capsys) -> None:
    write_run(tmp_path, same_site_rows((0.0,)), planned=2)
    live = Live(["running: 1 done", "  host <a>, process 7: wave w"], 30)
    text = write_report(tmp_path, live).read_text("utf-8")
    assert '<meta http-equiv="refresh" content="30">' in text
    assert "host &lt;a&gt;, process 7" in text and "Continue it with" not in text
    with pytest.raises(SystemExit):  # nobody works on it any more
        commands.app(["status", str(tmp_path), "--html", "--watch"])
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert 'http-equiv="refresh"' not in (tmp_path / "report.html").read_text("utf-8")


def test_the_embedded_pictures_are_the_files_beside_it(reported) -> None:
    folder, page = reported
    uris = [r for r in page.references if r.startswith("data:image/svg+xml;base64,")]
    embedded = {base64.b64decode(uri.partition(",")[2]) for uri in uris}
    assert embedded == {path.read_bytes() for path in (folder / "plots").glob("*.svg")}
    assert len(uris) == 4  # two pairs; accuracy and soft agreement of the cross-layer grid


def test_no_plot_is_blank(reported) -> None:
    paths = sorted((reported[0] / "plots").glob("*.png"))
    assert len(paths) == 4
    for path in paths:
        picture = imread(path)[..., :3]
        assert min(picture.shape[:2]) > 300
        assert (picture < 0.98).any(axis=-1).mean() > 0.01 and len(np.unique(picture)) > 50


def test_every_number_and_error_is_there(reported) -> None:
    folder, page = reported
    for row in Store.open(folder).rows():
        assert row["cell"] in page.text
        assert row["status"] == "failed" or f"{row['accuracy']:.4g}" in page.text
    assert "loss is <nan> at step 7" in page.text  # escaped in the source
    assert "1 cell failed" in page.text and "2 of 677 cells are missing" in page.text
    for words in (
        "2.11.0",
        "a processor",
        'source = "digits"',
        "0f0f0f0f",
        "Self-Accuracy",
        "were merged",
    ):
        assert words in page.text


def test_ten_thousand_rows_are_paged_and_all_are_there(tmp_path: Path) -> None:
    """As elements they would take a browser many seconds."""
    some = list(same_site_rows((0.0,)))
    rows = [
        row | {"cell": f"{k:06x}", "seed": k}
        for k, row in enumerate(some * (10_000 // len(some) + 1))
    ]
    write_run(tmp_path, rows)
    text = write_report(tmp_path).read_text("utf-8")
    body = text[text.index('<table id="numbers">') : text.index('id="rows"')]
    assert body.count("<tr>") == 101
    held = re.search(r'<script type="application/json" id="rows">(.*?)</script>', text, re.S)
    assert len(json.loads(held[1])) == len(rows)


@pytest.mark.slow
def test_a_browser_filters_sorts_and_turns_pages(reported, tmp_path: Path) -> None:
    """What its user does, by script in a real one."""
    script = """
      at("filter").value = "method=hint accuracy>0.5"; choose(); sortBy(names.indexOf("accuracy"));
      const column = name => rows.map(row => row[names.indexOf(name)]);
      return [all.length, column("method"), column("accuracy").map(Number)];
    """
    page = shutil.copy(reported[0] / "report.html", tmp_path)
    (count, methods, values), shown = in_browser(Path(page), script)
    rows = Store.open(reported[0]).rows()
    chosen = sorted(
        float(f"{row['accuracy']:.4g}")
        for row in rows
        if row["method"] == "hint" and (row["accuracy"] or 0) > 0.5
    )
    assert count == len(rows) and set(methods) == {"hint"} and values == chosen
    assert shown.count("<td") > 0 and f"of {len(chosen)} rows" in shown


def test_the_callers_plot_settings_stay(reported, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    write_run(tmp_path / "run", list(same_site_rows())[:3])
    write_report(tmp_path / "run")
    assert dict(matplotlib.rcParams) == before


def test_a_run_without_cells_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, [], planned=4)
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert "No cell is finished yet" in page.text and "4 of 4 cells are missing" in page.text


def test_a_run_that_only_failed(tmp_path: Path) -> None:
    rows = [row | {"status": "failed", "error": "e"} for row in same_site_rows()][:2]
    write_run(tmp_path, rows)
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert "2 cells failed" in page.text and "No cell is finished yet" in page.text


@pytest.mark.slow
def test_a_partial_cross_layer_grid_and_unknown_method(tmp_path: Path, study_rows) -> None:
    rows = [r for r in study_rows if r["end"] == "a" and r["front_site"] < 3][:40]
    rows += [r | {"method": "half", "cell": f"h{r['cell']}"} for r in rows]
    write_run(tmp_path, rows)
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert "half" in page.text
    assert len(list((tmp_path / "plots").glob("cross-layer-*.png"))) == 2


def test_a_second_report_replaces_the_plots_of_the_first(tmp_path: Path) -> None:
    write_run(tmp_path, list(same_site_rows())[:6])
    first = write_report(tmp_path).read_bytes()
    (tmp_path / "plots" / "stitching-old-pair.svg").write_text("old")
    assert write_report(tmp_path).read_bytes() == first
    assert not (tmp_path / "plots" / "stitching-old-pair.svg").exists()


def test_names_become_safe_file_names(tmp_path: Path) -> None:
    write_run(tmp_path, list(same_site_rows(front="a/b c"))[:3])
    write_report(tmp_path)
    (path,) = (tmp_path / "plots").glob("*.svg")
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", path.name)


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(FulaError, match="holds no run"):
        write_report(tmp_path)
