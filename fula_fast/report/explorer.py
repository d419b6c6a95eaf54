"""The interactive part of a report: the numbers it draws from, and the library that draws them.

`explorer.js` draws with plotly.js, which the package plotly carries; both stand in the page, which
needs no network then. What it shows: per study (donors and setting) a measure over depth with
Student's 95 % intervals over the chosen seeds, cross-layer maps, and the maps of similarity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import stats

from ..errors import FulaError
from ..store import COLUMNS
from ..study.expand import same_sites
from .similarity_cells import PairSimilarity, Panel
from .studies import METRICS, Row, Study, title, varying
from .style import label, marks

_SYMBOLS = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down",
    "P": "cross", "X": "x", "*": "star",
}  # fmt: skip
"""Matplotlib's markers by plotly's names."""

_DIGITS = 6
"""Of a number in the page; six tell the accuracies of a million images apart."""


@dataclass(frozen=True)
class Explorer:
    """What the page holds of it: `data` for `explorer.js`, the `script`, and the `library`."""

    data: dict[str, Any]
    script: str
    library: str


def explorer(
    rows: Sequence[Row], found: Sequence[Study], pairs: Sequence[PairSimilarity]
) -> Explorer:
    """Of a run's rows, in the order of the page's table, its studies and its similarities.

    Raises `FulaError` where plotly is not installed.
    """
    library = _library()
    script = files("fula_fast.report").joinpath("explorer.js").read_text("utf-8")
    places = {row["cell"]: place for place, row in enumerate(rows)}
    names = _measured(rows, {name for study in found for name, _ in study.setting})
    shown = varying(found)
    data = {
        "measures": [[n, METRICS.get(n, n), n.endswith("accuracy")] for n in names],
        "methods": _drawn({m for study in found for m in study.methods}),
        "studies": [_study(study, title(study, shown), names, places) for study in found],
        "pairs": [_pair(pair) for pair in pairs if pair.panels],
        "quantiles": _quantiles(found),
    }
    return Explorer(data, script, library)


def _library() -> str:
    """plotly.js as one text."""
    if find_spec("plotly") is None:
        raise FulaError(
            "an interactive report needs plotly: pip install 'fula-fast[interactive]', or leave "
            "--interactive out"
        )
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _measured(rows: Sequence[Row], settings: set[str]) -> list[str]:
    """The columns of numbers that stitched models have, those of the stitching plots first."""
    found = {n for row in rows for n, v in row.items() if type(v) is float and _of_models(n)}
    found -= settings
    return [n for n in METRICS if n in found] + sorted(n for n in found if n not in METRICS)


def _of_models(name: str) -> bool:
    """Not a donor's, and no count."""
    return not name.startswith(("front_", "end_")) and COLUMNS.get(name, "double") == "double"


def _drawn(names: set[str]) -> dict[str, dict[str, str]]:
    """How every method is drawn, in plotly's words."""
    return {
        name: {
            "label": label(name),
            "colour": mark.colour,
            "symbol": _SYMBOLS[mark.marker],
            "dash": _dash(mark.dashes),
        }
        for name, mark in marks(sorted(names)).items()
    }


def _dash(dashes: tuple[float, tuple[float, ...]] | str) -> str:
    if isinstance(dashes, str):
        return "solid"
    return ",".join(f"{2 * length:g}px" for length in dashes[1])


def _study(
    study: Study, setting: str, names: Sequence[str], places: dict[str, int]
) -> dict[str, Any]:
    """A study's rows as lists: place in the table, method, front site, end site, seed, then the
    measures."""
    seeds = list(dict.fromkeys(map(_seed, study.rows)))
    ends = {n: [_number(v[0] if v else None) for v in study.end_points(n)] for n in names}
    return {
        "title": f"{study.front} → {study.end}" + (f" ({setting})" if setting else ""),
        "sites": study.sites,
        "same": same_sites(*study.sites),
        "methods": study.methods,
        "seeds": seeds,
        "ends": ends,
        "rows": [
            [
                places[row["cell"]],
                study.methods.index(row["method"]),
                row["front_site"],
                row["end_site"],
                seeds.index(_seed(row)),
                *(_number(row.get(name)) for name in names),
            ]
            for row in study.rows
        ],
    }


def _seed(row: Row) -> str:
    """`3`; `3, data 0` where the data's order has another."""
    seed, data = row.get("seed"), row.get("data_seed")
    return str(seed) if data in (seed, None) else f"{seed}, data {data}"


def _pair(pair: PairSimilarity) -> dict[str, Any]:
    return {
        "title": f"{pair.front} → {pair.end}",
        "sites": pair.sites,
        "panels": [_panel(panel) for panel in pair.panels],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    p = panel.p if panel.p_family is None else panel.p_family
    matrices = {"values": panel.values, "low": panel.low, "high": panel.high, "p": p}
    numbers = {n: [list(map(_number, line)) for line in m] for n, m in matrices.items()}
    told = {"label": panel.label, "distance": panel.distance, "percent": panel.percent}
    return told | numbers


def _number(value: Any) -> float | None:
    """For JSON, which has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _quantiles(found: Sequence[Study]) -> list[float]:
    """Student's, two-sided 95 %, for two seeds and more."""
    most = max((len(set(map(_seed, study.rows))) for study in found), default=0)
    return [float(q) for q in stats.t.ppf(0.975, np.arange(1, max(most, 2)))]
