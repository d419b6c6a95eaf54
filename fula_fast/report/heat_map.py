"""The cross-layer heat map: rows are front sites, columns end sites, one panel per method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ..measures.self_accuracy import self_accuracy
from ..study.expand import same_sites
from .studies import METRICS, Study, title
from .style import figure, label, zoom

COLOURS = "cividis"  # even for colour-blind readers, and monotone in grey
MOST_COLUMNS = 3
CELL = 0.34  # inches


def heat_map(study: Study, metric: str, shown: set[str]) -> Figure:
    """All methods of a study on one colour scale, with numbers, and Self-Accuracy in the titles.

    Bold: the largest number of its row. Framed: the same-site cells.
    """
    percent = metric.endswith("accuracy")
    matrices = {m: (100 if percent else 1) * study.matrix(m, metric) for m in study.methods}
    drawn, panels = canvas(len(matrices), study.sites)
    low, high = scale(list(matrices.values()))
    for axes, (method, matrix) in zip(panels, matrices.items(), strict=False):
        image = shaded(axes, matrix, low, high)
        write_numbers(axes, matrix, image, digits=0 if percent else 2)
        frame(axes, same_sites(*study.sites))
        axes.set_title(f"{label(method)}{_self_text(matrix)}")
    unit = f"{METRICS[metric]} (%)" if percent else METRICS[metric]
    drawn.colorbar(image, ax=panels, shrink=0.8, pad=0.02, label=unit)
    words = ", ".join(filter(None, (f"{study.front} → {study.end}", title(study, shown))))
    drawn.suptitle(words, weight="bold", x=0.01, ha="left")
    return drawn


def canvas(
    count: int, sites: tuple[int, int], most: int = MOST_COLUMNS
) -> tuple[Figure, np.ndarray]:
    """A figure with `count` panels for matrices of (front, end) sites, as even as they go, at most
    `most` in a row."""
    rows = math.ceil(count / most)
    columns = math.ceil(count / rows)
    high, wide = (CELL * max(n, 5) for n in sites)
    drawn = figure(1.2 + columns * (wide + 0.7), 0.7 + rows * (high + 0.9))
    panels = drawn.subplots(rows, columns, squeeze=False).flatten()
    for spare in panels[count:]:
        spare.set_axis_off()
    return drawn, panels


def scale(matrices: list[np.ndarray]) -> tuple[float, float]:
    """The least and the largest number of all panels, each (sites, sites)."""
    values = np.concatenate([m[~np.isnan(m)] for m in matrices])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def shaded(
    axes: Axes, matrix: np.ndarray, low: float, high: float, colours: str = COLOURS
) -> AxesImage:
    """A matrix (sites, sites) as an image with its sites as ticks."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(matrix.shape[1]), _counted(matrix.shape[1]))
    axes.set_yticks(range(matrix.shape[0]), _counted(matrix.shape[0]))
    axes.set_xlabel("End site")
    axes.set_ylabel("Front site")
    return axes.imshow(matrix, cmap=colours, vmin=low, vmax=high)


def write_numbers(
    axes: Axes,
    matrix: np.ndarray,
    image: AxesImage,
    digits: int,
    *,
    least: bool = False,
    bold: bool = True,
) -> None:
    """The numbers (rows, columns) of an image, the largest of each row bold (`least`: the smallest;
    `bold` false: none)."""
    ranked = -matrix if least else matrix
    peaks = np.where(np.isnan(ranked), -np.inf, ranked).max(axis=1)
    for row, column, text, dark in _numbers(matrix, image, digits):
        axes.text(
            column, row, text, ha="center", va="center", fontsize=7 * zoom(),
            color="white" if dark else "black",
            weight="bold" if bold and ranked[row, column] == peaks[row] else "normal",
        )  # fmt: skip


def frame(axes: Axes, pairs: Iterable[tuple[int, int]]) -> None:
    """Black on white, so that a frame is seen on dark and on light colours."""
    for front, end in pairs:
        for colour, width in (("white", 2.2), ("black", 0.9)):
            corner = end - 1.5, front - 1.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width))


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


def _counted(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]


def _self_text(matrix: np.ndarray) -> str:
    if matrix.shape[0] != matrix.shape[1] or np.isnan(matrix).any():
        return ""
    both = self_accuracy(matrix), self_accuracy(matrix, averaged=True)
    return "\nSelf-Accuracy {:.0%} ({:.0%})".format(*both)
