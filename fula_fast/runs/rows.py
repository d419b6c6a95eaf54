"""The row of a cell: what it is, what was measured, and what it was computed with."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..device.machine import cpu_name
from ..engine.task import Outcome
from ..measures.agreement import COLUMNS as ANSWERS
from ..measures.registry import OF_LABELS
from ..study.cell import Cell
from ..study.plan import PlannedWave
from .workbench import Workbench

_PACKAGES = ("torch", "torchvision", "triton", "numpy")


def rows_of(
    bench: Workbench, wave: PlannedWave, outcomes: Iterable[Outcome]
) -> Iterator[dict[str, Any]]:
    """A row for each outcome of a wave."""
    common, unknown, axes = _common(bench, wave), _unknown(bench, wave), bench.spec.asked_grid.axes
    for outcome in outcomes:
        robust = _robust_donors(bench, wave, outcome.cell)
        yield common | robust | _row(outcome) | unknown | _axis_columns(outcome, axes)


def hashes_of(bench: Workbench, wave: PlannedWave) -> dict[str, str]:
    """Columns with the content hashes of a wave's donors."""
    names = {"front": wave.key.front, "end": wave.key.end}
    return {f"{r}_hash": bench.donor(n, wave.key.hook).content_hash for r, n in names.items()}


def _common(bench: Workbench, wave: PlannedWave) -> dict[str, Any]:
    """Columns that all cells of a wave share."""
    accuracies = {
        f"{role}_accuracy": bench.donor(name, wave.key.hook).metrics.test_accuracy
        for role, name in (("front", wave.key.front), ("end", wave.key.end))
    }
    versions = {f"version_{name}": v for name, v in versions_in_use().items()}
    place = {"device": device_name(bench.plan.device), "precision": bench.plan.precision}
    sites = {
        f"{role}_sites": bench.donor(name, wave.key.hook).staged.num_sites
        for role, name in (("front", wave.key.front), ("end", wave.key.end))
    }
    return {**accuracies, **sites, **hashes_of(bench, wave), **place, **versions}


def _unknown(bench: Workbench, wave: PlannedWave) -> dict[str, None]:
    """The columns that stay empty where the data have no labels, or the end no answers."""
    if not bench.donor(wave.key.end, wave.key.hook).staged.classifies:
        return dict.fromkeys(ANSWERS)
    return {} if bench.source(bench.spec.data).labelled else dict.fromkeys(OF_LABELS)


def _robust_donors(bench: Workbench, wave: PlannedWave, cell: Cell) -> dict[str, float]:
    """Columns of the two donors under the cell's own attack; cells of a wave may differ in it."""
    return {
        f"{role}_robust_accuracy": found
        for role, name in (("front", wave.key.front), ("end", wave.key.end))
        if (found := bench.robust_accuracy(name, wave, cell.protocol)) is not None
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    cell, rule = outcome.cell, outcome.cell.protocol
    described = {
        "cell": cell.id, "front": cell.front, "end": cell.end, "front_site": cell.front_site,
        "end_site": cell.end_site, "method": cell.method, "protocol": rule.preset,
        "alpha": cell.alpha, "shortcut": cell.shortcut_label, "subset": cell.subset,
        "seed": cell.seed, "data_seed": cell.data_seed, "weighting": cell.weighting,
        "bn": rule.bn, "epochs": rule.epochs,
        "status": "failed" if outcome.error else "ok", "error": outcome.error,
    }  # fmt: skip
    return described | outcome.metrics


def _axis_columns(outcome: Outcome, axes: Mapping[str, Any]) -> dict[str, Any]:
    """One column for every protocol option that the grid varies."""
    return outcome.cell.protocol.model_dump(mode="json", include=set(axes))


def device_name(device: str) -> str:
    """The processor's or the GPU's own name."""
    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def versions_in_use() -> dict[str, str]:
    """Of this package, Python, and what computes."""
    found = {"fula_fast": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # triton has no wheel for some systems
            found[name] = "absent"
    return found
