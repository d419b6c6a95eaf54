"""From a recipe and a scale to the specs of its sweeps; pure, and without torch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import FulaError, nearest
from ..facts import DataFacts, DonorFacts, donor_facts
from ..grid import alike
from ..models.families import DEFAULTS
from ..spec import Spec, load_spec, parse_table
from ..specfile import apply_overrides, explain, fractions, parse_override
from ..tables import DonorSpec
from .datasets import Chosen, choose
from .recipe import SCALES, Part, Recipe, catalogue, load_recipe, merged


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


@dataclass(frozen=True)
class Experiment:
    """A recipe at a scale, resolved.

    `sweeps`: its sweeps. `data`: every data set in use by catalogue name. `options`: of its driver.
    `folder_data`: where data lies. `notes`: what was left out of the recipe, and why.
    """

    recipe: Recipe
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
    `front`, `end`: another model for all donors in that role; sites that the recipe lists are then
    taken at their relative depths. Raises `FulaError` for unknown names and values, and for
    settings that would change nothing.
    """
    if scale not in SCALES:
        raise FulaError(f"unknown scale '{scale}'{nearest(scale, SCALES)}")
    recipe, overrides = _scaled(load_recipe(name), scale), tuple(overrides)
    _check_takes(recipe, [*overrides, *(["--front"] if front else []), *(["--end"] if end else [])])
    own = [parse_override(t) for t in overrides if t.startswith(("options.", "size="))]
    mine = [t for t in overrides if not t.startswith(("options.", "size="))]
    size = next((value for key, value in own if key == ("size",)), None)
    builder = _Builder(recipe, scale, folder, {"front": front, "end": end}, size)
    if recipe.data:
        builder.data(recipe.data)
    sweeps = tuple(builder.sweep(part, mine) for part in recipe.sweeps)
    if recipe.driver == "penultimate" and not builder.alike(*_pairs(recipe.sweeps[0].grid)[0]):
        raise Unsuitable(
            f"'{name}' sets a closed-form stitch (DM) beside FuLA, which needs sites of one form; "
            "take --front and --end that are both convolutional, or both of tokens"
        )
    loose = {n: builder.donor(n, end) for n in recipe.donors}
    loose = loose if sweeps else apply_overrides({"donors": loose}, mine)["donors"]
    options = builder.options({key[1]: value for key, value in own if len(key) == 2})
    return Experiment(
        recipe,
        scale,
        sweeps,
        builder.chosen,
        options,
        folder,
        overrides,
        loose,
        notes=tuple(dict.fromkeys(builder.notes)),
    )


def takes(recipe: Recipe, setting: str) -> bool:
    """Whether `--front`, `--end`, or the text of a `--set`, changes anything in a recipe.

    One without sweeps has no grid and no protocol; its donors are ends where it has receivers.
    """
    if recipe.sweeps or setting.startswith(("options.", "size=")):
        return True
    if setting.startswith("donors."):
        return setting.split(".")[1] in recipe.donors
    return setting == "--end" and "receivers" in recipe.options


