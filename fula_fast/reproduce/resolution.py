"""From a recipe's name and a scale to an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import FulaError, nearest
from ..study.toml import apply_overrides, explain, parse_override
from .builder import Builder
from .experiment import Experiment, Unsuitable
from .recipe import SCALES, ExperimentRecipe, load_recipe, merged, scale_changes


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
    taken at their relative depths, images are enlarged where it needs that, and half the usual
    margin above chance is asked of its test accuracy. Raises `FulaError` for unknown names and
    values, and for settings that would change nothing.
    """
    if scale not in SCALES:
        raise FulaError(f"unknown scale '{scale}'{nearest(scale, SCALES)}")
    recipe, overrides = scaled(load_recipe(name), scale), tuple(overrides)
    _check_takes(recipe, [*overrides, *(["--front"] if front else []), *(["--end"] if end else [])])
    size, options, mine = _sorted(overrides)
    builder = Builder(recipe, scale, folder, {"front": front, "end": end}, size)
    if front or end:
        builder = builder if size else builder.large_enough()
        roles = [f"{role}s: {m}" for role, m in (("front", front), ("end", end)) if m]
        builder.notes.append(f"another architecture, {', '.join(roles)}")
    if recipe.data:
        builder.data(recipe.data)
    sweeps = tuple(builder.sweep(part, mine) for part in recipe.sweeps)
    if recipe.driver == "penultimate" and not builder.alike(*builder.pairs()[0]):
        raise Unsuitable(
            f"'{name}' sets a closed-form stitch (DM) beside FuLA, which needs sites of one form; "
            "take --front and --end that are both convolutional, or both of tokens"
        )
    loose = {n: builder.donor(n, end) for n in recipe.donors}
    loose = loose if sweeps else apply_overrides({"donors": loose}, mine)["donors"]
    found = builder.options(options)
    notes = tuple(dict.fromkeys(builder.notes))
    return Experiment(recipe, scale, sweeps, builder.chosen, found, folder, overrides, loose, notes)


def _sorted(overrides: Iterable[str]) -> tuple[int | None, dict[str, Any], list[str]]:
    """Overrides by what they reach: the images' size, the driver's options, the sweeps
    (as texts)."""
    own = [parse_override(t) for t in overrides if t.startswith(_OWN)]
    mine = [t for t in overrides if not t.startswith(_OWN)]
    size = next((value for key, value in own if key == ("size",)), None)
    if size is not None and (type(size) is not int or size < 1):
        raise FulaError(f"size = {size!r}: give the side of all images in pixels, at least 1")
    return size, {".".join(key[1:]): value for key, value in own if len(key) > 1}, mine


_OWN = ("options.", "size=")

_OF_ONE_SIZE = ("autoencoder",)  # drivers whose networks are made for 28x28 images


def takes(recipe: ExperimentRecipe, setting: str) -> bool:
    """Whether `--front`, `--end`, or the text of a `--set`, changes anything in a recipe.

    One without sweeps has no grid and no protocol; its donors are ends where it has receivers.
    """
    if setting.startswith("options."):
        return setting.removeprefix("options.").partition("=")[0] in recipe.options
    if setting.startswith("size="):
        return recipe.driver not in _OF_ONE_SIZE
    if recipe.sweeps:
        return True
    if setting.startswith("donors."):
        return setting.split(".")[1] in recipe.donors
    return setting == "--end" and "receivers" in recipe.options


def _check_takes(recipe: ExperimentRecipe, settings: Iterable[str]) -> None:
    for setting in settings:
        if not takes(recipe, setting) and not setting.startswith("options."):
            known = [f"options.{key}" for key in recipe.options]
            known += [f"donors.{name}" for name in recipe.donors]
            raise FulaError(
                f"'{recipe.name}' has nothing that {setting} would change; leave it out (it has "
                f"{', '.join(known)})"
            )


def _stitching(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a scale's replacements that change what is stitched, and how."""
    return {key: value for key, value in changes.items() if key != "options"}


def scaled(recipe: ExperimentRecipe, scale: str) -> ExperimentRecipe:
    """The recipe with its replacements for the scale; those of a part are keyed by its name. Where
    they make other sweeps of those that it shares, its run there is its own."""
    changes = scale_changes(recipe, scale)
    shares = not recipe.run or _stitching(changes) == _stitching(
        scale_changes(load_recipe(recipe.run), scale)
    )
    parts = changes.pop("parts", {})
    table = recipe.model_dump(exclude={"scales"})
    if not shares:
        table["run"] = ""
    table["parts"] = [merged(p, parts.get(p["name"], {})) for p in table["parts"]]
    try:
        return ExperimentRecipe.model_validate(merged(table, changes))
    except ValidationError as error:
        raise explain(error, ExperimentRecipe, recipe.name) from None
