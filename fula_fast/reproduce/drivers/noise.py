"""Clustered noise into every receiver and site: stitching with no sender at all."""

from __future__ import annotations

from torch import Tensor, nn

from ...methods import TLM
from ...models import Staged
from ...pipelines import load_source
from ...study.donor_spec import DonorSpec
from ...study.facts import donor_facts
from ...study.protocol import protocol
from ...study.spec import parse_table
from ..evidence import Row
from ..experiment import Experiment
from ..lab import Lab, Task, cells_of, row_of

COLUMNS = {"radius": "of the clusters that the noise is drawn from, one of each class"}
"""What the columns of its rows mean that no other table has."""


def tasks(experiment: Experiment) -> list[Task]:
    """One task per receiver, site, radius and seed."""
    options, found = experiment.options, []
    steps = options["epochs"] * (options["train"] // options["batch_size"])
    for name in options["receivers"]:
        spec = parse_table(DonorSpec, {**experiment.donors[name], "name": name}, name)
        facts = donor_facts(spec, experiment.data["colour-mnist"].facts, "post_relu")
        for site in options["sites"] or range(1, facts.num_sites + 1):
            tail = sum(facts.flops[site:]) + facts.head_flops
            work = 4 * tail * options["train"] * options["epochs"]
            for radius in options["radii"]:
                found += [
                    Task(
                        f"{name}-{site}-{radius:g}-{seed}",
                        {"end": name, "site": site, "radius": radius, "seed": seed},
                        work,
                        steps,
                    )
                    for seed in options["seeds"]
                ]
    return found


def run(task: Task, lab: Lab) -> list[Row]:
    """Train a stitch from noise of the site's own shape into the receiver behind the site."""
    name, site = task.arguments["end"], task.arguments["site"]
    options, seed, radius = lab.experiment.options, task.arguments["seed"], task.arguments["radius"]
    donor = lab.donor(lab.experiment.donors[name], name)
    receiver = lab.staged(lab.experiment.donors[name], name)
    shape = receiver.site_shapes[site - 1]
    source = load_source(
        "clustered-noise", shape=shape, classes=receiver.num_classes, radius=radius, seed=seed,
        train=options["train"], test=options["test"],
    )  # fmt: skip
    rule = protocol(
        "smith25", epochs=options["epochs"], batch_size=options["batch_size"], lr=options["lr"]
    )
    front, end = through(shape, receiver.num_classes), behind(receiver, site)
    cells = cells_of([TLM.name], [seed], (1, 1), rule, end.num_sites, front="noise", end=name)
    outcomes = lab.lanes(front, end, cells, source, data_seed=seed)
    found = {"radius": radius, "front_site": site, "end_site": site}
    found |= {"end_accuracy": donor.metrics.test_accuracy, "end_hash": donor.content_hash}
    found |= {"front_sites": receiver.num_sites, "end_sites": receiver.num_sites}
    return [row_of(outcome, **found) for outcome in outcomes]


class _Through(nn.Module):
    """The identity, with one buffer to tell its device and dtype by."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("place", like.detach().new_zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x


def through(shape: tuple[int, ...], classes: int) -> Staged:
    """A front whose only site is its input, of any activation's shape."""
    import torch

    inside = nn.Linear(1, classes)  # never run: a front has no head
    return Staged(
        [_Through(torch.zeros(()))], inside,
        name="noise", num_classes=classes, input_shape=shape, site_names=("noise",),
    )  # fmt: skip


def behind(receiver: Staged, site: int) -> Staged:
    """The receiver from `site` on: its first site is that activation, and also its input."""
    inside = next(receiver.parameters())
    return Staged(
        [_Through(inside), *receiver.stages[site:]],
        receiver.head,
        name=receiver.name,
        num_classes=receiver.num_classes,
        input_shape=receiver.site_shapes[site - 1],
        site_names=receiver.site_names[site - 1 :],
    )
