"""A control: a self-stitch trained on labels shifted by one class."""

from __future__ import annotations

from dataclasses import replace

from ...methods import TLM
from ...pipelines import ImageSet
from ..evidence import Row
from ..experiment import Experiment
from ..lab import Lab, Task, cells_of, row_of


def tasks(experiment: Experiment) -> list[Task]:
    """One task per site; all seeds of a site run together."""
    sweep = experiment.sweeps[0]
    facts = sweep.donor_facts()[experiment.options["donor"]]
    rule = sweep.spec.base_protocol
    images = sweep.data.train_images * rule.epochs
    work = len(experiment.options["seeds"]) * 3 * images * sum(facts.flops)
    steps = images // rule.batch_size
    return [Task(str(s), {"site": s}, work, steps) for s in experiment.options["sites"]]


def run(task: Task, lab: Lab) -> list[Row]:
    """TLM from a donor into itself, trained and tested on labels c + 1."""
    name, site = lab.experiment.options["donor"], task.arguments["site"]
    spec = lab.experiment.sweeps[0].spec
    model, source = lab.staged(spec.donor(name)), lab.source(spec.data)
    shifted = replace(source, train=_shifted(source.train), test=_shifted(source.test))
    names = {"front": name, "end": name}
    seeds = lab.experiment.options["seeds"]
    terms = model.num_sites + 1 - site
    cells = cells_of([TLM.name], seeds, (site, site), spec.base_protocol, terms, **names)
    found = {"front_sites": model.num_sites, "end_sites": model.num_sites}
    own = lab.donor(spec.donor(name)).metrics.test_accuracy
    return [
        row_of(outcome, **found, end_accuracy=own, front_accuracy=own)
        for outcome in lab.lanes(model, model, cells, shifted)
    ]


def _shifted(images: ImageSet) -> ImageSet:
    return replace(images, labels=(images.labels + 1) % images.num_classes)
