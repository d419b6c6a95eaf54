"""Similarity of random networks that share nothing: raw scores, and scores against chance.

Two networks of random weights see independent random inputs, so that nothing corresponds: every
similarity that a measure reports is chance. One of width, number of samples and number of layers
varies, the others stay (arXiv 2602.14486: raw scores grow with width, with few samples, and with
the number of layer pairs searched).

A network's layers stand side by side, each on the network's input. In a chain of random ReLU layers
representations collapse towards few directions, and chance falls with depth: mean linear CKA of
independent layers of width 16 on 128 samples is 0.065 at depth 1 and 0.015 at depth 8, so that more
layers would add ever less similar pairs, and the number of pairs could not be told from depth. Side
by side every pair has the same chance level; more layers are the same ones and further ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import not_none
from ...measures.chance import oriented
from ...measures.comparison import Draws, compare, judged
from ...measures.registry import measure
from ...report.style import look, save
from ...study.similarity_spec import LEVEL
from ..evidence import Evidence, Row
from ..experiment import Experiment
from ..lab import Figure, Lab, Task
from ..plots import draw
from ..recipe import PlotSpec

COLUMNS = {
    "varied": "which of width, samples and layers varies; the others are those of the first value",
    "width": "features of every layer of the random networks",
    "samples": "inputs of each network",
    "layers": "of each network",
    "pairs": "of layers, compared between both networks",
    "measure": "similarity measure",
    "raw": "mean score over layer pairs; of a distance with its sign changed",
    "raw_best": "the largest score of a layer pair",
    "calibrated": "mean score above chance: 0 at the permutations' quantile, 1 for the same",
    "above": "share of layer pairs above that quantile",
    "any_above": "how often any layer pair is above its own quantile",
    "best_above": "how often the best pair is above the quantile of the best of all pairs",
}
"""What the columns of its rows mean that no other table has."""

_VARIED = {"width": "widths", "samples": "sample_counts", "layers": "depths"}
"""What varies, and the option that lists its values."""


def tasks(experiment: Experiment) -> list[Task]:
    """One task per varied value and seed."""
    options = experiment.options
    return [
        Task(
            f"{name}-{value}-{seed}",
            _usual(options) | {name: value, "varied": name, "seed": seed},
            _flops(_usual(options) | {name: value}, options),
        )
        for name, key in _VARIED.items()
        for value in options[key]
        for seed in options["seeds"]
    ]


def _usual(options: Mapping[str, Any]) -> dict[str, int]:
    """The first value of each, which stays while another varies."""
    return {name: options[key][0] for name, key in _VARIED.items()}


def _flops(sizes: Mapping[str, int], options: Mapping[str, Any]) -> float:
    """Cross moments under every permutation, the least that a measure takes."""
    each = 2.0 * sizes["samples"] * sizes["width"] ** 2
    compared = sizes["layers"] ** 2 * options["draws"] * options["repeats"]
    return each * compared * len(options["measures"])


def run(task: Task, lab: Lab) -> list[Row]:
    """Every measure between pairs of random networks, means over `repeats` pairs."""
    sizes, options = task.arguments, lab.experiment.options
    found: dict[str, list[Row]] = {}
    for number in range(options["repeats"]):
        start = 2000 * sizes["seed"] + 2 * number
        first, second = (_layers(sizes, seed) for seed in (start, start + 1))
        draws = Draws.of(sizes["samples"], options["draws"], 0, seed=number)
        choice = {name: {} for name in options["measures"]}
        for name, row in _compared(first, second, choice, draws):
            found.setdefault(name, []).append(row)
    kept = {name: sizes[name] for name in ("varied", "width", "samples", "layers", "seed")}
    return [
        kept
        | {"measure": name, "pairs": sizes["layers"] ** 2, "status": "ok"}
        | {column: float(np.mean([row[column] for row in rows])) for column in rows[0]}
        for name, rows in found.items()
    ]


def _layers(sizes: Mapping[str, int], seed: int) -> list[Tensor]:
    """Activations of random layers (He's scale, ReLU) on a network's own random input."""
    generator, width = torch.Generator().manual_seed(seed), sizes["width"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(sizes["samples"], width)
    return [(x @ normal(width, width) * (2 / width) ** 0.5).relu() for _ in range(sizes["layers"])]


def _compared(
    first: list[Tensor], second: list[Tensor], choice: Mapping[str, Any], draws: Draws
) -> Iterator[tuple[str, Row]]:
    """Raw scores, larger for more similar, and what the permutations say of them."""
    for name, scores in compare(first, second, choice, draws).items():
        judgement = judged(measure(name), scores, LEVEL)
        similar = oriented(measure(name), scores.observed)
        chance, best = not_none(judgement.chance), not_none(judgement.best)
        yield (
            name,
            {
                "raw": similar.mean(),
                "raw_best": similar.max(),
                "calibrated": chance.calibrated.mean(),
                "above": (chance.p <= 1 - LEVEL).mean(),
                "any_above": float((chance.p <= 1 - LEVEL).any()),
                "best_above": float(best.p <= 1 - LEVEL),
            },
        )


_PLOTS = {
    f"null-{varied}": PlotSpec(
        kind="lines", x=varied, y=("raw", "raw_best", "calibrated", "above", "best_above"),
        line="measure", where={"varied": varied},
        caption=f"Random networks that share nothing, against {words}: the mean and the largest "
        "raw score over layer pairs (distances with their sign changed), the calibrated score, and "
        "how often chance is called similarity at 5 %: a layer pair by itself, and the best of all "
        "pairs against the best of every permutation.",
    )
    for varied, words in (
        ("width", "their width"), ("samples", "the number of samples"),
        ("layers", "the number of layers"),
    )
}  # fmt: skip


def pictures(lab: Lab, rows: list[Row]) -> list[Figure]:
    """Scores against width, samples and layers."""
    found = []
    for name, plot in _PLOTS.items():
        with look():
            drawn = draw(Evidence(tuple(rows)).where(plot.where), plot)
            path = save(drawn, lab.plots / f"{name}.svg") if drawn else None
        found += [Figure(path, plot.caption)] if path else []
    return found
