"""Table 1: every donor's accuracy and robust accuracy."""

from __future__ import annotations

from typing import Any

import torch

from ...attacks import robust_evaluate
from ...attacks.names import gradients
from ...study.donor_spec import DonorSpec
from ...study.facts import donor_facts
from ...study.spec import parse_table
from ..evidence import Row
from ..experiment import Experiment
from ..lab import Lab, Task
from ..price import PASSES
from ..recipe import catalogue

COLUMNS = {"label": "architecture", "robust": "trained on adversarial examples"}
"""What the columns of its rows mean that no other table has."""


def tasks(experiment: Experiment) -> list[Task]:
    """One task per donor and architecture."""
    return [
        Task(f"{name}-{position}", {"donor": name, "model": model}, _flops(experiment, name, model))
        for position, model in enumerate(experiment.options["models"])
        for name in experiment.donors
    ]


def _spec(experiment: Experiment, name: str, model: dict[str, Any]) -> DonorSpec:
    changes = {k: v for k, v in model.items() if k != "label"}
    table = {**experiment.donors[name], **changes, "name": name}
    return parse_table(DonorSpec, table, f"donors.{name}")


def _flops(experiment: Experiment, name: str, model: dict[str, Any]) -> float:
    """The attack's forward and backward passes; an upper bound, as fooled images drop out."""
    spec = _spec(experiment, name, model)
    facts = donor_facts(spec, experiment.data[_data_of(name)].facts, "post_relu")
    passes = PASSES * gradients(experiment.options["attack"]) * experiment.options["images"]
    return passes * (sum(facts.flops) + facts.head_flops)


def _data_of(name: str) -> str:
    return catalogue()["donors"][name]["data"]


def run(task: Task, lab: Lab) -> list[Row]:
    """Train the donor or find it trained, then attack it on its own test images."""
    name, model = task.arguments["donor"], task.arguments["model"]
    spec = _spec(lab.experiment, name, model)
    donor = lab.donor(spec)
    test = lab.source(spec.images).test.evenly(lab.experiment.options["images"])
    (result,) = robust_evaluate(
        donor.staged,
        torch.from_numpy(test.images).permute(0, 3, 1, 2),
        torch.from_numpy(test.labels),
        lab.experiment.options["attack"],
        device=lab.device,
    )
    return [
        {
            "front": name,
            "label": model["label"],
            "robust": spec.adversarial is not None,
            "accuracy": donor.metrics.test_accuracy,
            "front_hash": donor.content_hash,
            "epochs": donor.metrics.epochs,
            "status": "ok",
            **result.row(),
        }
    ]
