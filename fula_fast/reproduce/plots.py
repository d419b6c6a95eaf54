"""Plots of an experiment's rows: lines and bars over any columns, drawn in the report's style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..methods import METHODS
from ..report.studies import METRICS
from ..report.style import Mark, figure, label, marks
from .evidence import Evidence, number
from .recipe import PlotSpec

PANEL, ALONE = (2.7, 2.1), (4.4, 2.9)
_HANDLE, _LETTER, _LINE = 0.75, 0.068, 0.2  # inches of a legend: mark and gaps, letter, line
_TITLES = METRICS | {
    "marked_accuracy": "Accuracy with shortcut",
    "cka": "CKA",
    "end_site": "Site",
    "front_site": "Front site",
    "site": "Site",
    "layer_place": "Layer",
    "donor": "Donor",
    "stitch_rank": "Rank of the stitch",
    "activation_rank": "Rank of activations",
    "front": "Sender",
    "end": "Receiver",
    "robust_agreement_soft": "Soft agreement, adversarial",
    "radius": "Radius of the clusters",
    "latent": "Numbers in the code",
    "classes": "Classes trained on",
    "functional_terms": "Functional terms",
    "receiver_accuracy": "Accuracy, receiver's own images",
}
_WHEEL = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")
_SHAPES = "o^vs*PX<>"


def draw(table: Evidence, plot: PlotSpec) -> Figure | None:
    """The recipe's plot, or None where no row has its columns. Call it inside `style.look`."""
    chosen = _sided(table) if plot.line == "side" else table
    chosen = chosen.where(plot.where)
    chosen = Evidence(
        tuple(r for r in chosen.rows if r.get(plot.x) is not None and r.get(plot.line) is not None)
    )
    return KINDS[plot.kind](chosen, plot) if any(chosen.values(y).size for y in plot.y) else None


def _sided(table: Evidence) -> Evidence:
    """Rows off the diagonal with the side on which they lie."""
    sides = ("deep to shallow", "shallow to deep")
    rows = (row | {"side": s} for s in sides for row in table.where({"side": s}).rows)
    return Evidence(tuple(rows))


def lines(table: Evidence, plot: PlotSpec) -> Figure:
    """A line per `line`: means over seeds (and over what else differs), band from low to high."""
    styles = line_styles([key[0] for key in table.groups(plot.line)])
    drawn, grid = _panels(table, plot)
    for axes, part, y in grid:
        ends = _end_points(part, plot.x, y)
        for (name,), rows in part.groups(plot.line).items():
            _line(axes, rows, (plot.x, y), styles[name], ends)
        _labels(axes, part, plot.x, y)
        if ends:
            _name_ends(axes, ends)
    handles = [_key(styles[name], name) for name in styles]
    _below(drawn, handles, _TITLES.get(plot.line))
    return drawn


def _below(drawn: Figure, handles: Sequence[Artist], title: str | None = None) -> None:
    """A legend below the panels, in as many columns as its longest text leaves room for."""
    widest = max(len(str(handle.get_label())) for handle in handles)
    room = int(drawn.get_figwidth() / (_HANDLE + _LETTER * widest))
    columns = max(min(room, len(handles), 6), 1)
    lines_more = -(-len(handles) // columns) - 2
    drawn.set_figheight(drawn.get_figheight() + _LINE * max(lines_more, 0))
    drawn.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)


