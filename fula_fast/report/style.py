"""How plots look: the Okabe-Ito palette with a marker and a line style per method.

Every method differs from the others in three ways, so that the lines stay apart for colour-blind
readers and in grey print. They keep these in every matplotlib style that a plot is drawn in.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from ..errors import FulaError
from ..files.atomic import replacing
from ..files.paths import user_path
from ..methods import Mark, methods

RC: dict[Any, Any] = {
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
    "svg.fonttype": "path",  # the same on every reader's machine
}

_RELATIVE: dict[Any, Any] = {
    "axes.titlesize": "medium",
    "axes.labelsize": "medium",
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
    "legend.fontsize": "small",
    "legend.title_fontsize": "small",
}
"""Under a style, whose `font.size` then holds for all text."""

_ALWAYS: dict[Any, Any] = {
    "text.parse_math": False,  # a donor may have a $ in its name
    "svg.hashsalt": "fula_fast",
}

PAPER: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 7,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text, for a figure's last touches
}
"""The style `paper`: sizes for a column of a paper."""

_SPARE = (
    Mark("#CC79A7", "P", (0, (6, 2))),
    Mark("#56B4E9", "X", (0, (2, 1))),
    Mark("#7F7F7F", "*", (0, (8, 1, 1, 1))),
)


def marks(names: list[str]) -> dict[str, Mark]:
    """A mark per method: its own, or, as mixtures have none, the spare ones in turn. A black one is
    white where the style in use draws on a dark ground."""
    own = {each.name: each.mark for each in methods() if each.mark is not None}
    others = [name for name in names if name not in own]
    spare = {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}
    return {name: _seen(own.get(name) or spare[name]) for name in names}


def _seen(mark: Mark) -> Mark:
    *ground, opaque = to_rgba(matplotlib.rcParams["axes.facecolor"])
    dark = opaque and sum(ground) / 3 < 0.5
    return replace(mark, colour="white") if dark and not any(to_rgb(mark.colour)) else mark


def label(method: str) -> str:
    """A method's name as printed; a mixture's is its own."""
    return {each.name: each.label for each in methods()}.get(method, method)


def look(style: str | Path | None = None) -> AbstractContextManager[None]:
    """Draw and save inside this context; the caller's own settings stay as they are.

    `style`: `paper`, one of matplotlib's own (`ggplot`), or the path of a `.mplstyle` file; it
    comes on top of ours. Raises `FulaError`, at once, where there is none such.
    """
    if style is None:
        return matplotlib.rc_context(RC | _ALWAYS)
    return matplotlib.style.context([RC | _RELATIVE, _settings(style), _ALWAYS])


def _settings(style: str | Path) -> dict[Any, Any]:
    known = matplotlib.style.library
    named = {"paper": PAPER} | {n: {**known[n]} for n in matplotlib.style.available}
    if str(style) in named:
        return named[str(style)]
    path = user_path(style)
    if not path.is_file():
        raise FulaError(
            f"unknown style '{style}'; give a name ({', '.join(named)}) "
            "or the path of a .mplstyle file"
        )
    try:
        return {**matplotlib.rc_params_from_file(path, use_default_template=False)}
    except (OSError, UnicodeDecodeError) as error:
        raise FulaError(f"style '{style}' cannot be read: {error}") from None


def zoom() -> float:
    """Of the style's letters to ours; figures, and what has its own size in them, go with it."""
    return matplotlib.rcParams["font.size"] / RC["font.size"]


def figure(width: float, height: float) -> Figure:
    """An empty figure (inches, for letters of our size) outside pyplot: nothing to close, no
    display needed."""
    made = Figure(figsize=(zoom() * width, zoom() * height), layout="constrained")
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
