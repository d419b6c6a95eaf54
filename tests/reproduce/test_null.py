"""Random networks that share nothing: scores against NumPy, and chance against its rate."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fula_fast.reproduce.drivers import null
from fula_fast.reproduce.lab import Task
from fula_fast.reproduce.recipe import load_recipe

SIZES = {"width": 6, "samples": 40, "layers": 2, "varied": "width", "seed": 3}


def lab(**options):
    usual = {"measures": ["linear_cka", "angular_shape"], "draws": 19, "repeats": 1}
    return SimpleNamespace(experiment=SimpleNamespace(options=usual | options))


def rows(**options):
    found = null.run(Task("t", SIZES), lab(**options))
    return {row["measure"]: row for row in found}


def test_raw_scores_are_the_measures_of_the_layers():
    first, second = ([x.numpy() for x in null._layers(SIZES, seed)] for seed in (6000, 6001))

    def cka(x, y):
        x, y = x - x.mean(0), y - y.mean(0)
        return np.sum((x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))

    expected = np.array([[cka(x, y) for y in second] for x in first])
    found = rows()["linear_cka"]
    assert found["raw"] == pytest.approx(expected.mean())
    assert found["raw_best"] == pytest.approx(expected.max())
    assert found["pairs"] == 4


def test_more_layers_are_the_same_ones_and_further_ones_of_the_same_chance():
    few, many = (null._layers(SIZES | {"layers": n, "samples": 200}, 5) for n in (2, 12))
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=False))
    effective = [torch.linalg.svdvals(x - x.mean(0)) for x in many]
    ranks = [float(v.sum().square() / v.square().sum()) for v in effective]
    assert min(ranks) > 0.7 * max(ranks)  # a chain of layers collapses: 0.2 at depth 12


def test_distances_change_their_sign():
    assert rows()["angular_shape"]["raw"] < 0


def test_chance_is_found_as_often_as_it_is_asked_for():
    found = rows(repeats=60, measures=["linear_cka"])["linear_cka"]
    assert found["above"] < 0.12 and found["best_above"] < 0.15
    assert found["calibrated"] < 0.02 < found["raw"]


def test_every_value_of_every_axis_is_a_task_with_the_first_values_of_the_others():
    recipe = load_recipe("null")
    options = recipe.options | {"seeds": [0]}
    found = null.tasks(SimpleNamespace(options=options))
    counts = [len(options[key]) for key in ("widths", "sample_counts", "depths")]
    assert len(found) == sum(counts) == len({task.key for task in found})
    layered = [t.arguments for t in found if t.arguments["varied"] == "layers"]
    assert {t["width"] for t in layered} == {options["widths"][0]}
    assert all(task.flops > 0 for task in found)
