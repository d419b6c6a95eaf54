"""Ranks beside the Colour-MNIST sweep: of every trained stitch, and of every donor's layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...donors.obtain import input_of
from ...measures.rank import MOST_FEATURES, ActivationRank, stitch_spectrum
from ...pipelines import evaluation_batches
from ...report.style import look, save
from ...store import Store
from ...study.facts import DonorFacts
from ..evidence import Evidence, Row
from ..experiment import Experiment
from ..lab import Figure, Lab, Task
from ..plots import draw
from ..recipe import PlotSpec

COLUMNS = {
    "donor": "whose layer it is",
    "layer": "module whose output it is",
    "layer_place": "of the layer in the order of the pass, from 1",
    "features": "of the layer",
    "activation_rank": "numerical rank of the layer's covariance over the test images",
    "relative_rank": "that rank by the number of features",
    "stitch_accuracy": "accuracy of the stitched model of this cell",
}
"""What the columns of its rows mean that no other table has."""

_BATCH, _TESTS = 500, 10_000


def tasks(experiment: Experiment) -> list[Task]:
    """One task for the stitches, one per donor."""
    sweep = experiment.sweeps[0]
    facts = sweep.donor_facts()
    donors = [
        Task(
            f"donor-{name}",
            {"donor": name},
            _TESTS * sum(facts[name].flops) + _spectra(facts[name]),
        )
        for name in sweep.spec.donors
    ]
    return [Task("stitches", {}, kept=False), *donors]  # finished cells decide the stitches


def _spectra(facts: DonorFacts) -> float:
    """Multiply-adds of the covariances and their singular values, two layers a site."""
    sizes = [min(facts.elements(site), MOST_FEATURES) for site in range(1, facts.num_sites + 1)]
    return 2.0 * sum(_TESTS * n**2 + 4 * n**3 for n in sizes)


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
def _donor(lab: Lab, name: str) -> Iterator[Row]:
    """A row for the output of every convolution and linear map, in the order of the pass."""
    spec = lab.experiment.sweeps[0].spec.donor(name)
    staged, source = lab.staged(spec), lab.source(spec.images)
    ranks: dict[str, ActivationRank] = {}
    sizes: dict[str, int] = {}

    def gather(layer: str, output: Tensor) -> None:
        if layer not in ranks:
            sizes[layer] = output[0].numel()
            ranks[layer] = ActivationRank(sizes[layer], device=lab.device)
        ranks[layer].add(output)

    watched = [
        module.register_forward_hook(lambda _, __, output, layer=layer: gather(layer, output))
        for layer, module in staged.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    given = input_of(spec, source)
    for batch in evaluation_batches(source.test, _BATCH, lab.device, **vars(given)):
        staged(batch.images)
    for hook in watched:
        hook.remove()
    for place, (layer, rank) in enumerate(ranks.items(), 1):
        found = rank.result()
        measured = {"activation_rank": found, "relative_rank": found / sizes[layer]}
        where = {"donor": name, "layer": layer, "layer_place": place, "features": sizes[layer]}
        yield where | measured | {"status": "ok"}


_PLOTS = {
    "rank-of-stitches": PlotSpec(
        kind="lines", x="end_site", y=("stitch_rank",), line="front", panel=("end",),
        caption="Numerical rank of the trained stitches, by sender (lines) and receiver (panels).",
    ),
    "rank-of-donors": PlotSpec(
        kind="lines", x="layer_place", y=("activation_rank",), line="donor",
        caption="Numerical rank of the covariance of each convolution's and linear map's output, "
        "in the order of the pass, on the donor's own test images.",
    ),
}  # fmt: skip


def pictures(lab: Lab, rows: list[Row]) -> list[Figure]:
    """Ranks of stitches by site, and of donors layer by layer."""
    found = []
    for name, plot in _PLOTS.items():
        with look():
            drawn = draw(Evidence(tuple(rows)), plot)
            path = save(drawn, lab.plots / f"{name}.svg") if drawn else None
        found += [Figure(path, plot.caption)] if path else []
    return found
