"""A page in a run's folder on how far it is from other results: a picture and a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import __version__
from ..files.atomic import folder as made
from ..files.atomic import replacing
from .between_runs import HEADINGS, Compared, RunDifference
from .page import kept, template
from .studies import METRICS
from .style import figure, look

_LINE, _PANEL = 0.26, 2.1  # inches
_INK = "#0072B2"


def write_comparison(
    found: Compared, folder: Path, stem: str = "compare", style: str | Path | None = None
) -> Path:
    """Write the page `STEM.html` and, into `plots/`, its picture; returns the page's path.

    `style`: of the picture, as `look` takes it. Raises `FulaError` for an unknown style, and where
    the folder cannot be written.
    """
    drawing = look(style)
    path = made(folder / "plots") / f"{stem}.svg"
    with drawing:
        picture = kept(difference_plot(found.found), path, _CAPTION)
    page = template("comparison.html.j2").render(
        name=folder.name, version=__version__, told=found.told, pictures=[picture],
        headings=HEADINGS, rows=found.rows,
    )  # fmt: skip
    with replacing(folder / f"{stem}.html") as temporary:
        temporary.write_text(page, "utf-8")
    return folder / f"{stem}.html"


_CAPTION = (
    "The first less the second in points, with 95 % intervals over seeds where there are two at "
    "least. Filled: p < 0.05 after Holm's correction for all of the table."
)


def difference_plot(found: tuple[RunDifference, ...]) -> Figure:
    """A panel per measure, a line per group of cells."""
    measures = [m for m in METRICS if any(each.measure == m for each in found)]
    groups = list(dict.fromkeys(each.group for each in found))
    drawn = figure(2.6 + _PANEL * len(measures), 0.7 + _LINE * len(groups))
    panels = drawn.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _panel(axes, [each for each in found if each.measure == measure], groups)
        axes.set_title(METRICS[measure])
    panels[0].set_yticks(range(len(groups)), groups)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    return drawn


def _panel(axes: Axes, found: list[RunDifference], groups: list[str]) -> None:
    axes.axvline(0, color="0.4", lw=0.8)
    for each in found:
        line, seen = groups.index(each.group), each.difference
        ends = 100 * np.array([seen.low, seen.high])
        axes.plot(ends, [line, line], color=_INK, lw=1.2)
        inside = _INK if each.adjusted < 0.05 else "white"
        axes.plot(100 * seen.mean, line, "o", color=_INK, mfc=inside, ms=5)
    axes.set_xlabel("Points")
