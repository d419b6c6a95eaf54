"""How plots look: the Okabe-Ito palette with a marker and a line style per method.

Every method differs from the others in three ways, so that the lines stay apart for colour-blind
readers and in grey print.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files.atomic import replacing

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


@dataclass(frozen=True)
class Mark:
    """A method's colour, marker and dash pattern."""

    colour: str
    marker: str
    dashes: tuple[float, ...] | str


_MARKS = {
    "dm": Mark("#000000", "s", (0, (1, 1.2))),
    "hint": Mark("#0072B2", "o", (0, (5, 1.5))),
    "slm": Mark("#E69F00", "^", (0, (4, 1.2, 1, 1.2))),
    "tlm": Mark("#D55E00", "v", (0, (3, 1, 1, 1, 1, 1))),
    "fula": Mark("#009E73", "D", "-"),
}
_SPARE = (
    Mark("#CC79A7", "P", (0, (6, 2))),
    Mark("#56B4E9", "X", (0, (2, 1))),
    Mark("#7F7F7F", "*", (0, (8, 1, 1, 1))),
)
LABELS = {"dm": "DM", "hint": "Hint", "slm": "SLM", "tlm": "TLM", "fula": "FuLA"}


def marks(methods: list[str]) -> dict[str, Mark]:
    """A mark per method; mixtures take the spare ones in turn."""
    others = [method for method in methods if method not in _MARKS]
    spare = {method: _SPARE[i % len(_SPARE)] for i, method in enumerate(others)}
    return {method: _MARKS.get(method) or spare[method] for method in methods}


def label(method: str) -> str:
    """A method's name as printed."""
    return LABELS.get(method, method)


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
    """The figure's files by suffix."""
    found = {}
    for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 160})):
        content = BytesIO()
        drawn.savefig(content, format=suffix[1:], **options)
        found[suffix] = content.getvalue()
    return found


def write_files(content: Mapping[str, bytes], path: Path) -> Path:
    """Write what `rendered` gave beside `path`; returns the SVG's path."""
    for suffix, data in content.items():
        with replacing(path.with_suffix(suffix)) as temporary:
            temporary.write_bytes(data)
    return path.with_suffix(".svg")
