"""`report.html` of an experiment: claims beside our numbers, plots, and links to its sweeps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from .. import __version__
from ..files.atomic import replacing
from ..report.page import Picture, picture, template
from ..report.style import look, save
from .claims import Verdict
from .evidence import Evidence
from .experiment import FRONT_COPY, Experiment
from .lab import Figure
from .plots import draw
from .recipe import catalogue

if TYPE_CHECKING:
    from .runner import Shown

_NOTES = {
    "smoke": "tiny networks on handwritten digits, to see that everything runs; "
    "no outcome means anything.",
    "tiny": "narrow networks, few images and seeds, APGD in place of AutoAttack, for two processor "
    "cores within an hour: outcomes show a direction at most.",
    "small": "narrow networks, small images and short trainings, for two processor cores.",
}


def write_page(
    experiment: Experiment,
    folder: Path,
    run_folder: Path,
    table: Evidence,
    found: Sequence[Verdict],
    shown: Shown,
    failures: Sequence[str] = (),
) -> Path:
    """Write `report.html` and the recipe's plot into `folder`; returns the page's path.

    `run_folder`: where the sweeps lie. `shown`: of the experiment's driver. `failures`: a
    line for every cell or task without a result.
    """
    recipe = experiment.recipe
    pictures = [
        *_plot(experiment, folder, table),
        *_given(shown.pictures, folder),
        *_given(_heat_maps(experiment, run_folder), folder),
    ]
    page = template("experiment.html.j2", "fula_fast.reproduce").render(
        name=experiment.name,
        figure=recipe.figure,
        title=recipe.title,
        scale=experiment.scale,
        scale_note=_NOTES.get(experiment.scale, ""),
        version=__version__,
        cells=len(table.rows),
        seeds=len(table.seeds),
        shares=recipe.run_name if recipe.run_name != experiment.name else "",
        stand_ins=experiment.stand_ins(),
        notes=experiment.notes,
        failures=failures,
        claims=[v for v in found if not v.ours],
        checks=[v for v in found if v.ours],
        pictures=pictures,
        tables=shown.tables,
        sweeps=_sweeps(experiment, folder, run_folder, table),
        stated=_stated(experiment, table),
        donors=_donors(experiment, table),
        recipe=tomli_w.dumps(_written(experiment)),
    )
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def _sweeps(
    experiment: Experiment, folder: Path, run_folder: Path, table: Evidence
) -> list[dict[str, Any]]:
    """Name, finished cells and the link of every sweep's own report."""
    return [
        {
            "name": sweep.name,
            "cells": len(table.where({"part": sweep.name}).rows),
            "link": os.path.relpath(run_folder / sweep.name / "report.html", folder),
        }
        for sweep in experiment.sweeps
    ]


def _plot(experiment: Experiment, folder: Path, table: Evidence) -> list[Picture]:
    """The recipe's own plot, where the table has its columns."""
    plot = experiment.recipe.plot
    if plot is None:
        return []
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    with look():
        drawn = draw(table, plot)
        if drawn is None:
            return []
        path = save(drawn, folder / "plots" / f"{experiment.name}.svg")
    seeds = len(table.seeds)
    spread = f" Mean of {seeds} seeds, bands from the lowest to the highest." if seeds > 1 else ""
    return [picture(path, plot.caption + spread)]


def _given(drawn: Sequence[Figure], folder: Path) -> list[Picture]:
    """The driver's pictures; those of a shared run are linked from where they lie."""
    return [
        Picture(found.source, os.path.relpath(each.path, folder / "plots"), found.caption)
        for each in drawn
        for found in [picture(each.path, each.caption)]
    ]


def _heat_maps(experiment: Experiment, run_folder: Path) -> list[Figure]:
    """Accuracy by front and end site, from the sweeps' own reports; for recipes without a plot."""
    if experiment.recipe.plot is not None:
        return []
    folders = (run_folder / sweep.name / "plots" for sweep in experiment.sweeps)
    return [
        Figure(
            path, f"{path.stem}: rows are front sites, columns end sites; bold: a row's largest."
        )
        for folder in folders
        for path in sorted(folder.glob("cross-layer-accuracy-*.svg"))
    ]


def _stated(experiment: Experiment, table: Evidence) -> list[tuple[str, ...]]:
    """(architecture, donor, our accuracy, the paper's, our robust accuracy, the paper's)."""
    rows = {(row.get("label"), row.get("front")): row for row in table.rows}
    columns = ("accuracy", "robust_accuracy")
    found = []
    for label, donors in experiment.recipe.stated.items():
        for name, paper in donors.items():
            ours = rows.get((label, name), {})
            pairs = zip((ours.get(c) for c in columns), paper, strict=True)
            shown = ("–" if n is None else f"{n:.1%}" for pair in pairs for n in pair)
            found.append((label, name, *shown))
    return found


def _donors(experiment: Experiment, table: Evidence) -> list[tuple[str, ...]]:
    """(name, model, data, accuracy, least accuracy, content hash) of every donor in the table."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    known = _roles(experiment)
    for row in table.rows:
        for side in ("front", "end"):
            name, content = row.get(side), row.get(f"{side}_hash")
            if name and content:
                # a row of Table 1 is a donor; any other's own accuracy is a stitched network's
                own = row["accuracy"] if experiment.recipe.stated else None
                accuracy = row.get(f"{side}_accuracy", own)
                shown = "" if accuracy is None else f"{accuracy:.1%}"
                model, asked = known.get((side, name), ("", None))
                floor = "" if asked is None else f"{asked:.1%}"
                model = row.get("label") or model
                data = _data_of(experiment, name)
                found[name, content] = (name, model, data, shown, floor, content[:16])
    return list(found.values())


def _roles(experiment: Experiment) -> dict[tuple[str, str], tuple[str, float | None]]:
    """Architecture and least test accuracy of every donor, by role and name."""
    found = {n: (t.get("model", ""), t.get("min_accuracy")) for n, t in experiment.donors.items()}
    for sweep in experiment.sweeps:
        found |= {n: (donor.model, donor.min_accuracy) for n, donor in sweep.spec.donors.items()}
    ends = {("end", name): known for name, known in found.items()}
    fronts = {
        ("front", name.removesuffix(FRONT_COPY)): known
        for name, known in sorted(found.items())  # a copy comes after its name, and replaces it
    }
    return ends | fronts


def _data_of(experiment: Experiment, donor: str) -> str:
    entry = catalogue()["donors"].get(donor, {})
    chosen = experiment.data.get(entry.get("data", ""))
    variant = f" {entry['variant']}" if "variant" in entry else ""
    return f"{chosen.words}{variant}" if chosen else ""


def _written(experiment: Experiment) -> dict[str, Any]:
    """What ran: the driver's options and every sweep's spec, with `--set`, `--front`
    and `--end`."""
    return {
        "scale": experiment.scale,
        "overrides": list(experiment.overrides),
        "options": dict(experiment.options),
        "sweeps": {sweep.name: sweep.spec.study() for sweep in experiment.sweeps},
    }