def bars(table: Evidence, plot: PlotSpec) -> Figure:
    """Groups of bars along `x`, one bar per `line`, with the range over seeds."""
    names, places = ([k[0] for k in table.groups(c)] for c in (plot.line, plot.x))
    styles = line_styles(names)
    columns = [y for y in plot.y if table.values(y).size]
    drawn = figure(1 + max(1.1 * len(places), 2.6) * len(columns), 2.9)
    width = 0.8 / len(names)
    for axes, y in zip(drawn.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        for k, name in enumerate(names):
            found = [_spread(table.where({plot.line: name, plot.x: place}), y) for place in places]
            mean, low, high = np.array(found).T
            at = np.arange(len(places)) + (k - (len(names) - 1) / 2) * width
            axes.bar(at, mean, width * 0.9, color=styles[name].colour, label=label(str(name)))
            axes.vlines(at, low, high, color="black", lw=0.8)
        axes.set_xticks(range(len(places)), [str(p).replace(" ", "\n") for p in places])
        axes.set_title(_TITLES.get(y, y))
        axes.grid(visible=False, axis="x")
        axes.set_axisbelow(True)
    if len(names) > 1:
        _below(drawn, axes.get_legend_handles_labels()[0], _TITLES.get(plot.line))
    return drawn


def line_styles(names: Sequence[Any]) -> dict[Any, Mark]:
    """A mark per line: the methods' own, and others from what these leave of the wheel, dashed in
    its second turn."""
    known = {n: mark for n, mark in marks(list(METHODS)).items() if n in names}
    used = {mark.colour for mark in known.values()} | {mark.marker for mark in known.values()}
    wheel = [colour for colour in _WHEEL if colour not in used]
    shapes = [shape for shape in _SHAPES if shape not in used]
    others = [n for n in names if n not in known]
    turned = {
        n: Mark(wheel[k % len(wheel)], shapes[k % len(shapes)], "-" if k < len(wheel) else "--")
        for k, n in enumerate(others)
    }
    return {n: known.get(n) or turned[n] for n in names}


MOST_COLUMNS = 6
_LONG = 30  # letters of a title that fit above a panel


@dataclass(frozen=True)
class _Panel:
    """What one panel shows: the values of the recipe's panel columns, and the y column."""

    values: tuple[Any, ...]
    y: str


def _panels(table: Evidence, plot: PlotSpec) -> tuple[Figure, list[tuple[Axes, Evidence, str]]]:
    """One panel per value of the panel columns and per y; titles and labels only where
    they change."""
    rows = _arranged(table, plot)
    wide = max(map(len, rows))
    width, height = ALONE if wide == len(rows) == 1 else PANEL
    drawn = figure(0.6 + width * wide, 0.9 + height * len(rows))
    axes = drawn.subplots(len(rows), wide, squeeze=False)
    found, above = [], {}
    for line, places in zip(rows, axes, strict=True):
        for column, place in enumerate(places):
            if column >= len(line):
                place.set_axis_off()
                continue
            panel = line[column]
            title = _title(plot.panel, panel.values)
            if above.get(column) != title:
                place.set_title(title)
            above[column] = title
            part = table.where(dict(zip(plot.panel, panel.values, strict=True)))
            found.append((place, part, panel.y))
    _share(found)
    return drawn, found


def _arranged(table: Evidence, plot: PlotSpec) -> list[list[_Panel]]:
    """Panels by rows: the first panel column (and the y's, where they fit) across, the rest down;
    a single long row is broken."""
    ys = [y for y in plot.y if table.values(y).size]
    keys = [[k[0] for k in table.groups(c)] for c in plot.panel] or [[]]
    across, down = [(a,) for a in keys[0]] or [()], list(product(*keys[1:]))
    if len(across) * len(ys) <= MOST_COLUMNS:
        rows = [[_Panel(a + d, y) for a in across for y in ys] for d in down]
    else:
        rows = [[_Panel(a + d, y) for a in across] for d in down for y in ys]
    if len(rows) == 1 and len(rows[0]) > MOST_COLUMNS // 2:
        half = -(-len(rows[0]) // 2)
        rows = [rows[0][:half], rows[0][half:]]
    return rows


def _share(found: Sequence[tuple[Axes, Evidence, str]]) -> None:
    """Panels of one column share its scale; all accuracies share theirs."""
    kinds: dict[str, Axes] = {}
    for axes, _, y in found:
        kind = "accuracy" if y.endswith("accuracy") else y
        if kind in kinds:
            axes.sharey(kinds[kind])
        kinds.setdefault(kind, axes)


def _title(names: Sequence[str], values: Sequence[Any]) -> str:
    said = {"alpha": "α = {}", "shortcut": "shortcut {}", "end": "into {}", "front": "from {}"}
    words = "\n".join(said.get(n, "{}").format(v) for n, v in zip(names, values, strict=True))
    return words.replace(" → ", " →\n") if len(words.split("\n")[0]) > _LONG else words


def _end_points(part: Evidence, x: str, y: str) -> list[tuple[int, float]]:
    """Of a stitching plot of one pair: the end at depth 0, and the front at k + 1 of
    its k sites."""
    own = {"clean_accuracy": "accuracy"}.get(y, y)
    donors = [part.values(f"{side}_{own}") for side in ("end", "front")]
    if x != "end_site" or len(part.groups("front", "end")) != 1 or not all(d.size for d in donors):
        return []
    places = (0, part.rows[0]["end_sites"] + 1)
    return [(place, float(found[0])) for place, found in zip(places, donors, strict=True)]


def _name_ends(axes: Axes, ends: Sequence[tuple[int, float]]) -> None:
    """The donors' names at their places on the axis of sites."""
    sites = [int(tick) for tick in axes.get_xticks()]
    places = [place for place, _ in ends]
    axes.set_xticks([places[0], *sites, places[1]], ["end", *map(str, sites), "front"])


def _line(
    axes: Axes,
    rows: Evidence,
    columns: tuple[str, str],
    mark: Mark,
    ends: Sequence[tuple[int, float]] = (),
) -> None:
    x, y = columns
    points = sorted((number(key[0]), *_spread(part, y)) for key, part in rows.groups(x).items())
    if not points:
        return
    points = sorted([*points, *((place, v, v, v) for place, v in ends)])
    at, mean, low, high = np.array(points).T
    axes.plot(
        at, mean, color=mark.colour, linestyle=mark.dashes, marker=mark.marker, mec="white", mew=0.5
    )
    axes.fill_between(at, low, high, color=mark.colour, alpha=0.15, lw=0)


def _spread(rows: Evidence, column: str) -> tuple[float, float, float]:
    """Mean, lowest and highest of the seeds' means."""
    found = rows.per_seed(lambda t: t.reduced({"column": column}))
    return (found.mean(), found.min(), found.max()) if found.size else (np.nan,) * 3


def _labels(axes: Axes, part: Evidence, x: str, y: str) -> None:
    axes.set_xlabel(_TITLES.get(x, x))
    axes.set_ylabel(_TITLES.get(y, y))
    values = part.values(x)
    if x == "radius" and values.size:
        axes.set_xscale("log")
        ticks = sorted(set(values.tolist()))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    elif values.size and np.array_equal(values, values.astype(int)):
        ticks = sorted(set(values.astype(int).tolist()))
        axes.set_xticks(ticks if len(ticks) <= 10 else ticks[::2])


def _key(mark: Mark, name: Any):
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=mark.colour, ls=mark.dashes, marker=mark.marker, mec="white", mew=0.5,
        label=label(str(name)),
    )  # fmt: skip


KINDS: dict[str, Callable[[Evidence, PlotSpec], Figure]] = {"lines": lines, "bars": bars}
