"""Specs of a recipe's sweeps, of its donors and data, after `--front`, `--end` and `size`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from ..errors import FulaError, nearest
from ..methods import DM
from ..models.families import DEFAULTS
from ..study.donor_spec import DataSpec, DonorSpec
from ..study.expand import alike
from ..study.facts import DataFacts, DonorFacts, donor_facts
from ..study.site_names import site_number
from ..study.spec import load_spec, parse_table
from ..study.toml import fractions
from .datasets import Chosen, choose
from .driver_options import Options
from .experiment import FRONT_COPY, Sweep, Unsuitable
from .recipe import ExperimentRecipe, RecipePart, catalogue, merged, scale_settings

_SIDES = (32, 64, 224)
"""Sides in pixels that are tried where an architecture cannot take the scale's own."""

_LEAST = 4  # positions of a network's first site

_ROLES = ("front", "end")

_CHANCE = 0.1  # every data set of the catalogue has ten classes


class Builder:
    """Builds spec tables; remembers the data sets that they name."""

    def __init__(
        self,
        recipe: ExperimentRecipe,
        scale: str,
        folder: Path,
        models: Mapping[str, str | None],
        size: int | None,
    ) -> None:
        self.recipe, self.scale, self.folder, self.models = recipe, scale, folder, models
        self.catalogue = catalogue()
        self.families = scale_settings(scale)["families"]
        self.chosen: dict[str, Chosen] = {}
        self.size = size
        self.notes: list[str] = []

    def large_enough(self) -> Builder:
        """The same with images as large as `--front` and `--end` need, and a note of it."""
        for side in (None, *_SIDES):
            twin = Builder(self.recipe, self.scale, self.folder, self.models, side)
            if twin._has_room():
                if side:
                    names = " and ".join(dict.fromkeys(m for m in self.models.values() if m))
                    twin.notes.append(f"images of {side}x{side} pixels, as {names} needs")
                return twin
        return self

    def _has_room(self) -> bool:
        """Whether the images are no smaller than the networks' down-sampling, and leave more than
        a position or two to stitch."""
        pair, *_ = self.pairs() or (None,)
        names = dict(zip(_ROLES, pair, strict=True)) if pair else {"end": self.recipe.donors[0]}
        try:
            shapes = [
                self._facts(name, self.models[role]).shapes[0] for role, name in names.items()
            ]
        except FulaError:  # too small, or no such model: raised with its reason where it is used
            return False
        return all(_positions(shape) >= _LEAST for shape in shapes)

    def data(self, name: str) -> Chosen:
        """A data set of the catalogue, made once. Raises `FulaError` for an unknown name."""
        if name not in self.catalogue["data"]:
            known = self.catalogue["data"]
            raise FulaError(f"no data set '{name}' in the catalogue{nearest(name, known)}")
        if name not in self.chosen:
            self.chosen[name] = choose(name, self.scale, self.folder, self.size)
        return self.chosen[name]

    def sweep(self, part: RecipePart, overrides: Sequence[str]) -> Sweep:
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
        spec = load_spec(table, overrides)
        of_donors = {n: self._donor_facts(n) for n in spec.donors}
        return Sweep(part.name, spec, _limited(data, spec.data), of_donors)

    def _donor_facts(self, name: str) -> DataFacts:
        known = name.removesuffix(FRONT_COPY)
        return self.data(self.catalogue["donors"][known]["data"]).facts

    def _roles(self, grid: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The grid with pairs spelled out, and its donors, after `--front` and `--end`."""
        pairs = _pairs_of(grid)
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
        sites, pairs = grid.get("sites", "same"), _pairs_of(grid)
        if isinstance(sites, str) or not pairs or not any(self.models.values()):
            return grid
        both = [self._counts(n, role) for n, role in zip(pairs[0], _ROLES, strict=True)]
        found = [
            [_moved(site, *counts) for site, counts in zip(given, both[-len(given) :], strict=True)]
            for given in map(_several, sites)
        ]
        return grid | {
            "sites": [list(s) if len(s) > 1 else s[0] for s in dict.fromkeys(map(tuple, found))]
        }

    def _of_end(self) -> Builder:
        """The same with `--end` in both roles; data sets are remembered in one place."""
        twin = copy.copy(self)
        twin.models = dict.fromkeys(self.models, self.models["end"])
        return twin

    def _matchable(self, grid: dict[str, Any]) -> dict[str, Any]:
        """The grid without `dm` between conv and token sites, which no closed form joins."""
        methods, pairs = grid.get("methods", ()), _pairs_of(grid)
        if DM.name not in methods or not pairs or self.alike(*pairs[0]):
            return grid
        left = [m for m in methods if m != DM.name]
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
            fix = "; `--set size=N` sets the side of all images" if self.size else ""
            raise FulaError(f"{error}{fix}") from None

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The driver's options with those `given`; sites are those of its end, as in a grid.

        Raises `FulaError` for an option that the driver does not have.
        """
        usual, name = self.recipe.options, self.recipe.name
        for key in given:
            if key not in usual:
                raise FulaError(f"'{name}' has no options.{key}{nearest(key, usual)}")
        parse_table(Options, given, "options")
        found = dict(usual) | dict(given)
        for key in ("donor", "data", "receivers"):
            self._check_known(key, found.get(key, ()))
        if found.get("sites"):
            end = found.get("donor") or self.recipe.donors[0]
            own, count = self._counts(end, "end")
            if "sites" not in given:
                found["sites"] = sorted({_moved(site, own, count) for site in usual["sites"]})
            names = self._facts(end, self.models["end"]).names
            found["sites"] = [
                site_number(s, names, f"options.sites: '{end}'") for s in found["sites"]
            ]
        return found

    def _check_known(self, key: str, names: str | Sequence[str]) -> None:
        """Refuse a donor that the experiment does not have."""
        in_sweeps = [n for pair in self.pairs() for n in pair]
        known = self.recipe.donors or tuple(dict.fromkeys(in_sweeps))
        for name in _several(names):
            if name not in known:
                raise FulaError(f"options.{key}: no donor '{name}'{nearest(name, known)}")

    def pairs(self) -> list[list[str]]:
        """The pairs of the first sweep, as the recipe has them."""
        first, *_ = self.recipe.sweeps or (None,)
        return _pairs_of(merged(self.recipe.grid, first.grid)) if first else []

    def donor(self, name: str, model: str | None = None) -> dict[str, Any]:
        """The `[donors.*]` table of a catalogue donor; `model` replaces its architecture.

        Raises `FulaError` for an unknown name.
        """
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
        if model and model != table["model"]:
            table = self._half_the_margin(_with_model(table, model))
        return fractions(table)

    def _half_the_margin(self, table: dict[str, Any]) -> dict[str, Any]:
        """The donor's table, half as far above chance: least accuracies are those of ResNets."""
        if "min_accuracy" not in table:
            return table
        least = round((table["min_accuracy"] + _CHANCE) / 2, 4)
        self.notes.append(
            f"{table['model']}: at least {least:.1%} asked for {table['min_accuracy']:.1%}, half "
            "the margin above chance, as the scale was measured with a ResNet"
        )
        return table | {"min_accuracy": least}

    def _demands(
        self, data: Chosen, entry: Mapping[str, Any], family: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The data set's epochs and least accuracy; controls, and what was trained without labels,
        are asked for none."""
        if family["recipe"] == "simclr":
            return {}
        settings = {k: data.settings[k] for k in ("epochs",) if k in data.settings}
        least = "min_accuracy_robust" if family.get("adversarial") else "min_accuracy"
        if least in data.settings and not (entry.keys() & {"untrained", "permute_labels"}):
            settings["min_accuracy"] = data.settings[least]
        return settings


def _limited(data: Chosen, asked: DataSpec) -> DataFacts:
    """Facts of a run's images, as many as its spec asks for."""
    images = asked.train_images
    if images is None:
        return data.run_facts
    return replace(data.run_facts, train_images=min(data.facts.train_images, images))


def _with_model(table: dict[str, Any], model: str) -> dict[str, Any]:
    """Another architecture, keeping those of the old one's options that it knows."""
    options = DEFAULTS.get(model, {})
    gone = {"width", "stem", "residuals", "batch_norm"} - set(options)
    return {k: v for k, v in table.items() if k not in gone} | {"model": model}


def _pairs_of(grid: Mapping[str, Any]) -> list[list[str]]:
    fronts, ends = (_several(grid.get(role, ())) for role in ("front", "end"))
    return grid.get("pairs") or [[f, e] for f in fronts for e in ends]


def _positions(shape: Sequence[int]) -> int:
    """Positions of a map (C, H, W) or of tokens (T, D); vectors have none to run out of."""
    return {3: prod(shape[1:]), 2: shape[0]}.get(len(shape), _LEAST)


def _moved(site: int | str, own: int, count: int) -> int | str:
    """The site of `count` at the relative depth of `site` of `own`; the last one stays the last.
    A name is of the model that takes the place."""
    return site if isinstance(site, str) else max(1, round(site * count / own))


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)
