"""The gallery's figures show the numbers of the tables that they name, whatever they look like."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from fula_fast.guide import make
from fula_fast.guide.gallery import figures, illustrated
from fula_fast.guide.recorded import recorded

PAGE = (make.HOME / "pages" / "gallery.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.fixture(scope="module")
def drawn():
    return {each.name: each.picture for each in figures(PAGE)}


def mean_of(rows, column, **where):
    found = [r[column] for r in rows if where.items() <= r.items() and r[column] is not None]
    return np.mean(found) if found else np.nan


def values(rows, column):
    """What stands in a column, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows))


def check_lines(axes, rows, x, y, line):
    """The panel's first lines are the means of `y` at every `x`, one for each value of `line`."""
    for shown, name in zip(axes.lines, values(rows, line), strict=True):
        mine = [row for row in rows if row[line] == name]
        at = sorted(values(mine, x))
        inner = [list(p) for p in shown.get_xydata() if p[0] in at]
        wanted = [[place, mean_of(mine, y, **{x: place})] for place in at]
        np.testing.assert_allclose(inner, wanted)


def matrix(rows, column, **where):
    sides = [range(1, 1 + max(row[side] for row in rows)) for side in ("front_site", "end_site")]
    return np.array(
        [
            [mean_of(rows, column, front_site=i, end_site=j, **where) for j in sides[1]]
            for i in sides[0]
        ]
    )


def shown_in(axes):
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def test_twelve_figures_at_least_each_with_two_sentences_on_how_to_read_it():
    shown = [text for text in SECTIONS.values() if "<!-- figure: " in text]
    assert len(shown) == len(SECTIONS) >= 12
    for text in shown:
        before = text.partition("<!-- figure: ")[0]
        assert len(re.findall(r"[.:](?:\s|$)", before)) >= 2, before


def test_every_figure_says_what_made_its_table_and_at_which_scale():
    page, files = illustrated(PAGE)
    assert len(files) == len(SECTIONS) and "<!-- figure" not in page
    for name in set(re.findall(r'recorded\("([\w-]+)"\)', PAGE)):
        about = recorded(name).about
        assert f"Made by `{about['command']}`" in page and about["hardware"]["cpu"]
        if about.get("scale") == "smoke":
            assert f"`{about['command']}` (smoke scale: shows the form, not a finding" in page


def test_the_stitching_plot_has_every_methods_mean_and_its_band(drawn):
    rows = recorded("depth").rows
    panels = drawn["stitching-plot"].axes
    assert [axes.get_title() for axes in panels] == ["Accuracy", "Soft agreement"]
    assert {r["seed"] for r in rows} == {0, 1, 2}
    for k, method in enumerate(("dm", "hint", "slm", "tlm", "fula")):
        mine = [[r["accuracy"] for r in rows if (r["method"], r["end_site"]) == (method, s)]
                for s in range(1, 10)]  # fmt: skip
        ends = rows[0]["end_accuracy"], rows[0]["front_accuracy"]
        wanted = 100 * np.array([ends[0], *map(np.mean, mine), ends[1]])
        np.testing.assert_allclose(panels[0].lines[3 * k].get_ydata(), wanted)
        band = panels[0].collections[k].get_paths()[0].vertices[:, 1]
        for low, high in zip(map(min, mine), map(max, mine), strict=True):
            assert np.isclose(band, 100 * low).any() and np.isclose(band, 100 * high).any()


def test_heat_maps_hold_every_cell(drawn):
    rows = between("layers")
    panels = [axes for axes in drawn["heat-map"].axes if axes.images]
    for axes, method in zip(panels, ("hint", "fula"), strict=True):
        wanted = 100 * matrix(rows, "accuracy", method=method)
        assert wanted.shape == (9, 9)
        np.testing.assert_allclose(shown_in(axes), wanted)


def test_directionality_is_the_mean_of_each_triangle(drawn):
    rows = [
        row | {"side": "deep to shallow" if row["front_site"] > row["end_site"] else "up"}
        for row in recorded("directionality").rows
    ]
    (axes,) = drawn["directionality"].axes
    rows.sort(key=lambda row: row["side"])
    check_lines(axes, rows, "functional_terms", "accuracy", "side")


