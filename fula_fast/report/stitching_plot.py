"""The stitching plot: a metric against depth, one line per method, donors at both ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .studies import METRICS, Curve, Study, title
from .style import Mark, figure, label, marks

PANEL = 3.3, 2.6
"""Width and height of a panel, inches."""


def stitching_plot(found: Sequence[Study], shown: set[str]) -> Figure:
    """One row of panels per study of a pair, one column per metric; accuracies share their scale.

    `found` has at least one same-site cell in each; `shown`: columns that the titles tell.
    """
    metrics = [m for m in METRICS if any(m in study.metrics() for study in found)]
    methods = list(dict.fromkeys(method for study in found for method in study.methods))
    drawn = figure(0.6 + PANEL[0] * len(metrics), 0.9 + PANEL[1] * len(found))
    panels = drawn.subplots(len(found), len(metrics), squeeze=False)
    for row, study in zip(panels, found, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            _panel(axes, study, metric, marks(methods))
            if study is found[0]:
                axes.set_title(METRICS[metric])
            if study is not found[-1]:
                axes.set_xlabel("")
        row[0].set_ylabel(title(study, shown).replace(", ", "\n"), weight="bold")
    for percent in (True, False):
        chosen = [_percent(metric) == percent for metric in metrics]
        _share_scale([axes for row in panels for axes in row[chosen]], 100 if percent else 1)
    drawn.suptitle(f"{found[0].front} → {found[0].end}", weight="bold", x=0.01, ha="left")
    _legend(drawn, methods, max(_seeds(study) for study in found))
    return drawn


def _panel(axes: Axes, study: Study, metric: str, styles: dict[str, Mark]) -> None:
    for method in study.methods:
        _line(axes, study.curve(method, metric), styles[method], 100 if _percent(metric) else 1)
    last = study.sites[1] + 1
    axes.set_xticks(range(last + 1), ["end\nmodel", *map(str, range(1, last)), "front\nmodel"])
    axes.set_xlim(-0.4, last + 0.4)
    equal = study.sites[0] == study.sites[1]
    axes.set_xlabel("Site" if equal else "End site (front site at the same relative depth)")
    if _percent(metric):
        axes.yaxis.set_major_formatter("{x:g}%")
    axes.grid(visible=False, axis="x")


def _line(axes: Axes, curve: Curve, mark: Mark, scale: float) -> None:
    style = {"color": mark.colour, "linestyle": mark.dashes}
    inner = slice(1, -1)
    axes.plot(curve.depths, scale * curve.mean, **style)
    axes.plot(
        curve.depths[inner],
        scale * curve.mean[inner],
        mark.marker,
        color=mark.colour,
        mec="white",
        mew=0.5,
    )
    if curve.seeds > 1:
        low, high = scale * curve.low, scale * curve.high
        axes.fill_between(curve.depths, low, high, color=mark.colour, alpha=0.15, lw=0)
    ends = curve.depths[[0, -1]], scale * curve.mean[[0, -1]]
    axes.plot(*ends, "o", color="black", mfc="white", ms=5.5, zorder=5, clip_on=False)


def _percent(metric: str) -> bool:
    return metric.endswith("accuracy")


def _share_scale(panels: list[Axes], top: float) -> None:
    """One scale for panels of one unit, as narrow as the data allow; nothing exceeds `top`."""
    values = [np.asarray(line.get_ydata(), float) for axes in panels for line in axes.lines]
    numbers = np.concatenate(values) if values else np.array([])
    if np.isfinite(numbers).any():
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        margin = max(0.06 * (high - low), 0.005 * top)
        for axes in panels:
            axes.set_ylim(max(low - margin, -0.01 * top), min(high + margin, 1.01 * top))


def _seeds(study: Study) -> int:
    return max(study.curve(m, metric).seeds for m in study.methods for metric in study.metrics())


def _legend(drawn: Figure, methods: list[str], seeds: int) -> None:
    lines = [
        Line2D(
            [],
            [],
            color=s.colour,
            ls=s.dashes,
            marker=s.marker,
            mec="white",
            mew=0.5,
            label=label(m),
        )
        for m, s in marks(methods).items()
    ]
    donors = Line2D([], [], color="black", ls="", marker="o", mfc="white", label="donor itself")
    note = f"line: mean of {seeds} seeds, band: lowest to highest" if seeds > 1 else None
    drawn.legend(
        handles=[*lines, donors], loc="outside lower center", ncols=len(lines) + 1, title=note,
        handlelength=3,
    )  # fmt: skip
