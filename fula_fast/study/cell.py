"""A cell: one point of the grid, fully specified.

Its id is a hash of everything that decides its numbers, and of nothing else: donors count by their
recipe, not by their name, and options that cannot act on a cell are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from .donor_spec import Shortcut
from .protocol import Protocol


@dataclass(frozen=True)
class Cell:
    """One stitched model to be trained and measured.

    `front`, `end`: donor names. `front_site`, `end_site`: from 1. `method`: dm, hint, slm, tlm,
    fula, or a mixture's name. `objective`: weight by trained method, empty for dm. `alpha`:
    attacked share of each batch. `subset`: train on the first n classes (None: on all). `seed`:
    initial stitch. `data_seed`: order, crops, DM images.
    """

    front: str
    end: str
    front_site: int
    end_site: int
    method: str
    objective: Mapping[str, float]
    protocol: Protocol
    alpha: float = 0.0
    shortcut: Shortcut | None = None
    subset: int | None = None
    seed: int = 0
    data_seed: int = 0
    id: str = field(default="", compare=False)

    def __hash__(self) -> int:
        return hash((self.id, self.front, self.end, self.front_site, self.end_site, self.method))

    @property
    def trains(self) -> bool:
        """Whether training passes change anything: stitch, or running statistics behind a DM."""
        moves = self.protocol.dm_stats == "refreshed" and self.protocol.bn == "train"
        return bool(self.objective) or moves

    @property
    def weighting(self) -> str:
        """The weighting of FuLA's terms as text; empty where the objective has no such part."""
        if "fula" not in self.objective:
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
        values = {f: getattr(self, f) for f in self.__dataclass_fields__ if f != "protocol"}
        shortcut = self.shortcut.model_dump() if self.shortcut else None
        return values | {"objective": dict(self.objective), "shortcut": shortcut}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], protocol: Protocol) -> Cell:
        """The inverse of `to_json`."""
        shortcut = Shortcut(**values["shortcut"]) if values["shortcut"] else None
        return cls(**{**values, "shortcut": shortcut, "protocol": protocol})


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
    closed_form = not cell.objective or (cell.protocol.init == "dm" and context.like)
    return {
        **asdict(context),
        "sites": [cell.front_site, cell.end_site],
        "objective": dict(cell.objective),
        "protocol": _acting(cell.protocol, _situation(cell, closed_form)),
        "alpha": cell.alpha if cell.trains else 0.0,
        "shortcut": cell.shortcut.model_dump() if cell.shortcut else None,
        "subset": None if cell.subset == context.classes else cell.subset,
        "seed": cell.seed if _seed_acts(cell, closed_form) else None,
        "data_seed": cell.data_seed,
    }


def cell_id(cell: Cell, context: Context) -> str:
    """16 hex digits; equal for cells that would compute the same numbers."""
    return digest(identity(cell, context))


def _seed_acts(cell: Cell, closed_form: bool) -> bool:
    identity_start = cell.protocol.init == "identity" and bool(cell.objective)
    return not (closed_form or identity_start)


def _situation(cell: Cell, closed_form: bool) -> tuple[bool, bool, bool, bool, bool, bool]:
    """(trained, moves, closed form used, FuLA in the objective, attacked, partly attacked)."""
    attacked = cell.alpha > 0 and cell.trains
    return (
        bool(cell.objective),
        cell.trains,
        closed_form,
        "fula" in cell.objective,
        attacked,
        attacked and cell.alpha < 1,
    )


@lru_cache(maxsize=4096)
def _acting(protocol: Protocol, situation: tuple[bool, ...]) -> dict[str, Any]:
    """The protocol's options that act in this situation (see `_situation`)."""
    trained, moves, closed_form, functional, attacked, partly = situation
    values = protocol.model_dump(mode="json") | {"target_bn": protocol.resolved_target_bn}
    idle = {
        "preset": True,
        "momentum": protocol.optimiser == "adam",
        "init": not trained,
        "dm_samples": not closed_form,
        "dm_rcond": not closed_form,
        "dm_stats": trained,
        "weighting": not functional,
        "attack": not attacked,
        "attack_target": not attacked,
        "share": not partly,
    }
    idle |= dict.fromkeys(("optimiser", "lr", "weight_decay", "schedule"), not trained)
    idle |= {"momentum": idle["momentum"] or not trained}
    idle |= dict.fromkeys(("epochs", "batch_size", "crop_padding", "flip"), not moves)
    return {name: value for name, value in values.items() if not idle.get(name, False)}
