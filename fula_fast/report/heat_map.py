"""The cross-layer heat map: rows are front sites, columns end sites, one panel per method."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from .self_accuracy import self_accuracy
from .studies import METRICS, Study, title
from .style import figure, label

COLOURS = "cividis"  # even for colour-blind readers, and monotone in grey
MOST_COLUMNS = 3


def heat_map(study: Study, metric: str, shown: set[str]) -> Figure:
    """All methods of a study on one colour scale, with numbers, and Self-Accuracy in the titles."""
    columns = min(len(study.methods), MOST_COLUMNS)
    rows = math.ceil(len(study.methods) / columns)
    wide, high = (0.34 * max(n, 4) for n in (study.sites[1], study.sites[0]))
    drawn = figure(1.0 + columns * (wide + 0.7), 0.7 + rows * (high + 0.9))
    panels = drawn.subplots(rows, columns, squeeze=False).flatten()
    factor = 100 if metric.endswith("accuracy") else 1
    matrices = {method: factor * study.matrix(method, metric) for method in study.methods}
    low, high = scale(list(matrices.values()))
    for axes, (method, matrix) in zip(panels, matrices.items(), strict=False):
        image = _panel(axes, matrix, low, high, digits=0 if factor == 100 else 2)
        axes.set_title(f"{label(method)}{_self_text(matrix)}")
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    drawn.colorbar(
        image,
        ax=panels,
        shrink=0.8,
        pad=0.02,
        label=f"{METRICS[metric]}{' (%)' if factor == 100 else ''}",
    )
    words = ", ".join(filter(None, (f"{study.front} → {study.end}", title(study, shown))))
    drawn.suptitle(words, weight="bold", x=0.01, ha="left")
    return drawn


def scale(matrices: list[np.ndarray]) -> tuple[float, float]:
    """The least and the largest number of all panels."""
    values = np.concatenate([m[~np.isnan(m)] for m in matrices])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _panel(axes: Axes, matrix: np.ndarray, low: float, high: float, *, digits: int) -> AxesImage:
    image = axes.imshow(matrix, cmap=COLOURS, vmin=low, vmax=high)
    axes.set_facecolor("white")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(matrix.shape[1]), range(1, matrix.shape[1] + 1))
    axes.set_yticks(range(matrix.shape[0]), range(1, matrix.shape[0] + 1))
    axes.set_xlabel("End site")
    axes.set_ylabel("Front site")
    peaks = np.where(np.isnan(matrix), -np.inf, matrix).max(axis=1)
    for row, column, text, dark in _numbers(matrix, image, digits):
        axes.text(
            column, row, text, ha="center", va="center", fontsize=7,
            color="white" if dark else "black",
            weight="bold" if matrix[row, column] == peaks[row] else "normal",
        )  # fmt: skip
    for place in range(min(matrix.shape)):  # the diagonal, seen on dark and on light colours
        for colour, width in (("white", 2.2), ("black", 0.9)):
            corner = place - 0.5, place - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width))
    return image


def _numbers(
    matrix: np.ndarray, image: AxesImage, digits: int
) -> Iterator[tuple[int, int, str, bool]]:
    """(row, column, text, whether the colour beneath is dark) of every cell."""
    for (row, column), value in np.ndenumerate(matrix):
        if math.isnan(value):
            yield row, column, "–", False
        else:
            red, green, blue, _ = image.cmap(image.norm(value))
            text = f"{value:.{digits}f}".replace("0.", ".", digits)
            yield row, column, text, luma(red, green, blue) < 0.5


def luma(red: float, green: float, blue: float) -> float:
    """Perceived brightness in [0, 1] (ITU-R BT.601)."""
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _self_text(matrix: np.ndarray) -> str:
    if matrix.shape[0] != matrix.shape[1] or np.isnan(matrix).any():
        return ""
    both = self_accuracy(matrix), self_accuracy(matrix, averaged=True)
    return "\nSelf-Accuracy {:.0%} ({:.0%})".format(*both)
