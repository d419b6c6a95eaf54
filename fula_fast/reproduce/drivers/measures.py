"""Which layers correspond, by every measure of the donors and by every stitching method.

The stitches are those of Fig. 10; the donors of its pairs are compared beside them, site by site
and without training. Every measure and every method gives a matrix over site pairs: Self-Accuracy
says how often it finds a layer in itself, Kendall's tau how alike two of them rank the site pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...measures.intervals import kendall, over_seeds
from ...measures.registry import measure
from ...measures.self_accuracy import self_accuracy
from ...report.similarity_cells import ALPHA, PairSimilarity, Panel, pair_similarities
from ...report.similarity_plots import similarity_maps, tau_map
from ...report.studies import Study, studies
from ...report.style import label, look, save
from ...runs.sweep import run_sweep
from ...store import Store
from ...store.similarity_table import similarity_rows
from ...study.similarity_spec import SimilaritySpec
from ...study.spec import EngineSpec, Spec
from ..evidence import Evidence, Row
from ..experiment import Experiment
from ..lab import Figure, Lab, Table, Task

COLUMNS = {
    "by": "measure of the donors, or method of the stitches, that ranks the site pairs",
    "stitched": "the ranking is that of a stitching method",
    "self_accuracy": "how often a layer is most similar to itself: from the front's side",
    "self_accuracy_averaged": "the same of (M + Mᵀ) / 2, M the matrix over site pairs",
    "above_chance": "share of site pairs whose p, corrected for all of them, is at most 0.05",
}
"""What the columns of its rows mean that no other table has."""

_FOLDER = "similarity"
"""Of the donors' comparison, beside the sweep's."""


def tasks(experiment: Experiment) -> list[Task]:
    """One task: the donors' passes and the moments of all site pairs under every permutation."""
    facts, options = experiment.sweeps[0].donor_facts(), experiment.options
    images = 2.0 * options["images"]
    work = sum(images * sum(facts[n].flops) for n in experiment.sweeps[0].spec.donors)
    for front, end in experiment.sweeps[0].spec.grid_pairs:
        widths = [sum(shape[0] for shape in facts[n].shapes) for n in (front, end)]
        work += images * widths[0] * widths[1] * options["draws"] * len(options["measures"])
    return [Task("measures", {}, work, kept=False)]  # finished cells decide the rows


def run(task: Task, lab: Lab) -> list[Row]:
    """A row for every pair of donors and measure, and for every seed of a method."""
    _compute(lab, lab.experiment.sweeps[0].spec)
    return [
        {"front": pair.front, "end": pair.end, "status": "ok"} | row
        for pair, study in _compared(lab)
        for row in _rows(pair, study)
    ]


def _compared(lab: Lab) -> Iterator[tuple[PairSimilarity, Study]]:
    """The measures of every pair, beside its stitches."""
    cells = Store.open(lab.folder / lab.experiment.sweeps[0].name).rows()
    compared = similarity_rows(Store.open(lab.folder / _FOLDER))
    found = {(study.front, study.end): study for study in studies(cells)}
    for pair in pair_similarities(compared, tuple(found.values())):
        yield pair, found[pair.front, pair.end]


def _compute(lab: Lab, spec: Spec) -> None:
    """Compare the sweep's donors, as far as they are not compared yet."""
    options, place = lab.experiment.options, lab.folder / _FOLDER
    asked = SimilaritySpec(
        measures=options["measures"], samples=options["images"], null=options["draws"]
    ).paired(spec.grid_pairs, ())
    engine = EngineSpec(device=lab.resources.device, precision=lab.resources.precision)
    alone = spec.model_copy(update={"similarity": asked, "grid": None, "engine": engine})
    resume = (place / "spec.json").exists()
    run_sweep(alone, place, resume=resume, progress=lab.progress, donors=lab.donors)


