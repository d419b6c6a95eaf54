"""Plots of an experiment's rows: lines and bars over any columns, drawn in the report's style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..report.studies import METHODS, METRICS
from ..report.style import Mark, figure, label, marks
from .evidence import Table, number
from .recipe import PlotSpec

PANEL = 2.7, 2.1
_TITLES = METRICS | {
    "marked_accuracy": "Accuracy with shortcut",
    "cka": "CKA",
    "end_site": "Site",
    "front_site": "Front site",
    "radius": "Radius of the clusters",
    "classes": "Classes trained on",
    "terms": "Functional terms",
    "receiver_accuracy": "Accuracy, receiver's own images",
}
_WHEEL = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")
_SHAPES = "o^vs*PX<>"


def draw(table: Table, plot: PlotSpec) -> Figure | None:
    """The recipe's plot, or None where no row has its columns. Call it inside `style.look`."""
    chosen = _sided(table) if plot.line == "side" else table
    chosen = chosen.where(plot.where)
    chosen = Table(
        tuple(r for r in chosen.rows if r.get(plot.x) is not None and r.get(plot.line) is not None)
    )
    return KINDS[plot.kind](chosen, plot) if any(chosen.values(y).size for y in plot.y) else None


def _sided(table: Table) -> Table:
    """Rows off the diagonal with the side on which they lie."""
    sides = ("deep to shallow", "shallow to deep")
    rows = (row | {"side": s} for s in sides for row in table.where({"side": s}).rows)
    return Table(tuple(rows))


def lines(table: Table, plot: PlotSpec) -> Figure:
    """A line per `line`: means over seeds (and over what else differs), band from low to high."""
    styles = line_styles([key[0] for key in table.groups(plot.line)])
    drawn, grid = _panels(table, plot)
    for axes, part, y in grid:
        for (name,), rows in part.groups(plot.line).items():
            _line(axes, rows, plot.x, y, styles[name])
        _labels(axes, part, plot.x, y)
    handles = [_key(styles[name], name) for name in styles]
    drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return drawn


def bars(table: Table, plot: PlotSpec) -> Figure:
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
    if len(names) > 1:
        handles, texts = axes.get_legend_handles_labels()
        drawn.legend(handles, texts, loc="outside lower center", ncols=4)
    return drawn


def line_styles(names: Sequence[Any]) -> dict[Any, Mark]:
    """A mark per line: the methods' own, and others from the wheel, dashed in its second turn."""
    known = marks(list(METHODS))
    others = [n for n in names if n not in known]
    turned = {
        n: Mark(
            _WHEEL[k % len(_WHEEL)], _SHAPES[k % len(_SHAPES)], "-" if k < len(_WHEEL) else "--"
        )
        for k, n in enumerate(others)
    }
    return {n: known.get(n) or turned[n] for n in names}


def _panels(table: Table, plot: PlotSpec) -> tuple[Figure, list[tuple[Axes, Table, str]]]:
    """Columns: the first panel column's values, or the y's; rows: what is left."""
    ys = [y for y in plot.y if table.values(y).size]
    keys = [[k[0] for k in table.groups(c)] for c in plot.panel]
    across = [(v,) for v in keys[0]] if keys else [()]
    down = list(product(*keys[1:])) if keys else [()]
    cells = [(d, y) for d in down for y in ys] if keys else [((), None)]
    columns = [(a, None) for a in across] if keys else [((), y) for y in ys]
    drawn = figure(0.6 + PANEL[0] * len(columns), 0.9 + PANEL[1] * len(cells))
    axes = drawn.subplots(len(cells), len(columns), squeeze=False, sharey=bool(keys), sharex=True)
    found = []
    for (d, row_y), line in zip(cells, axes, strict=True):
        for (a, column_y), panel in zip(columns, line, strict=True):
            part = table.where(dict(zip(plot.panel, a + d, strict=False)))
            panel.set_title(_title(plot.panel, a + d))
            found.append((panel, part, row_y or column_y))
    return drawn, found


def _title(names: Sequence[str], values: Sequence[Any]) -> str:
    said = {"alpha": "α = {}", "shortcut": "shortcut {}"}
    return "\n".join(said.get(n, "{}").format(v) for n, v in zip(names, values, strict=False))


def _line(axes: Axes, rows: Table, x: str, y: str, mark: Mark) -> None:
    points = sorted((number(key[0]), *_spread(part, y)) for key, part in rows.groups(x).items())
    if not points:
        return
    at, mean, low, high = np.array(points).T
    axes.plot(
        at, mean, color=mark.colour, linestyle=mark.dashes, marker=mark.marker, mec="white", mew=0.5
    )
    axes.fill_between(at, low, high, color=mark.colour, alpha=0.15, lw=0)


def _spread(rows: Table, column: str) -> tuple[float, float, float]:
    """Mean, lowest and highest of the seeds' means."""
    found = rows.per_seed(lambda t: t.reduced({"column": column}))
    return (found.mean(), found.min(), found.max()) if found.size else (np.nan,) * 3


def _labels(axes: Axes, part: Table, x: str, y: str) -> None:
    axes.set_xlabel(_TITLES.get(x, x))
    axes.set_ylabel(_TITLES.get(y, y))
    values = part.values(x)
    if x == "radius" and values.size:
        axes.set_xscale("log")
    elif values.size and np.array_equal(values, values.astype(int)):
        ticks = sorted(set(values.astype(int).tolist()))
        axes.set_xticks(ticks if len(ticks) <= 10 else ticks[::2])


def _key(mark: Mark, name: Any):
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=mark.colour, ls=mark.dashes, marker=mark.marker, mec="white", mew=0.5,
        label=label(str(name)),
    )  # fmt: skip


KINDS: dict[str, Callable[[Table, PlotSpec], Figure]] = {"lines": lines, "bars": bars}
