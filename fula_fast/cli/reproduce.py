"""`fula-fast reproduce`: list, price, or run experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import FulaError
from ..files.paths import user_path
from ..reproduce.datasets import data_folder
from ..reproduce.experiment import Experiment, Unsuitable
from ..reproduce.recipe import load_recipe, recipe_names
from ..reproduce.resolution import resolve, takes

FAILED = 1


def reproduce(
    name: str,
    scale: str,
    *,
    out: Path | None = None,
    data: Path | None = None,
    dry_run: bool = False,
    models: tuple[str | None, str | None] = (None, None),
    overrides: Iterable[str] = (),
    engine: Mapping[str, Any] | None = None,
    cell: str | None = None,
) -> int:
    """What the command does; returns its exit code. Raises `FulaError` for what cannot be run.

    `name`: an experiment, `all`, or `list`. `models`: of `--front` and `--end`. `cell`: the id of
    the one cell, or the name of the one driver's task, that is made.
    """
    if name == "list":
        return _list()
    folder, overrides = data_folder(data), tuple(overrides)
    _check(engine or {})
    place = user_path(out) if out else Path("runs") / f"reproduce-{scale}"
    if cell:
        if dry_run:
            raise FulaError("--dry-run prices whole experiments; leave it or --cell out")
        return _cell(resolve(name, scale, folder, overrides, *models), cell, place, engine or {})
    if name == "all":
        found = (_one_of_all(n, scale, folder, overrides, models) for n in recipe_names())
        experiments = [experiment for experiment in found if experiment is not None]
    else:
        experiments = [resolve(name, scale, folder, overrides, *models)]
    if dry_run:
        return _price(experiments, engine or {})
    return _run(experiments, place, engine or {})


def _cell(experiment: Experiment, name: str, out: Path, engine: Mapping[str, Any]) -> int:
    """One cell or task by itself, and what StitchBench says of it."""
    from ..progress import open_progress
    from ..reproduce import stitchbench
    from ..reproduce.cell_again import run_cell, run_task, tasks_alone

    task = tasks_alone(experiment).get(name)
    with open_progress() as progress:
        told = {"progress": progress, "engine": engine}
        if task:
            rows = run_task(experiment, task, out, **told)
        else:
            rows = [run_cell(experiment, name, out, **told)]
    origin = {"experiment": experiment.recipe.run_name, "scale": experiment.scale, "task": name}
    held = [
        row
        for row in stitchbench.results()
        if (origin.items() <= row.items() if task else row.get("cell") == name)
    ]
    rows.sort(key=lambda row: row.get("cell", ""))  # as the table is
    for row, known in zip_longest(rows, held[: len(rows)], fillvalue={}):
        _tell(row, known)
    return FAILED if any(row["status"] == "failed" for row in rows) else 0


def _tell(row: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if value is not None:
            print(f"{name}: {value}" + (f"  (StitchBench: {held[name]})" if name in held else ""))


def _check(engine: Mapping[str, Any]) -> None:
    from ..study.spec import EngineSpec, parse_table

    parse_table(EngineSpec, engine, "engine")


def _one_of_all(
    name: str,
    scale: str,
    folder: Path,
    overrides: tuple[str, ...],
    models: tuple[str | None, str | None],
) -> Experiment | None:
    """An experiment with those of the settings for all that mean something to it; None, said aloud,
    where it means nothing with the architectures asked for."""
    recipe = load_recipe(name)
    mine = [text for text in overrides if takes(recipe, text)]
    roles = zip(("--front", "--end"), models, strict=True)
    fitting = [model if takes(recipe, role) else None for role, model in roles]
    try:
        return resolve(name, scale, folder, mine, *fitting)
    except Unsuitable as error:
        print(f"{name}: left out, {error}")
        return None


def _list() -> int:
    recipes = [load_recipe(name) for name in recipe_names()]
    wide = [max(len(r.name) for r in recipes), max(len(r.figure) for r in recipes)]
    for recipe in recipes:
        print(f"{recipe.name:<{wide[0]}}  {recipe.figure:<{wide[1]}}  {recipe.title}")
    return 0


def _price(experiments: list[Experiment], engine: Mapping[str, Any]) -> int:
    from ..reproduce.price import in_cache, price, table_of
    from ..study.resources import resources
    from ..study.spec import EngineSpec, parse_table

    place = resources(parse_table(EngineSpec, engine, "engine"))
    trained: set[str] = set()
    shared: set[str] = set()
    prices = []
    for experiment in experiments:
        known = experiment.recipe.run_name in shared
        shared.add(experiment.recipe.run_name)
        prices.append(price(experiment, trained, shared=known, cached=in_cache))
    print(table_of(prices, place))
    return 0


def _run(experiments: list[Experiment], out: Path, engine: Mapping[str, Any]) -> int:
    from ..progress import open_progress
    from ..reproduce.runner import run

    failed = 0
    several = len(experiments) != 1
    if several and all(experiment.missing for experiment in experiments):
        raise FulaError(
            "no experiment can run: none has its data, or means something with these settings; "
            "point --data at the folder that holds it"
        )
    for experiment in experiments:
        if several and experiment.missing:
            print(f"{experiment.name}: left out, {'; '.join(experiment.missing)}")
            continue
        try:
            with open_progress() as progress:
                outcome = run(experiment, out, progress=progress, engine=engine)
        except FulaError as error:
            if not several:
                raise
            print(f"{experiment.name}: failed, {error}")
            failed += 1
            continue
        print(outcome)
        failed += outcome.failed
    return FAILED if failed else 0
