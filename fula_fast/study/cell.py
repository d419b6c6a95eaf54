"""A cell: one point of the grid, fully specified.

Its id is a hash of everything that decides its numbers, and of nothing else: donors count by their
recipe, not by their name, and options that cannot act on a cell are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from ..methods import TrainingStage, method
from ..methods.staging import SUM, Stages
from .donor_spec import ShortcutSpec
from .protocol import Protocol, Situation


@dataclass(frozen=True)
class Cell:
    """One stitched model to be trained and measured.

    `front`, `end`: donor names. `front_site`, `end_site`: from 1. `method`: a method's or a
    mixture's name. `objective`: weight by trained method, empty for a closed form. `alpha`:
    attacked share of each batch. `subset`: train on the first n classes (None: on all). `seed`:
    initial stitch. `data_seed`: order, crops, DM images.

    `stages`: two objectives or more that follow each other, each with its weighting where one acts
    and its epochs; `objective` is their sum then. `combine`: how gradients of several methods
    become one, `sum` or `pcgrad`.
    """

    front: str
    end: str
    front_site: int
    end_site: int
    method: str
    objective: Mapping[str, float]
    protocol: Protocol
    alpha: float = 0.0
    shortcut: ShortcutSpec | None = None
    subset: int | None = None
    seed: int = 0
    data_seed: int = 0
    id: str = field(default="", compare=False)
    stages: Stages = ()
    combine: str = SUM

    def __hash__(self) -> int:
        return hash((self.id, self.front, self.end, self.front_site, self.end_site, self.method))

    @property
    def trains(self) -> bool:
        """Whether training passes change anything: stitch, or running statistics behind a DM."""
        moves = self.protocol.dm_stats == "refreshed" and self.protocol.bn == "train"
        return bool(self.objective) or moves

    @property
    def course(self) -> Stages:
        """Its stages; a single one where the objective stays the same."""
        rule = self.protocol
        return self.stages or (TrainingStage(self.objective, rule.weighting, rule.epochs),)

    @property
    def weighted(self) -> bool:
        """Whether the protocol's weighting acts on some part of the objective; stages have their
        own."""
        return not self.stages and any(method(name).weighted for name in self.objective)

    @property
    def weighting(self) -> str:
        """The weighting of its terms as text; empty where it acts on no part of the objective.

        A weighting of a stage's own belongs to the method, as the stages do.
        """
        if not (self.weighted or any(not stage.own for stage in self.stages)):
            return ""
        value = self.protocol.weighting
        return value if isinstance(value, str) else ",".join(f"{w:g}" for w in value)

    @property
    def label(self) -> str:
        """Method and sites in a few words: `fula 3→5`, with its seed where that is not 0."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.method} {self.front_site}→{self.end_site}{seed}"

    @property
    def shortcut_label(self) -> str:
        """`none`, or the shortcut's label."""
        return self.shortcut.label if self.shortcut else "none"

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the protocol (a plan lists each protocol once)."""
        other = {"protocol", "stages", "combine"}
        values = {f: getattr(self, f) for f in self.__dataclass_fields__ if f not in other}
        shortcut = self.shortcut.model_dump() if self.shortcut else None
        course = course_json(self.stages, self.combine)
        more = {"course": course} if course else {}
        return values | {"objective": dict(self.objective), "shortcut": shortcut} | more

    @classmethod
    def from_json(cls, values: Mapping[str, Any], protocol: Protocol) -> Cell:
        """The inverse of `to_json`."""
        shortcut = ShortcutSpec(**values["shortcut"]) if values["shortcut"] else None
        own = {name: value for name, value in values.items() if name != "course"}
        found = cls(**{**own, "shortcut": shortcut, "protocol": protocol})
        stages, combine = course_of(values.get("course", ()))
        return replace(found, stages=stages, combine=combine)


def course_json(stages: Stages, combine: str) -> list[Any]:
    """Plain values: the combination, then every stage; empty where there is nothing to say."""
    if not stages and combine == SUM:
        return []
    return [combine, *([dict(s.objective), s.weighting, s.epochs, s.own] for s in stages)]


def course_of(values: Sequence[Any]) -> tuple[Stages, str]:
    """The inverse of `course_json`."""
    combine, *stages = values or [SUM]
    return tuple(
        TrainingStage(weights, tuple(w) if isinstance(w, list) else w, epochs, own)
        for weights, w, epochs, own in stages
    ), combine


@dataclass(frozen=True)
class Context:
    """What a cell's id needs beside the cell: digests of its donors' recipes and of the data.

    `classes`: of the data. `like`: the two sites have the same form, so that DM is defined.
    """

    front: str
    end: str
    data: str
    classes: int
    like: bool


def digest(value: Any, length: int = 16) -> str:
    """The first hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def identity(cell: Cell, context: Context) -> dict[str, Any]:
    """Everything that decides the cell's numbers, as plain values."""
    found = situation(cell, context.like)
    return {
        **asdict(context),
        "sites": [cell.front_site, cell.end_site],
        "objective": _objective_identity(cell),
        "protocol": _acting(cell.protocol, found),
        "alpha": cell.alpha if cell.trains else 0.0,
        "shortcut": cell.shortcut.model_dump() if cell.shortcut else None,
        "subset": None if cell.subset == context.classes else cell.subset,
        "seed": cell.seed if _seed_acts(cell, found) else None,
        "data_seed": cell.data_seed,
    }


def cell_id(cell: Cell, context: Context) -> str:
    """16 hex digits; equal for cells that would compute the same numbers."""
    return digest(identity(cell, context))


def _objective_identity(cell: Cell) -> Any:
    """The weights; with stages, or another combination than the sum, a list of what decides."""
    if cell.stages:
        stages = ([dict(s.objective), s.weighting, s.epochs] for s in cell.stages)
        return [cell.combine, *stages]
    weights = dict(cell.objective)
    return weights if cell.combine == SUM else [cell.combine, weights]


def _seed_acts(cell: Cell, found: Situation) -> bool:
    identity_start = cell.protocol.init == "identity" and found.trained
    return not (found.closed_form or identity_start)


def situation(cell: Cell, like: bool) -> Situation:
    """What decides which options act on the cell; `like`: its two sites have the same form."""
    rule, kinds = cell.protocol, [method(name) for name in cell.objective]
    attacked, robust = cell.alpha > 0 and cell.trains, rule.robust_attack
    return Situation(
        trained=bool(cell.objective),
        terms=any(kind.terms is not None for kind in kinds),
        weighted=cell.weighted,
        compares=any(kind.terms is not None or kind.end_logits for kind in kinds),
        passes=cell.trains,
        refreshed=not cell.objective and rule.dm_stats == "refreshed",
        batch_statistics=rule.bn == "train",
        closed_form=not cell.objective or (rule.starts_closed and like),
        attacked=attacked,
        partly_attacked=attacked and cell.alpha < 1,
        robust=robust is not None,
        robust_steps=robust is not None and robust.takes_step,
        sgd=rule.optimiser == "sgd",
    )


@lru_cache(maxsize=4096)
def _acting(protocol: Protocol, situation: Situation) -> dict[str, Any]:
    return protocol.acting(situation)
