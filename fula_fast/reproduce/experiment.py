"""An experiment: a recipe at a scale, resolved to specs of sweeps. Pure, and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FulaError
from ..study.facts import DataFacts, donor_facts
from ..study.plan import Plan, plan
from ..study.spec import Spec
from .datasets import Chosen
from .recipe import ExperimentRecipe


class Unsuitable(FulaError):
    """An experiment that means nothing with the architectures asked for."""


FRONT_COPY = "-front"
"""Suffix of a donor's name where `--front` gives it another architecture than the end's."""


@dataclass(frozen=True)
class Sweep:
    """One sweep: a checked spec, and nominal facts of its data and donors for pricing."""

    name: str
    spec: Spec
    data: DataFacts
    donor_data: Mapping[str, DataFacts]

    def donor_facts(self) -> dict[str, Any]:
        """Shapes and costs of the donors."""
        hook = self.spec.base_protocol.hook
        return {n: donor_facts(d, self.donor_data[n], hook) for n, d in self.spec.donors.items()}

    def plan(self) -> Plan:
        """Its cells and waves, without data and donors."""
        return plan(self.spec, data=self.data, donors=self.donor_facts())


@dataclass(frozen=True)
class Experiment:
    """A recipe at a scale, resolved.

    `sweeps`: its sweeps. `data`: every data set in use by catalogue name. `options`: of its driver.
    `folder_data`: where data lies. `notes`: what was left out of the recipe, and why.
    """

    recipe: ExperimentRecipe
    scale: str
    sweeps: tuple[Sweep, ...]
    data: Mapping[str, Chosen]
    options: Mapping[str, Any]
    folder_data: Path
    overrides: tuple[str, ...] = ()
    donors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.recipe.name

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """What keeps it from running, one line each; empty where all data is there."""
        return tuple(f"{name}: {c.missing}" for name, c in self.data.items() if c.missing)

    def stand_ins(self) -> tuple[str, ...]:
        """One line for every data set that is not the paper's."""
        return tuple(c.words for c in self.data.values() if c.stands_in_for)
