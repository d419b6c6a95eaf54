"""Pictures of a similarity table: heat maps, a profile over depth, agreement between measures."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from ..study.expand import same_sites
from .heat_map import COLOURS, canvas, frame, scale, shaded, write_numbers
from .similarity_cells import PairSimilarity, Panel, p_text
from .style import figure, zoom

_INK, _BAND = "#0072B2", 0.18
_PROFILE = 2.3, 1.75
"""Width and height of a panel of the profile, inches."""
_MOST = 4
_CORNER = 0.34
"""Size of the mark on a cell not above chance, in cells."""


def similarity_maps(pair: PairSimilarity) -> Figure:
    """All measures side by side, then stitching; each panel has its own colours, bright is similar.

    Marked in the corner: cells not above chance. Bold: the most similar of its row. Framed:
    same-site.
    """
    drawn, panels = canvas(len(pair.panels), pair.sites)
    for axes, panel in zip(panels, pair.panels, strict=False):
        _map(axes, panel)
    drawn.suptitle(f"{pair.front} → {pair.end}", weight="bold", x=0.01, ha="left")
    return drawn


def _map(axes: Axes, panel: Panel) -> None:
    values = panel.values * (100 if panel.percent else 1)
    colours = f"{COLOURS}_r" if panel.distance else COLOURS
    image = shaded(axes, values, *scale([values]), colours)
    write_numbers(axes, values, image, 0 if panel.percent else 2, least=panel.distance)
    frame(axes, same_sites(*values.shape))
    for row, column in np.argwhere(panel.not_above_chance):
        right, top = column + 0.46, row - 0.46
        corner = (right, top), (right - _CORNER, top), (right, top + _CORNER)
        axes.add_patch(Polygon(corner, fc="#D55E00", ec="white", lw=0.5))
    axes.set_title(_map_title(panel))


def _map_title(panel: Panel) -> str:
    kind = _kind(panel) or (" (accuracy, %)" if panel.percent else "")
    known = []
    if scores := panel.self_accuracy:
        known.append("Self-Acc. {:.0%} ({:.0%})".format(*scores))
    if not np.isnan(panel.p_best):
        known.append(f"best: p = {p_text(panel.p_best)}")
    return "\n".join([f"{panel.label}{kind}", ", ".join(known)])


def _kind(panel: Panel) -> str:
    return " (distance)" if panel.distance and "distance" not in panel.label else ""


def similarity_profile(pair: PairSimilarity) -> Figure:
    """Every measure against depth at corresponding sites, with its interval where there is one.

    Open points are not above chance. The axis of a distance points down.
    """
    columns = min(_MOST, len(pair.panels))
    rows = math.ceil(len(pair.panels) / columns)
    drawn = figure(0.4 + _PROFILE[0] * columns, 0.5 + _PROFILE[1] * rows)
    panels = drawn.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, panel in zip(panels.flat, pair.panels, strict=False):
        _profile(axes, panel)
    for spare in panels.flat[len(pair.panels) :]:
        spare.set_axis_off()
    lowest = [[a for a in column if a.axison][-1] for column in panels.T]
    for axes in lowest:
        axes.set_xlabel("Site" if pair.sites[0] == pair.sites[1] else "End site")
        axes.tick_params(labelbottom=True)
    drawn.suptitle(f"{pair.front} → {pair.end}", weight="bold", x=0.01, ha="left")
    return drawn


def _profile(axes: Axes, panel: Panel) -> None:
    places = tuple(np.array(same_sites(*panel.values.shape)).T - 1)
    times = 100 if panel.percent else 1
    sites, values = places[1] + 1, times * panel.values[places]
    axes.plot(sites, values, color=_INK)
    low, high = (times * ends[places] for ends in (panel.low, panel.high))
    axes.fill_between(sites, low, high, color=_INK, alpha=_BAND, lw=0)
    chance = panel.not_above_chance[places]
    for chosen, inside in ((~chance, _INK), (chance, "white")):
        axes.plot(sites[chosen], values[chosen], "o", color=_INK, mfc=inside, ms=4.5)
    axes.set_xticks(range(1, panel.values.shape[1] + 1))
    axes.grid(visible=False, axis="x")
    axes.set_title(f"{panel.label}{_kind(panel)}", fontsize=8.5 * zoom())
    if panel.percent:
        axes.yaxis.set_major_formatter("{x:g}%")
    if panel.distance:
        axes.invert_yaxis()


def tau_map(pair: PairSimilarity) -> Figure:
    """Kendall's tau-b of every two measures, stitching among them, over the pair's cells."""
    names, found = [p.name for p in pair.panels], pair.tau()
    matrix = np.array([[found[a, b].tau for b in names] for a in names])
    size = 0.42 * max(len(names), 3)
    drawn = figure(size + 2.8, size + 1.7)
    axes = drawn.subplots()
    image = shaded(axes, matrix, -1, 1, "PuOr")
    labels = [panel.label for panel in pair.panels]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), labels)
    axes.set_xlabel("")
    axes.set_ylabel("")
    write_numbers(axes, matrix, image, 2, bold=False)
    drawn.colorbar(image, ax=axes, shrink=0.7, label="Kendall's τ")
    drawn.suptitle(f"{pair.front} → {pair.end}", weight="bold", x=0.01, ha="left")
    return drawn
