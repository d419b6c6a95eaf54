"""What the columns of a results table mean, from the records of what computes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..attacks.names import COLUMNS as ATTACKED
from ..measures.agreement import COLUMNS as AGREEMENT
from ..measures.registry import Needs, measures

_PLAIN = {
    "cell": "id: a hash of everything that decides the numbers",
    "front": "donor whose first stages are used",
    "end": "donor whose last stages and head are used",
    "front_site": "site of the front whose activations go into the stitch, from 1",
    "end_site": "site of the end whose activations the stitch replaces, from 1",
    "method": "how the stitch was found",
    "protocol": "preset of the training's options",
    "alpha": "attacked share of each training batch",
    "shortcut": "marker on all images",
    "subset": "trained on the first so many classes",
    "seed": "of the initial stitch, where it is drawn",
    "data_seed": "of order, crops, and the images behind the closed form",
    "status": "ok or failed",
    "error": "why the cell failed",
    "accuracy": "top-1 of the stitched model on the cell's own test set",
    "loss": "mean training loss of the last epoch; empty where nothing is trained",
    "term_stitch": "‖h − g‖ / ‖g‖ at the cell's end site over the test set",
    "train_seconds": "of training; in a wave the wave's time, shared equally",
    "device": "processor or GPU",
    "precision": "of activations",
    "engine_mode": "what ran the step: solo, eager, compiled, captured",
    "weighting": "of the terms, where the method weighs them",
    "bn": "batch norm in training: batch statistics (train) or stored ones (eval)",
    "epochs": "of training",
}
_DONOR = {
    "accuracy": "test accuracy of the donor",
    "robust_accuracy": "robust accuracy of the donor under the cell's attack",
    "hash": "content hash of the donor's weights",
    "sites": "number of the donor's sites",
}
_SETS = {
    "shortcut": "with the shortcut",
    "clean": "without the shortcut",
    "rolled": "with the shortcut of another class",
}


def glossary(names: Iterable[str]) -> list[tuple[str, str]]:
    """(column, meaning) of the columns that are known, in their order."""
    found = ((name, meaning(name)) for name in names)
    return [(name, text) for name, text in found if text]


def columns() -> list[tuple[str, str]]:
    """(column, meaning) of every column that a table can have, but for those of a spec's own axes
    and those on further test sets."""
    donors = [f"{role}_{name}" for role in ("front", "end") for name in _DONOR]
    measured = (column for each in measures(*Needs) for column in each.columns)
    return glossary([*dict.fromkeys((*_PLAIN, *AGREEMENT, *donors, *measured, *ATTACKED))])


def meaning(name: str) -> str:
    """What a column says; empty where it is not known (versions, a spec's own axes)."""
    if name in _known():
        return _known()[name]
    start, _, rest = name.partition("_")
    if start in ("front", "end") and rest in _DONOR:
        return f"{start}: {_DONOR[rest]}"
    if start in _SETS and rest in _known():
        return f"{_known()[rest]}; on test images {_SETS[start]}"
    return ""


def _known() -> Mapping[str, str]:
    measured = {name: text for m in measures(*Needs) for name, text in m.columns.items()}
    return measured | ATTACKED | _PLAIN
