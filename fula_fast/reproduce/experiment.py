"""From a recipe and a scale to the specs of its sweeps; pure, and without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import FulaError, nearest
from ..facts import DataFacts, donor_facts
from ..models.families import DEFAULTS
from ..spec import Spec, load_spec
from ..specfile import apply_overrides, explain, fractions, parse_override
from .datasets import Chosen, choose
from .recipe import SCALES, Part, Recipe, catalogue, load_recipe, merged

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


@dataclass(frozen=True)
class Experiment:
    """A recipe at a scale, resolved.

    `sweeps`: its sweeps. `data`: every data set in use by catalogue name. `options`: of its driver.
    `folder_data`: where data lies.
    """

    recipe: Recipe
    scale: str
    sweeps: tuple[Sweep, ...]
    data: Mapping[str, Chosen]
    options: Mapping[str, Any]
    folder_data: Path
    overrides: tuple[str, ...] = ()
    donors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

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


def resolve(
    name: str,
    scale: str,
    folder: Path,
    overrides: Iterable[str] = (),
    front: str | None = None,
    end: str | None = None,
) -> Experiment:
    """The experiment `name` at a scale with the data in `folder`.

    `overrides`: texts as of `--set`, applied to every sweep; `options.KEY` reaches the driver, and
    `size` sets the side of all images.
    `front`, `end`: another model for all donors in that role. Raises `FulaError` for unknown names
    and values.
    """
    if scale not in SCALES:
        raise FulaError(f"unknown scale '{scale}'{nearest(scale, SCALES)}")
    recipe, overrides = _scaled(load_recipe(name), scale), tuple(overrides)
    own = [parse_override(t) for t in overrides if t.startswith(("options.", "size="))]
    mine = [t for t in overrides if not t.startswith(("options.", "size="))]
    size = next((value for key, value in own if key == ("size",)), None)
    builder = _Builder(recipe, scale, folder, {"front": front, "end": end}, size)
    if recipe.data:
        builder.data(recipe.data)
    sweeps = tuple(builder.sweep(part, mine) for part in recipe.sweeps)
    loose = {n: builder.donor(n) for n in recipe.donors}
    options = dict(recipe.options) | {key[1]: value for key, value in own if len(key) == 2}
    if unknown := set(options) - set(recipe.options):
        key = min(unknown)
        raise FulaError(f"'{name}' has no options.{key}{nearest(key, recipe.options)}")
    return Experiment(
        recipe, scale, sweeps, builder.chosen, options, folder, overrides, donors=loose
    )


def _scaled(recipe: Recipe, scale: str) -> Recipe:
    """The recipe with its replacements for the scale; those of a part are keyed by its name."""
    changes = dict(recipe.scales.get(scale, {}))
    parts = changes.pop("parts", {})
    table = recipe.model_dump(exclude={"scales"})
    table["parts"] = [merged(p, parts.get(p["name"], {})) for p in table["parts"]]
    try:
        return Recipe.model_validate(merged(table, changes))
    except ValidationError as error:
        raise explain(error, Recipe, recipe.name) from None


class _Builder:
    """Builds spec tables; remembers the data sets that they name."""

    def __init__(
        self,
        recipe: Recipe,
        scale: str,
        folder: Path,
        models: Mapping[str, str | None],
        size: int | None,
    ) -> None:
        self.recipe, self.scale, self.folder, self.models = recipe, scale, folder, models
        self.catalogue = catalogue()
        self.families = self.catalogue["scales"][scale]["families"]
        self.chosen: dict[str, Chosen] = {}
        self.size = size

    def data(self, name: str) -> Chosen:
        if name not in self.catalogue["data"]:
            known = self.catalogue["data"]
            raise FulaError(f"no data set '{name}' in the catalogue{nearest(name, known)}")
        if name not in self.chosen:
            self.chosen[name] = choose(name, self.scale, self.folder, self.size)
        return self.chosen[name]

    def sweep(self, part: Part, overrides: Sequence[str]) -> Sweep:
        """One part's spec. Unknown keys and values are refused as in any spec."""
        recipe, usual = self.recipe, self.families[self.recipe.family]
        data = self.data(part.data or recipe.data)
        grid = merged(usual.get("grid", {}), recipe.grid, part.grid)
        grid, donors = self._roles(grid)
        protocol = merged(usual.get("protocol", {}), recipe.protocol, part.protocol)
        axes = grid.get("axes", {})
        table = {
            "name": f"{recipe.run_name}-{self.scale}"
            + (f"-{part.name}" if part.name != recipe.run_name else ""),
            "data": data.table | data.limits,
            "donors": donors,
            "grid": grid,
            "protocol": {k: v for k, v in protocol.items() if k not in axes},
            "evaluation": merged(usual.get("evaluation", {}), recipe.evaluation, part.evaluation),
        }
        spec = load_spec(fractions(apply_overrides(table, overrides)))
        of_donors = {n: self._donor_facts(n) for n in spec.donors}
        return Sweep(part.name, spec, data.run_facts, of_donors)

    def _donor_facts(self, name: str) -> DataFacts:
        known = name.removesuffix(FRONT_COPY)
        return self.data(self.catalogue["donors"][known]["data"]).facts

    def _roles(self, grid: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The grid with pairs spelled out, and its donors, after `--front` and `--end`."""
        fronts, ends = (_several(grid.pop(role, ())) for role in ("front", "end"))
        pairs = grid.pop("pairs", None) or [[f, e] for f in fronts for e in ends]
        unlike = self.models["front"] != self.models["end"]
        ends, donors, out = {end for _, end in pairs}, {}, []
        for front, end in pairs:
            named = front + FRONT_COPY if unlike and front in ends else front
            donors[named] = self.donor(front, self.models["front"])
            donors[end] = self.donor(end, self.models["end"])
            out.append([named, end])
        return grid | {"pairs": out}, donors

    def donor(self, name: str, model: str | None = None) -> dict[str, Any]:
        """The `[donors.*]` table of a catalogue donor; `model` replaces its architecture."""
        if name not in self.catalogue["donors"]:
            known = self.catalogue["donors"]
            raise FulaError(f"no donor '{name}' in the catalogue{nearest(name, known)}")
        entry = dict(self.catalogue["donors"][name])
        data = self.data(entry.pop("data"))
        family = self.families[entry.pop("family")]["donor"]
        moments = {k: entry.pop(k) for k in ("mean", "std") if k in entry}
        variant = {"options": {"variant": entry.pop("variant")}} if "variant" in entry else {}
        cropped = {"crop_padding": 4, "flip": True}  # never a run's: donors are shared
        table = merged(
            cropped, family, self.recipe.model, entry, self._demands(data, entry, family)
        )
        table["data"] = merged(data.table, moments, variant)
        if entry.get("untrained"):
            table = {k: v for k, v in table.items() if k not in ("adversarial", "epochs")}
        return fractions(_with_model(table, model) if model else table)

    def _demands(
        self, data: Chosen, entry: Mapping[str, Any], family: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The data set's epochs and least accuracy; controls are asked for none."""
        settings = {k: data.settings[k] for k in ("epochs",) if k in data.settings}
        least = "min_robust" if family.get("adversarial") else "min_accuracy"
        if least in data.settings and not (entry.keys() & {"untrained", "permute_labels"}):
            settings["min_accuracy"] = data.settings[least]
        return settings


def _with_model(table: dict[str, Any], model: str) -> dict[str, Any]:
    """Another architecture, keeping those of the old one's options that it knows."""
    options = DEFAULTS.get(model, {})
    gone = {"width", "stem", "residuals", "batch_norm"} - set(options)
    return {k: v for k, v in table.items() if k not in gone} | {"model": model}


def _several(value: Any) -> Sequence[str]:
    return value if isinstance(value, list | tuple) else (value,)
