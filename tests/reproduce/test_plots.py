"""Plots: what stands on the axes is what the rows say."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.report.style import look
from fula_fast.reproduce.evidence import gathered
from fula_fast.reproduce.plots import draw, line_styles
from fula_fast.reproduce.recipe import PlotSpec


def _rows(**columns):
    return [
        {"front": "b", "end": e, "method": m, "seed": s, "end_site": j, "status": "ok"}
        | {"front_site": j, "front_sites": 3, "end_sites": 3, "accuracy": a + j + s} | columns
        for e in ("a", "c")
        for m, a in (("hint", 0.1), ("fula", 0.2))
        for s in (0, 1)
        for j in (1, 3)
    ]  # fmt: skip


def _drawn(rows, **plot):
    with look():
        return draw(gathered({"p": rows}), PlotSpec(**{"kind": "lines", "x": "end_site", **plot}))


def test_lines_are_means_over_seeds_with_a_band_to_the_extremes():
    figure = _drawn(_rows(), y=["accuracy"], panel=["end"])
    assert [axes.get_title() for axes in figure.axes] == ["into a", "into c"]
    hint, fula = figure.axes[0].lines
    np.testing.assert_allclose(hint.get_xydata(), [[1, 1.6], [3, 3.6]])
    np.testing.assert_allclose(fula.get_ydata(), [1.7, 3.7])
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((1.1, 4.1))


def test_a_stitching_plot_of_one_pair_begins_at_the_end_and_stops_at_the_front():
    rows = _rows(end_accuracy=0.9, front_accuracy=0.8)
    figure = _drawn(rows, y=["accuracy"], panel=["end"])
    for axes in figure.axes:
        hint = axes.lines[0]
        np.testing.assert_allclose(hint.get_xydata(), [[0, 0.9], [1, 1.6], [3, 3.6], [4, 0.8]])
        assert [t.get_text() for t in axes.get_xticklabels()] == ["end", "1", "3", "front"]
    (both,) = _drawn(rows, y=["accuracy"]).axes
    assert [t.get_text() for t in both.get_xticklabels()] == ["1", "3"]


def test_several_columns_without_panels_stand_side_by_side():
    figure = _drawn(_rows(cka=0.5), y=["accuracy", "cka", "robust_accuracy"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["Accuracy", "CKA"]


def test_second_panel_column_makes_rows():
    rows = [r | {"alpha": a} for a in (0.0, 1.0) for r in _rows()]
    figure = _drawn(rows, y=["accuracy"], panel=["end", "alpha"])
    assert [a.get_title() for a in figure.axes] == [
        f"into {end}\nα = {alpha}" for alpha in (0.0, 1.0) for end in ("a", "c")
    ]


def test_where_columns_and_panels_do_not_fit_across_the_columns_go_down():
    rows = [r | {"end": e, "cka": 0.5} for e in "abcd" for r in _rows() if r["end"] == "a"]
    figure = _drawn(rows, y=["accuracy", "cka"], panel=["end"])
    grid = {axes.get_subplotspec().get_gridspec().get_geometry() for axes in figure.axes}
    assert grid == {(2, 4)}
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["into a", "into b", "into c", "into d", "", "", "", ""]
    assert len({axes.get_ylim() for axes in figure.axes[:4]}) == 1  # one column, one scale


def test_sides_of_the_diagonal_as_lines():
    rows = [
        r | {"front_site": i, "accuracy": float(i)}
        for i in (1, 3)
        for r in _rows()
        if r["seed"] == 0
    ]
    figure = _drawn(rows, y=["accuracy"], line="side", x="end_site")
    points = [point for line in figure.axes[0].lines for point in line.get_xydata().tolist()]
    assert sorted(points) == [[1, 3], [3, 1]]


def test_bars_by_group():
    rows = [{"label": n, "front": f, "accuracy": v, "status": "ok"} for n, f, v in
            [("x", "a", 0.5), ("x", "b", 0.7), ("y", "a", 0.9)]]  # fmt: skip
    figure = _drawn(rows, kind="bars", x="label", y=["accuracy"], line="front")
    heights = [round(bar.get_height(), 3) for bar in figure.axes[0].patches]
    assert [h for h in heights if not np.isnan(h)] == [0.5, 0.9, 0.7]


def test_nothing_is_drawn_without_numbers():
    assert _drawn(_rows(), y=["robust_accuracy"]) is None


def test_twelve_lines_can_be_told_apart():
    styles = line_styles([*range(12), "fula"])
    assert len({(s.colour, s.marker, str(s.dashes)) for s in styles.values()}) == 13
    assert styles["fula"].colour == "#009E73"


def test_mixtures_beside_methods_have_colours_of_their_own():
    """A method keeps its mark; a mixture took the colour and marker of Hint beside it."""
    styles = line_styles(["dm", "hint", "tlm", "last", "last-then-task"])
    assert len({s.colour for s in styles.values()}) == len({s.marker for s in styles.values()}) == 5
    assert (styles["hint"].colour, styles["hint"].marker) == ("#0072B2", "o")
