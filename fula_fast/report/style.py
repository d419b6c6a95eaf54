"""How plots look: the Okabe-Ito palette with a marker and a line style per method.

Every method differs from the others in three ways, so that the lines stay apart for colour-blind
readers and in grey print.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..files.atomic import replacing
from ..methods import Mark, methods

RC = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "text.parse_math": False,  # a donor may have a $ in its name
    "svg.fonttype": "path",  # the same on every reader's machine
    "svg.hashsalt": "fula_fast",
}


_SPARE = (
    Mark("#CC79A7", "P", (0, (6, 2))),
    Mark("#56B4E9", "X", (0, (2, 1))),
    Mark("#7F7F7F", "*", (0, (8, 1, 1, 1))),
)


def marks(names: list[str]) -> dict[str, Mark]:
    """A mark per method: its own, or, as mixtures have none, the spare ones in turn."""
    own = {each.name: each.mark for each in methods() if each.mark is not None}
    others = [name for name in names if name not in own]
    spare = {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}
    return {name: own.get(name) or spare[name] for name in names}


def label(method: str) -> str:
    """A method's name as printed; a mixture's is its own."""
    return {each.name: each.label for each in methods()}.get(method, method)


def look() -> AbstractContextManager[None]:
    """Draw and save inside this context; the caller's own settings stay as they are."""
    return matplotlib.rc_context(RC)


def figure(width: float, height: float) -> Figure:
    """An empty figure (inches) outside pyplot: nothing to close, no display needed."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(drawn: Figure, path: Path) -> Path:
    """Write `path` as SVG and, beside it, as PNG; the same rows give the same bytes."""
    return write_files(rendered(drawn), path)


def rendered(drawn: Figure) -> dict[str, bytes]:
    """The figure's files by suffix, laid out once for both: `savefig` measures all text anew, twice
    a file, which takes most of a report's time."""
    drawn.draw_without_rendering()
    engine, dpi = drawn.get_layout_engine(), drawn.dpi
    found = {".svg": BytesIO(), ".png": BytesIO()}
    try:
        drawn.set_layout_engine("none")
        FigureCanvasSVG(drawn).print_svg(found[".svg"], metadata={"Date": None})
        drawn.dpi = 160
        FigureCanvasAgg(drawn).print_png(found[".png"])
    finally:
        drawn.dpi = dpi
        drawn.set_layout_engine(engine)
    return {suffix: content.getvalue() for suffix, content in found.items()}


def write_files(content: Mapping[str, bytes], path: Path) -> Path:
    """Write what `rendered` gave beside `path`; returns the SVG's path."""
    for suffix, data in content.items():
        with replacing(path.with_suffix(suffix)) as temporary:
            temporary.write_bytes(data)
    return path.with_suffix(".svg")
