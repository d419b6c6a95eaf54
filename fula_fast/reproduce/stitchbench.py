"""StitchBench: results of the papers' experiments that two cores finish, in one Parquet file.

    fula-fast reproduce NAME --scale SCALE --out FOLDER
    python -m fula_fast.reproduce.stitchbench FOLDER SCALE [NAME ...]     puts its rows in the table

A row is a cell, or a task of an experiment's driver, with every measure, the hashes of its donors,
the protocol, versions and hardware, and the one command that makes it again. The file's schema says
what each column means; a row is never written by hand.
"""

from __future__ import annotations

import json
import os
import sys
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from ..device.machine import cpu_name
from ..errors import FulaError
from ..files.atomic import replacing
from ..files.paths import user_path
from ..report.against import against, with_models
from ..report.between_runs import Compared, RunRows, run_rows
from ..report.glossary import meaning
from ..runs.rows import versions_in_use
from ..store import COLUMNS, Store
from ..store.shards import clean_rows
from ..store.tables import table
from ..study.protocol import Protocol
from ..study.spec_keys import meanings_of
from . import drivers
from .claims import Verdict, verdicts
from .datasets import data_folder
from .evidence import gathered
from .experiment import Experiment, Sweep
from .recipe import load_recipe, recipe_names
from .resolution import resolve, scaled
from .runner import Ledger, driver_of, driver_part, identity, lab_of

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

NAME = "stitchbench"
FORMAT = 1
_FORMAT = b"stitchbench"

ORIGIN = {
    "experiment": "the experiment whose run it is: a name of `fula-fast reproduce list`",
    "scale": "of the experiment",
    "part": "of the experiment's sweeps, or its driver",
    "task": "of the experiment's driver",
    "command": "makes this row again",
    "axes": "protocol options that the experiment's sweep varies, a JSON list",
    "data": "what the stitch was trained and tested on",
    "source": "the name of that data's source in a spec",
    "front_model": "architecture of the front, and what is unusual about its training",
    "end_model": "the same of the end",
    "front_data": "what the front was trained on",
    "end_data": "the same of the end",
    "hardware": "processor, and how many of its cores there were: of the run, or of the collection "
    "where an experiment has no sweep",
    "time": "of the run's start, or of that collection, UTC",
}
"""Columns of every row before those of a run's table, and what they mean; all are text."""


def read(path: str | Path | None = None) -> pyarrow.Table:
    """The table that ships with the package, or the one in a file of the same form.

    Raises `FulaError` for a file of another form.
    """
    from pyarrow import ArrowInvalid, parquet

    place = user_path(path) if path else Path(str(files("fula_fast.reproduce") / f"{NAME}.parquet"))
    try:
        found = parquet.read_table(place)
    except (OSError, ArrowInvalid) as error:
        raise FulaError(f"'{place}' cannot be read as a table of results: {error}") from None
    form = (found.schema.metadata or {}).get(_FORMAT, b"absent").decode()
    if form != str(FORMAT):
        raise FulaError(
            f"'{place}' is no table of StitchBench in format {FORMAT} (its format: {form}); give "
            f"'{NAME}', or a file written by python -m fula_fast.reproduce.stitchbench"
        )
    return found


def results(path: str | Path | None = None) -> list[Row]:
    """The rows of a table, without what a row does not have."""
    return [{k: v for k, v in row.items() if v is not None} for row in read(path).to_pylist()]


def beside(run: str | Path, name: str) -> Compared:
    """What differs between a run's folder and the table that ships (`stitchbench`), or a file's.

    Raises `FulaError` where there is no run, no such table, or nothing alike in both.
    """
    mine, spec = run_rows(run), Store.open(run).spec
    rows = [row | {"source": spec["data"]["source"]} for row in mine.rows]
    rows = with_models(rows, spec["donors"])
    return against(RunRows(mine.name, rows, mine.axes), bench_rows(name))


def bench_rows(name: str) -> RunRows:
    """What a run is set beside: the cells of the table that ships (`stitchbench`), or of a file."""
    rows = [row for row in results(None if name == NAME else name) if "cell" in row]
    axes = {option for row in rows for option in json.loads(row["axes"])}
    return RunRows(name, rows, tuple(sorted(axes)))