def _rows(pair: PairSimilarity, study: Study) -> Iterator[Row]:
    """Measures have no seed: their row stands beside every seed's."""
    stitched = {method: study.matrices(method, "accuracy") for method in study.methods}
    sizes = dict(zip(("front_sites", "end_sites"), pair.sites, strict=True))
    seeds = list(dict.fromkeys(seed for found in stitched.values() for seed in found))
    for panel in _measures(pair):
        known = panel.p_family is not None and not np.isnan(panel.p_family).any()
        above = {"above_chance": float((panel.p_family <= ALPHA).mean())} if known else {}
        for seed in seeds:
            others = {m: found.get(seed) for m, found in stitched.items()}
            yield sizes | above | _row(panel.name, panel.similar, others, seed[0])
    for method, found in stitched.items():
        for seed, matrix in found.items():
            others = {m: of.get(seed) for m, of in stitched.items() if m != method}
            yield sizes | _row(method, matrix, others, seed[0]) | {"stitched": True}


def _measures(pair: PairSimilarity) -> Iterator[Panel]:
    return (panel for panel in pair.panels if not panel.seeds)


def _row(
    name: str, matrix: np.ndarray, others: Mapping[str, np.ndarray | None], seed: int | None
) -> Row:
    row: Row = {"by": name, "seed": seed, "stitched": False}
    if matrix.shape[0] == matrix.shape[1] and not np.isnan(matrix).any():
        row["self_accuracy"] = self_accuracy(matrix)
        row["self_accuracy_averaged"] = self_accuracy(matrix, averaged=True)
    taus = {m: kendall(matrix, o).tau for m, o in others.items() if o is not None}
    return row | {f"tau_{method}": tau for method, tau in taus.items()}


@dataclass(frozen=True)
class _Column:
    head: str
    name: str
    percent: bool = True


def tables(lab: Lab, rows: list[Row]) -> list[Table]:
    """Self-Accuracy, cells above chance and tau of everything that was compared."""
    methods = dict.fromkeys(row["by"] for row in rows if row["stitched"])
    columns = [
        _Column("Self-Accuracy", "self_accuracy"),
        _Column("both directions", "self_accuracy_averaged"),
        _Column("above chance", "above_chance"),
        *(_Column(f"τ with {label(m)}", f"tau_{m}", percent=False) for m in methods),
    ]
    lines = [
        (
            f"{front} → {end}",
            label(by) if by in methods else measure(by).label,
            *(_cell(part, column) for column in columns),
        )
        for (front, end, by), part in Evidence(tuple(rows)).groups("front", "end", "by").items()
    ]
    heads = ("pair", "found by", *(column.head for column in columns))
    return [Table("Layers found by measures and by stitching", heads, tuple(lines), _CAPTION)]


_CAPTION = (
    "Self-Accuracy: how often a layer is most similar to itself, directed, and of (M + Mᵀ)/2. "
    "Above chance: site pairs whose p, corrected for all of them, is at most 0.05. τ: Kendall's "
    "τ-b over the site pairs with the accuracies of a stitching method. Where several seeds were "
    "stitched: means, with 95 % intervals over seeds by Student's t, cut to what is possible."
)


def _cell(rows: Evidence, column: _Column) -> str:
    values = rows.values(column.name)
    if not values.size:
        return "–"
    times, digits = (100, 0) if column.percent else (1, 2)
    shown = f"{times * values.mean():.{digits}f}"
    if len(values) > 1 and np.ptp(values) > 0:
        found = over_seeds(values)
        low, high = np.clip([found.low, found.high], 0 if column.percent else -1, 1)
        shown += f" ({times * low:.{digits}f} … {times * high:.{digits}f})"
    return shown + (" %" if column.percent else "")


def pictures(lab: Lab, rows: list[Row]) -> list[Figure]:
    """Matrices of all measures and methods side by side, and tau between them, pair by pair."""
    found = []
    for number, (pair, _) in enumerate(_compared(lab)):
        names = f"{pair.front} → {pair.end}"
        for kind, drawing, words in (
            ("maps", similarity_maps, "bright is similar; marked: not above chance"),
            ("tau", tau_map, "Kendall's τ-b over all site pairs; stitching by its mean accuracy"),
        ):
            with look():
                path = save(drawing(pair), lab.plots / f"measures-{kind}-{number}.svg")
            found.append(Figure(path, f"{names}: {words}."))
    return found
