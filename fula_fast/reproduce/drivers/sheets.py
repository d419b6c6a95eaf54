"""Figs. 7 and 12: contact sheets of the shortcuts, and what they give away, counted."""

from __future__ import annotations

import numpy as np

from ...pipelines import Shortcut, draw_markers
from ...pipelines.sheet import contact_sheet
from ..evidence import Row
from ..experiment import Experiment
from ..lab import Figure, Lab, Task

COLUMNS = {
    "patterns": "distinct markers, one of each class",
    "patterns_per_class": "distinct markers of a class, of the class with the most",
    "places": "distinct places of a class's marker, mean over classes",
    "fresh": "distinct markers by images",
}
"""What the columns of its rows mean that no other table has."""


def tasks(experiment: Experiment) -> list[Task]:
    """One task per shortcut."""
    return [Task(_file(text), {"shortcut": text}) for text in experiment.options["shortcuts"]]


def _file(shortcut: str) -> str:
    return shortcut.replace("+", "-")


def run(task: Task, lab: Lab) -> list[Row]:
    """Draw the sheet; count patterns, places per class, and whether markers repeat."""
    text = task.arguments["shortcut"]
    shortcut, source = Shortcut(*text.split("+")), lab.data("cifar10")
    columns = lab.experiment.options["columns"]
    contact_sheet(source, lab.plots / f"{task.key}.png", columns=columns, shortcut=shortcut)
    images = source.train
    markers = draw_markers(shortcut, images.labels, images.num_classes, images.image_shape, 0, 0)
    shown = markers.table[markers.index].reshape(len(images), -1)
    by_class = [images.labels == c for c in range(images.num_classes)]
    places = np.stack([markers.y, markers.x], 1)
    return [
        {
            "shortcut": text,
            "patterns": float(len(_distinct([shown[k][0] for k in by_class if k.any()]))),
            "patterns_per_class": float(max(len(_distinct(shown[k])) for k in by_class if k.any())),
            "places": float(np.mean([len(_distinct(places[k])) for k in by_class if k.any()])),
            "fresh": len(_distinct(shown)) / len(shown),
            "status": "ok",
        }
    ]


def _distinct(rows) -> np.ndarray:
    return np.unique(np.asarray(rows), axis=0)


def pictures(lab: Lab, rows: list[Row]) -> list[Figure]:
    """The sheets."""
    return [
        Figure(lab.plots / f"{_file(text)}.png", f"Training images with the shortcut {text}.")
        for text in lab.experiment.options["shortcuts"]
    ]