def _check_takes(recipe: Recipe, settings: Iterable[str]) -> None:
    for setting in settings:
        if not takes(recipe, setting):
            known = [f"options.{key}" for key in recipe.options]
            known += [f"donors.{name}" for name in recipe.donors]
            raise FulaError(
                f"'{recipe.name}' has no sweeps, and {setting} would change nothing; leave it out "
                f"(it has {', '.join(known)})"
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
        self.notes: list[str] = []

    def data(self, name: str) -> Chosen:
        if name not in self.catalogue["data"]:
            known = self.catalogue["data"]
            raise FulaError(f"no data set '{name}' in the catalogue{nearest(name, known)}")
        if name not in self.chosen:
            self.chosen[name] = choose(name, self.scale, self.folder, self.size)
        return self.chosen[name]

    def sweep(self, part: Part, overrides: Sequence[str]) -> Sweep:
        """One part's spec. Unknown keys and values are refused as in any spec.

        A part that starts from the identity is of one architecture, that of `--end`.
        """
        recipe, usual = self.recipe, self.families[self.recipe.family]
        start = merged(recipe.protocol, part.protocol).get("init")
        if start == "identity" and self.models["front"] != self.models["end"]:
            self.notes.append(f"{part.name}: one architecture in both roles, as the identity asks")
            return self._of_end().sweep(part, overrides)
        data = self.data(part.data or recipe.data)
        grid = merged(usual.get("grid", {}), recipe.grid, part.grid)
        grid, donors = self._roles(self._matchable(self._fitted(grid)))
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
        pairs = _pairs(grid)
        grid = {k: v for k, v in grid.items() if k not in ("front", "end", "pairs")}
        unlike = self.models["front"] != self.models["end"]
        ends, donors, out = {end for _, end in pairs}, {}, []
        for front, end in pairs:
            named = front + FRONT_COPY if unlike and front in ends else front
            donors[named] = self.donor(front, self.models["front"])
            donors[end] = self.donor(end, self.models["end"])
            out.append([named, end])
        return grid | {"pairs": out}, donors

    def _fitted(self, grid: dict[str, Any]) -> dict[str, Any]:
        """The grid with listed sites at the same relative depths of `--front` and `--end`."""
        sites, pairs = grid.get("sites", "same"), _pairs(grid)
        if isinstance(sites, str) or not pairs or not any(self.models.values()):
            return grid
        both = [self._counts(n, role) for n, role in zip(pairs[0], ("front", "end"), strict=True)]
        found = [
            [_moved(site, *counts) for site, counts in zip(given, both[-len(given) :], strict=True)]
            for given in map(_several, sites)
        ]
        return grid | {
            "sites": [list(s) if len(s) > 1 else s[0] for s in dict.fromkeys(map(tuple, found))]
        }

    def _of_end(self) -> _Builder:
        """The same with `--end` in both roles; data sets are remembered in one place."""
        twin = copy.copy(self)
        twin.models = dict.fromkeys(self.models, self.models["end"])
        return twin

    def _matchable(self, grid: dict[str, Any]) -> dict[str, Any]:
        """The grid without `dm` between conv and token sites, which no closed form joins."""
        methods, pairs = grid.get("methods", ()), _pairs(grid)
        if "dm" not in methods or not pairs or self.alike(*pairs[0]):
            return grid
        left = [m for m in methods if m != "dm"]
        if not left:
            raise Unsuitable(
                f"'{self.recipe.name}' is about direct matching, which needs sites of one form; "
                "take --front and --end that are both convolutional, or both of tokens"
            )
        self.notes.append("no dm: no closed form joins sites of unlike form")
        return grid | {"methods": left}

    def alike(self, front: str, end: str) -> bool:
        """Whether the first sites of both roles are of one form, as direct matching needs."""
        names = (front, "front"), (end, "end")
        return alike(*(self._facts(n, self.models[role]).shapes[0] for n, role in names))

    def _counts(self, name: str, role: str) -> tuple[int, int]:
        """Sites of a catalogue donor, and of the model that takes its place."""
        return self._facts(name, None).num_sites, self._facts(name, self.models[role]).num_sites

    def _facts(self, name: str, model: str | None) -> DonorFacts:
        donor = parse_table(DonorSpec, self.donor(name, model) | {"name": name}, f"donors.{name}")
        try:
            return donor_facts(donor, self._donor_facts(name), "post_relu")
        except FulaError as error:
            raise FulaError(f"{error}; `--set size=N` sets the side of all images") from None

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The driver's options with those `given`; sites are those of its end, as in a grid."""
        usual, name = self.recipe.options, self.recipe.name
        for key, value in given.items():
            if key not in usual:
                raise FulaError(f"'{name}' has no options.{key}{nearest(key, usual)}")
            _check_alike(key, value, usual[key])
        found = dict(usual) | dict(given)
        if found.get("sites"):
            own, count = self._counts(found.get("donor") or self.recipe.donors[0], "end")
            if "sites" not in given:
                found["sites"] = sorted({_moved(site, own, count) for site in usual["sites"]})
            if wrong := [site for site in found["sites"] if not 1 <= site <= count]:
                raise FulaError(
                    f"options.sites: {wrong[0]} is out of range; sites are 1 to {count}"
                )
        if wrong := [n for n in found.get("receivers", ()) if n not in self.recipe.donors]:
            near = nearest(wrong[0], self.recipe.donors)
            raise FulaError(f"options.receivers: no donor '{wrong[0]}'{near}")
        return found

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


def _pairs(grid: Mapping[str, Any]) -> list[list[str]]:
    fronts, ends = (_several(grid.get(role, ())) for role in ("front", "end"))
    return grid.get("pairs") or [[f, e] for f in fronts for e in ends]


def _moved(site: int, own: int, count: int) -> int:
    """The site of `count` at the relative depth of `site` of `own`; the last one stays the last."""
    return max(1, round(site * count / own))


def _check_alike(key: str, value: Any, usual: Any) -> None:
    """Refuse an option whose value is of another type than the recipe's, or whose items are."""
    kind = int | float if isinstance(usual, float) else type(usual)
    if not isinstance(value, kind):
        raise FulaError(f"options.{key} = {value!r}: give a value like {usual!r}")
    if isinstance(usual, list) and usual:
        for item in value:
            _check_alike(key, item, usual[0])


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)
