"""A run's similarity table and its stitching, pair by pair, as matrices that compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from ..measures.chance import oriented
from ..measures.intervals import RankAgreement, kendall
from ..measures.registry import Measure, measure
from ..measures.self_accuracy import self_accuracy
from ..store.similarity_table import Row, matrix_of
from .over_seeds import Values, interval_of
from .studies import Seed, Study, title, varying
from .style import label
from .summary import aligned

ALPHA = 0.05
"""A cell whose p is larger is not above chance."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One measure, or the stitching accuracy of one method, over site pairs (front, end).

    `similar`: the values, larger for more similar. `p`: of each cell by itself; `p_family`:
    corrected for all cells; `low`, `high`: over images, or over seeds of stitches; NaN where they
    are unknown. `seeds`: the values of every seed of stitches.
    """

    name: str
    label: str
    values: np.ndarray
    similar: np.ndarray
    p: np.ndarray
    low: np.ndarray
    high: np.ndarray
    distance: bool = False
    percent: bool = False
    p_best: float = np.nan
    p_family: np.ndarray | None = None
    seeds: Mapping[Seed, np.ndarray] = field(default_factory=dict)

    @property
    def not_above_chance(self) -> np.ndarray:
        """Cells that the permutations could not tell from chance, all of them looked at."""
        return (self.p if self.p_family is None else self.p_family) > ALPHA

    @property
    def self_accuracy(self) -> tuple[float, float] | None:
        """Directed and averaged, of whole square matrices."""
        return _self_accuracy(self.similar)

    def self_accuracies(self, averaged: bool) -> Values | None:
        """Of every seed, where stitches have several; else the one; None without."""
        place = int(averaged)
        of_seeds = {s: f[place] for s, m in self.seeds.items() if (f := _self_accuracy(m))}
        if len(of_seeds) > 1:
            return of_seeds
        return None if self.self_accuracy is None else self.self_accuracy[place]


def _self_accuracy(matrix: np.ndarray) -> tuple[float, float] | None:
    if matrix.shape[0] != matrix.shape[1] or np.isnan(matrix).any():
        return None
    return self_accuracy(matrix), self_accuracy(matrix, averaged=True)


@dataclass(frozen=True, eq=False)
class PairSimilarity:
    """Two donors: their panels, measures first, then methods; `outputs`: rows of their answers."""

    front: str
    end: str
    panels: tuple[Panel, ...]
    outputs: tuple[Row, ...]

    @property
    def sites(self) -> tuple[int, int]:
        """Of front and end."""
        return self.panels[0].values.shape

    def self_accuracies(self, averaged: bool = False) -> dict[str, Values]:
        """Of every panel that has one, by its label."""
        found = {panel.label: panel.self_accuracies(averaged) for panel in self.panels}
        return {name: values for name, values in found.items() if values is not None}

    def tau(self) -> dict[tuple[str, str], RankAgreement]:
        """Kendall's tau of every two panels over the site pairs that both have."""
        both = product(self.panels, repeat=2)
        return {(a.name, b.name): kendall(a.similar, b.similar) for a, b in both}


def pair_similarities(rows: Iterable[Row], found: Sequence[Study] = ()) -> list[PairSimilarity]:
    """The pairs of a similarity table, with the cross-layer stitching of the run beside them."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row["front"], row["end"]), []).append(row)
    return [_pair(*names, of_pair, found) for names, of_pair in pairs.items()]


def _pair(front: str, end: str, rows: Sequence[Row], found: Sequence[Study]) -> PairSimilarity:
    with_sites = [row for row in rows if row.get("front_site")]
    by_measure: dict[str, list[Row]] = {}
    for row in with_sites:
        by_measure.setdefault(row["measure"], []).append(row)
    panels = [_of_measure(measure(name), mine) for name, mine in by_measure.items()]
    mine = [s for s in found if (s.front, s.end) == (front, end)]
    panels += [panel for study in mine for panel in _of_methods(study, varying(mine))]
    outputs = tuple(row for row in rows if not row.get("front_site"))
    return PairSimilarity(front, end, tuple(panels), outputs)


def _of_measure(chosen: Measure, rows: Sequence[Row]) -> Panel:
    values = matrix_of(rows, "value")
    p, low, high, every = (matrix_of(rows, name) for name in ("p", "low", "high", "p_family"))
    best = rows[0].get("p_best")
    return Panel(
        chosen.name, chosen.label, values, oriented(chosen, values), p, low, high,
        distance=not chosen.similarity, p_best=np.nan if best is None else best, p_family=every,
    )  # fmt: skip


def _of_methods(study: Study, shown: set[str]) -> Iterator[Panel]:
    """The accuracies of stitched models, where all site pairs were stitched or some beside the
    same-site ones."""
    if not study.cross_layer:
        return
    for method in study.methods:
        values = study.matrix(method, "accuracy")
        unknown = np.full(values.shape, np.nan)
        setting = title(study, shown)
        name = f"stitching, {label(method)}{f' ({setting})' if setting else ''}"
        seeds = study.matrices(method, "accuracy")
        low, high = interval_of(list(seeds.values()))
        yield Panel(name, name, values, values, unknown, low, high, percent=True, seeds=seeds)


def summary_rows(pair: PairSimilarity) -> list[tuple[str, ...]]:
    """What a table says of a pair, under `SIMILARITY_HEADINGS`."""
    return [*(_summary(panel) for panel in pair.panels), *(_output(row) for row in pair.outputs)]


SIMILARITY_HEADINGS = (
    "measure", "Self-Accuracy", "most similar", "value", "p of that", "above chance", "each alone",
)  # fmt: skip


def _summary(panel: Panel) -> tuple[str, ...]:
    scores = panel.self_accuracy
    place = np.unravel_index(np.nanargmax(panel.similar), panel.similar.shape)
    value = panel.values[place]
    return (
        panel.label,
        "{:.0%} ({:.0%})".format(*scores) if scores else "–",
        f"{place[0] + 1} → {place[1] + 1}",
        f"{value:.1%}" if panel.percent else f"{value:.3f}",
        p_text(panel.p_best),
        _found(panel.p_family),
        _found(panel.p),
    )


def _found(p: np.ndarray | None) -> str:
    """How many cells are above chance."""
    if p is None or np.isnan(p).all():
        return "–"
    return f"{(p <= ALPHA).sum()} of {(~np.isnan(p)).sum()}"


def similarity_summary(rows: Iterable[Row]) -> str:
    """A short text table per pair for the terminal; empty where nothing was compared."""
    return "\n\n".join(_block(pair) for pair in pair_similarities(rows))


def _block(pair: PairSimilarity) -> str:
    table = [SIMILARITY_HEADINGS, *summary_rows(pair)]
    return "\n".join([f"similarity {pair.front} → {pair.end}", *aligned(table)])


def _output(row: Mapping[str, Any]) -> tuple[str, ...]:
    p = row.get("p")
    shown = p_text(np.nan if p is None else float(p))
    return (measure(row["measure"]).label, "–", "answers", f"{row['value']:.3f}", shown, "–", "–")


def p_text(p: float) -> str:
    """A p value with two digits; a dash where there is none."""
    return "–" if np.isnan(p) else f"{p:.2g}"
