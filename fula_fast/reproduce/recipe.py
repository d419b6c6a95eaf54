"""Recipes: what an experiment runs, what the paper says about it, and how its plot is drawn.

A recipe is a short TOML file in `experiments/`. It names donors and data of `catalog.toml`, and may
extend another recipe. Reading recipes needs neither torch nor data.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast, get_args

from pydantic import Field, ValidationError

from ..errors import FulaError, nearest
from ..study.donor_spec import SpecTable
from ..study.toml import explain

Scale = Literal["smoke", "tiny", "small", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Family = Literal["fula", "mislead", "modalities"]
_ORDER = (
    "table1", "fig3", "fig4", "fig5", "fig6", "fig7", "fig12", "fig8", "fig9", "fig10", "fig11",
    *(f"fig{n}" for n in range(13, 31)),
    "mislead-colour", "mislead-noise", "mislead-modalities", "mislead-autoencoder",
    "invariance", "information", "foundation", "sanity", "null", "measures",
)  # fmt: skip


class ClaimSpec(SpecTable):
    """A statement of the paper and the test of it.

    `says`: the statement in our words. `test`: a function of `claim_tests`, with `args`. `each`:
    columns of which every value must meet the bound by itself. `figure`: where it is made; unset:
    the recipe's own figure. `premise`: the `key` of a claim without which this one means little.
    `ours`: no paper says it; it is a check of our own.
    """

    says: str
    test: str
    args: dict[str, Any] = Field(default_factory=dict)
    each: tuple[str, ...] = ()
    figure: str = ""
    key: str = ""
    premise: str = ""
    ours: bool = False


class PlotSpec(SpecTable):
    """A plot of the rows: `y` against `x`, a line per `line` value, a panel per `panel` value.

    `where` selects rows, as claims do. `kind`: a function of `plots`.
    """

    kind: str
    x: str = ""
    y: tuple[str, ...] = ()
    line: str = "method"
    panel: tuple[str, ...] = ()
    where: dict[str, Any] = Field(default_factory=dict)
    caption: str = ""


class RecipePart(SpecTable):
    """One sweep of an experiment: tables of a spec, over the experiment's own."""

    name: str
    data: str = ""
    grid: dict[str, Any] = Field(default_factory=dict)
    protocol: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)


class ExperimentRecipe(SpecTable):
    """An experiment.

    `figure`: what it reproduces. `run`: whose sweeps it shares, itself when unset. `data`: of the
    stitches, a catalogue name. `grid`, `protocol`, `evaluation`: tables of a spec. `model`: over
    the donors' own settings. `parts`: several sweeps in place of one. `driver`: a function that
    makes rows of its own, with `options`. `scales`: replacements at a scale, over those of the one
    that it extends in the catalogue. `same`: the figure of which this one is a part or a
    repetition, to say so in the report. `stated`: the paper's own accuracy and robust accuracy, by
    label and donor.
    """

    name: str
    title: str
    figure: str
    family: Family = "fula"
    run: str = ""
    same: str = ""
    data: str = ""
    grid: dict[str, Any] = Field(default_factory=dict)
    protocol: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    parts: tuple[RecipePart, ...] = ()
    driver: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    donors: tuple[str, ...] = ()
    scales: dict[Scale, dict[str, Any]] = Field(default_factory=dict)
    claims: tuple[ClaimSpec, ...] = ()
    stated: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    plot: PlotSpec | None = None

    @property
    def run_name(self) -> str:
        return self.run or self.name

    @property
    def sweeps(self) -> tuple[RecipePart, ...]:
        """The parts; one named after the run where the recipe only has a grid."""
        return self.parts or ((RecipePart(name=self.run_name),) if self.grid else ())


def recipe_names() -> tuple[str, ...]:
    """Every experiment, in the papers' order."""
    there = {f.name[:-5] for f in _folder().iterdir() if f.name.endswith(".toml")}
    return tuple(n for n in _ORDER if n in there) + tuple(sorted(there.difference(_ORDER)))


@cache
def load_recipe(name: str) -> ExperimentRecipe:
    """The recipe of that name; raises `FulaError` with the nearest one for an unknown name."""
    table = _table(name)
    table.pop("extends", None)
    try:
        recipe = ExperimentRecipe.model_validate({**table, "name": name})
    except ValidationError as error:
        raise explain(error, ExperimentRecipe, name) from None
    fronts = {front for front, _ in recipe.grid.get("pairs", ())}
    kept = tuple(c for c in recipe.claims if not fronts or _about(c.args, fronts))
    return recipe.model_copy(update={"claims": kept})


def _about(args: Mapping[str, Any], fronts: set[str]) -> bool:
    """Whether a claim is about pairs that a figure has; inherited ones may name other fronts."""
    named = [table["front"] for table in tables_in(args) if "front" in table]
    return all(fronts & set([n] if isinstance(n, str) else n) for n in named)


def tables_in(args: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A claim's arguments and every selector in them."""
    yield args
    for value in args.values():
        if isinstance(value, Mapping):
            yield from tables_in(value)


def catalogue() -> dict[str, Any]:
    """The tables of `catalog.toml`."""
    return _tables("catalog.toml")


def _tables(place: str) -> dict[str, Any]:
    """A file of ours; a copy for each caller, who may change it."""
    return copy.deepcopy(_parsed(place))


@cache
def _parsed(place: str) -> dict[str, Any]:
    return tomllib.loads(files("fula_fast.reproduce").joinpath(place).read_text("utf-8"))


def scale_settings(scale: str) -> dict[str, Any]:
    """A scale's table of the catalogue, over that of the scale that it `extends`."""
    table = dict(catalogue()["scales"][scale])
    base = table.pop("extends", None)
    return merged(scale_settings(base), table) if base else table


def scale_changes(recipe: ExperimentRecipe, scale: str) -> dict[str, Any]:
    """What a recipe replaces at a scale, over what it does at the one that this extends."""
    base = catalogue()["scales"][scale].get("extends")
    beneath = scale_changes(recipe, base) if base else {}
    return merged(beneath, recipe.scales.get(cast(Scale, scale), {}))


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over each other; a later value replaces an earlier one, tables are merged."""
    out: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out


def _folder():
    return files("fula_fast.reproduce") / "experiments"


def _table(name: str) -> dict[str, Any]:
    """A recipe's table with those that it extends beneath."""
    if name not in recipe_names():
        raise FulaError(
            f"unknown experiment '{name}'{nearest(name, recipe_names())}; "
            "`fula-fast reproduce list` shows all"
        )
    table = _tables(f"experiments/{name}.toml")
    if "extends" not in table:
        return table
    base = _table(table["extends"])
    if set(table) - _WORDS - {"extends"} and "run" not in table:
        base.pop("run", None)
    elif "run" not in table:
        base.setdefault("run", table["extends"])
    return merged(base, table)


_WORDS = {"title", "figure", "same", "claims", "stated", "plot"}
"""Keys that change no number: a recipe that extends another in these only shares its run."""