@pytest.mark.parametrize(
    "name, table, x, panels, line",
    [
        ("shortcuts", "shortcuts", "end_site",
         [({"shortcut": s, "marked": True}, f"{y}_accuracy") for s in ("pixel+random", "noise+class")
          for y in ("marked", "clean", "rolled")], "method"),
        ("robust-accuracy", "robust", "end_site",
         [({"kind": k}, y) for k in ("plain-plain", "robust-plain", "robust-robust")
          for y in ("accuracy", "robust_accuracy")], "method"),
        ("colour-senders", "colour", "end_site", [({"end": "digit"}, "accuracy")], "front"),
        ("clustered-noise", "noise", "radius", [({"end": "digit"}, "accuracy")], "end_site"),
        ("invariance", "invariance", "end_site",
         [({"part": "invariance", "images": i}, "accuracy")
          for i in ("ordinary", "identically represented")], "method"),
        ("chance", "chance", "width",
         [({"varied": "width"}, y) for y in ("raw", "calibrated")], "measure"),
    ],
)  # fmt: skip
def test_lines_are_the_tables_means(drawn, name, table, x, panels, line):
    shown = [axes for axes in drawn[name].axes if axes.lines]
    for axes, (where, column) in zip(shown, panels, strict=True):
        rows = [row for row in recorded(table).rows if where.items() <= row.items()]
        assert rows
        check_lines(axes, rows, x, column, line)


@pytest.mark.parametrize("name", ["markers", "coloured-digits"])
def test_sheets_have_a_row_of_ten_images_for_each_class(drawn, name):
    with Image.open(drawn[name]) as sheet:
        assert sheet.height == 28 + 10 * (56 + 2) and sheet.width > 10 * (56 + 2)


def test_reconstructions_are_the_tables_pixels(drawn):
    rows = recorded("reconstructions").rows
    panels = drawn["reconstructions"].axes
    assert len(panels) == len(rows) == 20
    for axes, row in zip(panels, rows, strict=True):
        np.testing.assert_array_equal(shown_in(axes).ravel(), row["pixels"])


def between(name):
    """Of a table of two pairs, the rows of two networks."""
    return [row for row in recorded(name).rows if row["front"] != row["end"]]


def similar():
    """Every panel of the similarity table: measures, then methods."""
    table, cells = between("similarity"), between("layers")
    found = {name: matrix(table, "value", measure=name) for name in values(table, "measure")}
    return found | {m: matrix(cells, "accuracy", method=m) for m in ("hint", "fula")}


def times(name):
    """Accuracies are shown in percent."""
    return 100 if name in ("hint", "fula") else 1


def test_similarity_maps_hold_measures_and_stitching(drawn):
    panels = [axes for axes in drawn["similarity-maps"].axes if axes.images]
    for axes, (name, wanted) in zip(panels, similar().items(), strict=True):
        np.testing.assert_allclose(shown_in(axes), wanted * times(name), err_msg=name)


def test_profiles_are_the_diagonals(drawn):
    panels = [axes for axes in drawn["similarity-profile"].axes if axes.lines]
    for axes, (name, wanted) in zip(panels, similar().items(), strict=True):
        wanted = np.diag(wanted) * times(name)
        np.testing.assert_allclose(axes.lines[0].get_ydata(), wanted, err_msg=name)


def test_tau_is_scipys_of_larger_for_more_similar(drawn):
    found = similar()
    found["angular_shape"] = -found["angular_shape"]  # the one distance among them
    wanted = [
        [kendalltau(a.ravel(), b.ravel()).statistic for b in found.values()] for a in found.values()
    ]
    np.testing.assert_allclose(shown_in(drawn["tau"].axes[0]), wanted)


def test_speed_is_the_recorded_hours(drawn):
    places = "grid-nvidia-h100-80gb-hbm3", "grid-cpu"
    for axes, place in zip(drawn["speed"].axes, places, strict=True):
        totals = recorded(place).about["totals"]
        hours = [totals[way]["p50"] / 3600 for way in ("published", "fair", "ours")]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(hours)


def test_cost_is_the_recorded_milliseconds_and_memory(drawn):
    time, memory = drawn["cost"].axes
    rows = recorded("scale-cpu").rows
    assert [list(p) for p in time.lines[0].get_xydata()] == [
        pytest.approx([row["lanes"], 1000 * row["seconds_per_lane"]["p50"]]) for row in rows
    ]
    gibibytes = [row["peak_bytes"] / 1024**3 for row in rows]
    np.testing.assert_allclose(memory.lines[0].get_ydata(), gibibytes)


def test_a_page_without_figures_is_not_run():
    text = "```python\n1 / 0\n```\n"
    assert illustrated(text) == (text, {})


def test_a_figure_stands_above_its_code_and_earlier_blocks_count():
    text = (
        "<!-- overview -->\n## A: thin one\n"
        "```python\nfrom fula_fast.report import figure\nwide = 2\n```\n"
        "<!-- figure: thin -->\n\n```python\ndrawn = figure(wide, 1)\n```\n"
    )
    page, files = illustrated(text)
    shown = text.replace("<!-- figure: thin -->", "![thin](gallery/thin.svg)")
    link = "[![thin](gallery/thin.svg)](#a-thin-one)"
    assert page == shown.replace("<!-- overview -->", link)
    assert list(files) == ["thin.svg"] and b"<svg" in files["thin.svg"]
