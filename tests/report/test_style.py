"""Plots in matplotlib's styles: what a style decides, what stays ours, and what is refused."""

from __future__ import annotations

import matplotlib
import pytest
from matplotlib.colors import to_rgb
from typer.testing import CliRunner

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.report import figure, look, stitching_plot, studies, write_report
from fula_fast.report.style import RC, marks

from .conftest import METHODS, same_site_rows, write_run


@pytest.mark.parametrize("style", [None, "paper", *matplotlib.style.available])
def test_methods_keep_their_marks_in_every_style(style):
    """But for one: the black of DM is white on a dark ground."""
    with look(style):
        plot = stitching_plot(studies(list(same_site_rows())), ())
    lines = plot.legends[0].get_lines()[:-1]  # the last are the donors
    expected = {(to_rgb(mark.colour), mark.marker) for mark in marks(list(METHODS)).values()}
    if style == "dark_background":
        expected = {(colour if any(colour) else (1, 1, 1), marker) for colour, marker in expected}
    assert {(to_rgb(line.get_color()), line.get_marker()) for line in lines} == expected


def test_a_styles_settings_come_on_top_of_ours_and_leave_the_callers():
    before = dict(matplotlib.rcParams)
    with look("ggplot"):
        assert matplotlib.rcParams["axes.facecolor"] == "#E5E5E5"
        assert matplotlib.rcParams["axes.spines.top"] is False  # ours, as ggplot has none
    assert dict(matplotlib.rcParams) == before


def test_a_file_is_a_style_and_a_donors_dollar_stays_a_dollar(tmp_path):
    path = tmp_path / "own.mplstyle"
    path.write_text("font.size: 18\naxes.grid: False\ntext.parse_math: True\n", "utf-8")
    for style in (path, str(path)):
        with look(style):
            assert (
                not matplotlib.rcParams["axes.grid"] and not matplotlib.rcParams["text.parse_math"]
            )
            assert figure(3, 2).get_size_inches().tolist() == [6, 4]  # as the letters


def test_paper_is_smaller_and_without_serifs():
    with look("paper"):
        assert matplotlib.rcParams["font.family"] == ["sans-serif"]
        assert matplotlib.rcParams["font.size"] < RC["font.size"]
        assert figure(3, 2).get_size_inches()[0] < 3


@pytest.mark.parametrize("style", ["gplot", "there/is/none.mplstyle"])
def test_an_unknown_style_is_refused_before_anything_is_written(tmp_path, style):
    folder = write_run(tmp_path / "run", list(same_site_rows())).folder
    with pytest.raises(FulaError, match=f"unknown style '{style}'.*paper.*ggplot.*mplstyle"):
        write_report(folder, style=style)
    assert not (folder / "plots").exists() and not (folder / "report.html").exists()


def test_a_style_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "own.mplstyle"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FulaError, match="cannot be read"):
        look(path)


def test_the_command_draws_every_page_in_the_style(tmp_path):
    run, other = (write_run(tmp_path / name, list(same_site_rows())).folder for name in "ab")
    plain = ["report", str(run), "--compare", str(other)]
    pictures = []
    for more in ([], ["--style", "dark_background"]):
        answer = CliRunner().invoke(commands.app, plain + more)
        assert answer.exit_code == 0, answer.output
        pictures.append({p.name: p.read_bytes() for p in (run / "plots").iterdir()})
    assert pictures[0].keys() == pictures[1].keys() >= {"compare.svg", "compare.png"}
    assert all(pictures[1][name] != content for name, content in pictures[0].items())