def outcomes(path: str | Path | None = None) -> dict[tuple[str, str], tuple[Verdict, ...]]:
    """By (experiment, scale), every claim of its recipe, tested on the rows of the table."""
    parts: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in results(path):
        run = parts.setdefault((row["experiment"], row["scale"]), {})
        run.setdefault(row["part"], []).append(row)
    recipes = [
        (name, scale, scaled(load_recipe(name), scale))
        for name in recipe_names()
        for scale in dict.fromkeys(at for _, at in parts)
    ]
    return {
        (name, scale): verdicts(recipe, gathered(parts[recipe.run_name, scale]))
        for name, scale, recipe in recipes
        if (recipe.run_name, scale) in parts
    }


def absent(path: str | Path | None = None) -> list[str]:
    """The experiments of which no row stands in the table, by whose sweeps they have when tiny."""
    there = {row["experiment"] for row in results(path)}
    runs = {name: scaled(load_recipe(name), "tiny").run_name for name in recipe_names()}
    return [name for name, run in runs.items() if run not in there]


def incomplete(path: str | Path | None = None) -> dict[tuple[str, str], tuple[int, int]]:
    """(experiment, scale) with other than as many cells as its sweeps have: both numbers."""
    swept = (row for row in results(path) if "axes" in row)
    held = Counter((row["experiment"], row["scale"]) for row in swept)
    found = {}
    for (name, scale), count in held.items():
        experiment = resolve(name, scale, data_folder())
        cells = sum(len(_planned(sweep)) for sweep in experiment.sweeps)
        if count != cells:
            found[name, scale] = count, cells
    return found


def _planned(sweep: Sweep) -> dict[str, None]:
    """The ids of a sweep's cells."""
    return dict.fromkeys(sweep.plan().lanes.ids)


# Collecting


def collect(folder: Path, scale: str, names: Iterable[str], path: Path) -> pyarrow.Table:
    """Put the finished rows of experiments below `folder` into the table in `path`, in the place of
    earlier ones of the same experiments at this scale; returns the table.

    Raises `FulaError` where an experiment has not begun, or was run with other settings.
    """
    asked = (resolve(name, scale, data_folder()) for name in names)
    runs = {experiment.recipe.run_name: experiment for experiment in asked}  # some share one
    new = [row for experiment in runs.values() for row in rows_of(experiment, folder)]
    done = {(row["experiment"], row["scale"]) for row in new}
    old = results(path) if path.exists() else []
    kept = [row for row in old if (row["experiment"], row["scale"]) not in done]
    found = in_schema(sorted([*kept, *new], key=_order))
    write(found, path)
    return found


def _order(row: Row) -> tuple[int, str, str, str]:
    place = recipe_names().index(row["experiment"])
    return place, row["scale"], row["part"], row.get("cell", row.get("task", ""))


def rows_of(experiment: Experiment, out: Path) -> list[Row]:
    """The finished rows of an experiment that runs below `out`, with their origin."""
    place = out / experiment.recipe.run_name
    found = [row for sweep in experiment.sweeps for row in _swept(experiment, sweep, place)]
    return found + (_driven(experiment, place, found) if experiment.recipe.driver else [])


def _swept(experiment: Experiment, sweep: Sweep, place: Path) -> Iterator[Row]:
    store = Store.open(place / sweep.name)
    planned = _planned(sweep)
    if planned.keys() != store.cell_ids.keys():
        raise FulaError(
            f"'{store.folder}' was run with other settings than '{experiment.name}' has at scale "
            f"{experiment.scale}; run it without --set, --front and --end"
        )
    launch = store.launches()[-1]
    origin = _origin(experiment, sweep.name) | {
        "hardware": f"{launch['processor']}, {launch['cores']} cores",
        "time": launch["started"][:19],
        "axes": json.dumps(sorted(sweep.spec.asked_grid.axes)),
    }
    for row in stitched(experiment, sweep, [r for r in store.results() if r["status"] == "ok"]):
        again = {"command": _command(experiment, f" --cell {row['cell']}")}
        yield _versions(launch["versions"]) | row | origin | again


