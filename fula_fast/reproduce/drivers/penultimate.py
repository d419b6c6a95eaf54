"""Fig. 6: CKA of penultimate layers on adversarial examples crafted on the stitched model."""

from __future__ import annotations

import torch

from ...attacks.pgd import pgd
from ...measures.cka import LinearCKA
from ...measures.features import as_matrix
from ...measures.registry import Features
from ...methods import DM
from ...pipelines import evaluation_batches
from ...study.expand import site_pairs
from ..evidence import Row
from ..experiment import Experiment
from ..lab import Lab, Task

COLUMNS = {
    "cka": "linear CKA of the penultimate layers of stitched model and end, on images that were "
    "attacked through the stitched model",
    "cka_unbiased": "the same by the unbiased estimator",
}
"""What the columns of its rows mean that no other table has."""

_BATCH = 128


def tasks(experiment: Experiment) -> list[Task]:
    """One task per pair, site and seed of the sweep."""
    sweep = experiment.sweeps[0]
    facts, grid = sweep.donor_facts(), sweep.spec.asked_grid
    images, steps = experiment.options["images"], experiment.options["steps"]
    return [
        Task(
            f"{front}-{end}-{i}-{j}-{seed}",
            {"front": front, "end": end, "sites": (i, j), "seed": seed},
            3 * steps * images * (sum(facts[front].flops[:i]) + sum(facts[end].flops[j:])),
        )
        for front, end in grid.donor_pairs()
        for i, j in site_pairs(grid.sites, facts[front], facts[end])
        for seed in grid.seeds
    ]


def run(task: Task, lab: Lab) -> list[Row]:
    """CKA between the stitched model (DM, untrained) and its end, biased and unbiased."""
    names = {role: task.arguments[role] for role in ("front", "end")}
    spec = lab.experiment.sweeps[0].spec
    front, end = (lab.staged(spec.donor(name)) for name in names.values())
    i, j = task.arguments["sites"]
    source = lab.source(spec.data)
    rule, seed = spec.base_protocol, task.arguments["seed"]
    stitched = lab.closed_form(front, end, (i, j), source, rule, seed)
    attack = rule.attack.model_copy(update={"steps": lab.experiment.options["steps"]})
    measures = {"cka": LinearCKA(), "cka_unbiased": LinearCKA(unbiased=True)}
    test = source.test.evenly(lab.experiment.options["images"])
    for batch in evaluation_batches(test, _BATCH, lab.device):
        adversarial = pgd(stitched, batch.images, batch.labels, attack)
        with torch.no_grad():
            h = stitched.tail.run(stitched.at_stitch(adversarial), j)
            pair = [as_matrix(x, Features.MEAN) for x in (h, end.run(adversarial))]
        for measure in measures.values():
            measure.add(*pair)
    found = {name: measure.result() for name, measure in measures.items()}
    sites = {"front_site": i, "end_site": j}
    sites |= {"front_sites": front.num_sites, "end_sites": end.num_sites}
    return [{**names, **sites, **found, "seed": seed, "method": DM.name, "status": "ok"}]
