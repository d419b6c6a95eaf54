"""One cell of an experiment, or one task of its driver, made by itself: what
`fula-fast reproduce NAME --cell ID` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FulaError
from ..progress import Progress
from ..runs.sweep import run_sweep
from ..store import Store
from ..store.shards import clean_rows
from ..study.cells import Cells
from ..study.spec import EngineSpec, Spec
from .experiment import Experiment, Sweep
from .runner import check_data, driver_of, lab_of

if TYPE_CHECKING:
    from .lab import Task

_LISTS = (
    "methods",
    "weightings",
    "protocols",
    "alpha",
    "shortcut",
    "subset",
    "seeds",
    "data_seeds",
)
"""Of a grid, beside pairs, sites and axes."""


def run_cell(
    experiment: Experiment,
    cell: str,
    out: Path,
    *,
    progress: Progress | None = None,
    donors: Path | None = None,
    engine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and measure the cell of that id below the folder `out`, with the donors it needs;
    returns its row. Raises `FulaError` where the experiment has no such cell, or lacks its data.
    """
    check_data(experiment)
    spec = narrowed(_sweep_of(experiment, cell), cell)
    asked = EngineSpec.model_validate(spec.engine.model_dump() | dict(engine or {}))
    spec = spec.model_copy(update={"engine": asked})
    place = out / "cells" / experiment.name / cell  # ids tell cells, not what else a run measures
    resume = (place / "spec.json").exists()
    run_sweep(spec, place, resume=resume, progress=progress, donors=donors)
    (row,) = Store.open(place).rows()
    return row


def tasks_alone(experiment: Experiment) -> dict[str, Task]:
    """The tasks of the experiment's driver by name, but for those that finished cells decide."""
    if not experiment.recipe.driver:
        return {}
    return {task.key: task for task in driver_of(experiment).tasks(experiment) if task.kept}


def run_task(
    experiment: Experiment,
    task: Task,
    out: Path,
    *,
    progress: Progress | None = None,
    donors: Path | None = None,
    engine: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The rows of a task of the experiment's driver, made below the folder `out`. Raises
    `FulaError` where its data is missing."""
    check_data(experiment)
    place = out / "cells" / experiment.name / task.key
    lab = lab_of(experiment, place, progress, donors, engine)
    return clean_rows(driver_of(experiment).run(task, lab))


def _sweep_of(experiment: Experiment, cell: str) -> Sweep:
    for sweep in experiment.sweeps:
        if cell in _cells(sweep).ids:
            return sweep
    raise FulaError(
        f"'{experiment.name}' at scale {experiment.scale} has no cell '{cell}', and no such task; "
        "ids stand in the columns cell and task of its results.csv"
    )


def _cells(sweep: Sweep) -> Cells:
    return sweep.plan().lanes


def narrowed(sweep: Sweep, cell: str) -> Spec:
    """The sweep's spec with a grid of this cell alone. The id, a hash of all that decides the
    numbers, stays the same."""
    found = _cells(sweep).named(cell)
    pair, sites = (found.front, found.end), (found.front_site, found.end_site)
    spec = _with_grid(sweep.spec, pairs=(pair,), front=(), end=(), sites=(sites,))
    donors = {name: spec.donors[name] for name in dict.fromkeys(pair)}
    left = replace(sweep, spec=spec.model_copy(update={"donors": donors}))
    while (changes := _smaller(left, cell)) is not None:
        left = replace(left, spec=changes)
    return left.spec


def _smaller(sweep: Sweep, cell: str) -> Spec | None:
    """The spec with one more list of the grid cut to a single value; None where all are."""
    for changed in _cuts(sweep.spec):
        if cell in _cells(replace(sweep, spec=changed)).ids:
            return changed
    return None


def _cuts(spec: Spec) -> Iterator[Spec]:
    grid = spec.asked_grid
    for name in _LISTS:
        values = getattr(grid, name) or ()
        if len(values) > 1:
            yield from (_with_grid(spec, **{name: (value,)}) for value in values)
    for option, values in grid.axes.items():
        if len(values) > 1:
            yield from (_with_grid(spec, axes=grid.axes | {option: (value,)}) for value in values)


def _with_grid(spec: Spec, **changes: Any) -> Spec:
    return spec.model_copy(update={"grid": spec.asked_grid.model_copy(update=changes)})