def stitched(experiment: Experiment, sweep: Sweep, rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of a sweep's cells with what they stitch: data, and models and data of the donors,
    in the words of the catalogue, which says what stands in for what."""
    part = next((p for p in experiment.recipe.sweeps if p.name == sweep.name), None)
    data = experiment.data[(part and part.data) or experiment.recipe.data]
    words = {(c.table["source"], c.table["data_dir"]): c.words for c in experiment.data.values()}
    donors = sweep.spec.donors
    seen = {n: words.get((d.images.source, d.images.data_dir)) for n, d in donors.items()}
    models = {name: donor.model_dump() for name, donor in donors.items()}
    told = {"data": data.words, "source": sweep.spec.data.source}
    for row in with_models([row | told for row in rows], models):
        yield row | {f"{role}_data": seen[row[role]] for role in ("front", "end")}


def _origin(experiment: Experiment, part: str) -> Row:
    return {"experiment": experiment.recipe.run_name, "scale": experiment.scale, "part": part}


def _command(experiment: Experiment, more: str = "") -> str:
    name = experiment.recipe.run_name
    return f"fula-fast reproduce {name} --scale {experiment.scale}{more}"


def _driven(experiment: Experiment, place: Path, swept: Sequence[Row]) -> list[Row]:
    """Rows of the driver's tasks; machine and versions are those of the sweeps, else those here,
    where the rows are collected."""
    ledger, driver = Ledger(place / "driver", identity(experiment)), driver_of(experiment)
    about = _surroundings(swept[0]) if swept else _here()
    origin = _origin(experiment, driver_part(experiment))
    found: list[Row] = []
    for task in driver.tasks(experiment):
        if ledger.has(task.key):
            rows = ledger.kept(task.key, list)
        elif task.kept:  # not finished
            continue
        else:  # finished cells decide it, and it is made with all of them
            rows = driver.run(task, lab_of(experiment, place))
        alone = f" --cell {task.key}" if task.kept else ""
        own = {"task": task.key, "command": _command(experiment, alone)}
        found += [about | row | origin | own for row in clean_rows(rows)]
    return found


def _surroundings(row: Row) -> Row:
    return {k: v for k, v in row.items() if k in ("hardware", "time") or k.startswith("version_")}


def _here() -> Row:
    now = datetime.now(UTC).isoformat(timespec="seconds")[:19]
    machine = {"hardware": f"{cpu_name()}, {os.cpu_count()} cores", "time": now}
    return machine | _versions(versions_in_use())


def _versions(found: Mapping[str, str]) -> Row:
    return {f"version_{name}": text for name, text in found.items()}


# The file


def in_schema(rows: Iterable[Row]) -> pyarrow.Table:
    """Rows as a table with typed columns, each with its meaning where it is known."""
    import pyarrow

    found = table(rows, dict.fromkeys(ORIGIN, "string") | COLUMNS)
    fields = [
        field.with_metadata({"meaning": words}) if (words := _meaning(field.name)) else field
        for field in found.schema
    ]
    return found.cast(pyarrow.schema(fields, {_FORMAT: str(FORMAT)}))


def _meaning(name: str) -> str:
    start, _, rest = name.partition("_")
    if start == "version":
        return f"version of {rest}"
    if start == "tau":
        return f"Kendall's τ-b over the site pairs with the accuracies of {rest}"
    known = ORIGIN.get(name) or meaning(name) or _of_drivers().get(name)
    return known or meanings_of(Protocol).get(name, "")


@cache
def _of_drivers() -> Mapping[str, str]:
    """What the columns of the drivers' rows mean."""
    names = (f"{drivers.__name__}.{module.name}" for module in iter_modules(drivers.__path__))
    return ChainMap(*(getattr(import_module(name), "COLUMNS", {}) for name in names))


def write(found: pyarrow.Table, path: Path) -> None:
    """Write a table; columns without a value are left out, but for those of every table."""
    from pyarrow import parquet

    asked = {*ORIGIN, *COLUMNS}
    used = [n for n in found.column_names if n in asked or found[n].null_count < len(found)]
    with replacing(path) as temporary:
        parquet.write_table(found.select(used), temporary, compression="zstd")


if __name__ == "__main__":
    folder, scale, *names = sys.argv[1:]
    path = Path(str(files("fula_fast.reproduce") / f"{NAME}.parquet"))
    found = collect(user_path(folder), scale, names or recipe_names(), path)
    print(f"{path}: {len(found)} rows; without: {', '.join(absent(path))}")
    for (name, at), (count, cells) in incomplete(path).items():
        print(f"{name}, {at}: {count} of {cells} cells")
