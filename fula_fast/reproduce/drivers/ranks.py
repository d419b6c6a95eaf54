"""Ranks beside the Colour-MNIST sweep: of every trained stitch, and of every donor's sites."""

from __future__ import annotations

import torch

from ...measures.rank import ActivationRank, stitch_spectrum
from ...obtain import normalisation_of
from ...pipelines import evaluation_batches
from ...report.style import look, save
from ...store import Store
from ..evidence import Row, Table
from ..experiment import Experiment
from ..lab import Figure, Lab, Task
from ..plots import draw
from ..recipe import PlotSpec

_BATCH = 500


def tasks(experiment: Experiment) -> list[Task]:
    """One task for the stitches, one per donor."""
    sweep = experiment.sweeps[0]
    facts, tests = sweep.donor_facts(), 10_000
    return [
        Task("stitches", {}),
        *(
            Task(f"donor-{name}", {"donor": name}, tests * sum(facts[name].flops))
            for name in sweep.spec.donors
        ),
    ]


def run(task: Task, lab: Lab) -> list[Row]:
    """Ranks of one donor's activations on its own test images, or of all stitches."""
    if "donor" in task.arguments:
        return list(_donor(lab, task.arguments["donor"]))
    sweep = lab.experiment.sweeps[0]
    store = Store.open(lab.folder / sweep.name)
    rows = [row for row in store.rows() if row["status"] == "ok"]
    return [_stitch(store, row) for row in rows]


_KEPT = ("front", "end", "front_site", "end_site", "front_sites", "end_sites", "method", "seed")


def _stitch(store: Store, row: Row) -> Row:
    rank, condition = stitch_spectrum(store.stitch(row["cell"])["weight"])
    kept = {name: row[name] for name in _KEPT}
    measured = {"stitch_rank": int(rank), "stitch_condition": float(condition)}
    return kept | measured | {"stitch_accuracy": row["accuracy"], "status": "ok"}


@torch.no_grad()
def _donor(lab: Lab, name: str):
    spec = lab.experiment.sweeps[0].spec.donor(name)
    staged, source = lab.staged(spec), lab.source(spec.data)
    sizes = [int(torch.Size(shape).numel()) for shape in staged.site_shapes]
    ranks = [ActivationRank(size, device=lab.device) for size in sizes]
    moments = normalisation_of(spec.data, source)
    for batch in evaluation_batches(source.test, _BATCH, lab.device, normalisation=moments):
        x = batch.images
        for site, rank in enumerate(ranks):
            x = staged.run(x, site, site + 1)
            rank.add(x)
    for site, (size, rank) in enumerate(zip(sizes, ranks, strict=True), 1):
        found = {"site": site, "features": size, "activation_rank": rank.result()}
        yield {"donor": name, **found, "relative_rank": found["activation_rank"] / size} | {
            "status": "ok"
        }


_PLOTS = {
    "rank-of-stitches": PlotSpec(
        kind="lines", x="end_site", y=("stitch_rank",), line="front", panel=("end",),
        caption="Numerical rank of the trained stitches, by sender (lines) and receiver (panels).",
    ),
    "rank-of-donors": PlotSpec(
        kind="lines", x="site", y=("activation_rank",), line="donor",
        caption="Numerical rank of the covariance of every donor's activations, on its own test images.",
    ),
}  # fmt: skip


def pictures(lab: Lab, rows: list[Row]) -> list[Figure]:
    """Ranks of stitches and of donors, site by site."""
    found = []
    for name, plot in _PLOTS.items():
        with look():
            drawn = draw(Table(tuple(rows)), plot)
            path = save(drawn, lab.plots / f"{name}.svg") if drawn else None
        found += [Figure(path, plot.caption)] if path else []
    return found
