"""Cells of one wave may differ in the attack behind robust accuracy, in its name and in its ball."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast import sweep
from fula_fast.attacks import robust_evaluate
from fula_fast.models import build
from fula_fast.pipelines import load_source

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient of exactly")  # tiny nets saturate

IMAGES = 12


def network(seed: int):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()


@pytest.fixture(scope="module")
def donors():
    return {"a": network(0), "b": network(1)}


def rows_of(donors, folder, axes, protocol):
    spec = {
        "data": {"source": "digits", "size": 8, "train_images": 200},
        "donors": {"a": {}, "b": {}},
        "grid": {
            "front": "a", "end": "b", "sites": [[3, 3]], "methods": ["dm"], "alpha": 0, "axes": axes,
        },
        "protocol": {"dm_stats": "stale", "dm_samples": 20, **protocol},
        "evaluation": {"robust_images": IMAGES},
        "engine": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    return sweep(spec, folder, models=donors, quiet=True).rows


def alone(model, attack, **options) -> float:
    test = load_source("digits", size=8, channels=3).test
    images = np.ascontiguousarray(test.images[:IMAGES])
    (found,) = robust_evaluate(model, images, test.labels[:IMAGES], attack, **options)
    return found.robust_accuracy


def test_donors_are_attacked_as_each_cell_says(donors, tmp_path, without_plots):
    rows = rows_of(donors, tmp_path / "r", {"robust": ["none", "pgd-1", "apgd20"]}, {})
    assert [row["robust_attack"] for row in rows] == [None, "pgd-1", "apgd20"]
    assert rows[0]["front_robust_accuracy"] is None and rows[0]["end_robust_accuracy"] is None
    for row in rows[1:]:
        for role, name in (("front", "a"), ("end", "b")):
            wanted = alone(donors[name], row["robust_attack"])
            assert row[f"{role}_robust_accuracy"] == wanted, (role, row["robust_attack"])


def test_cells_that_differ_in_the_ball_alone_are_two(donors, tmp_path, without_plots):
    """The radius changes robust accuracy, although no training batch is attacked."""
    balls = [{"eps": 1e-4, "step": 1e-4}, {"eps": 0.9, "step": 0.9}]
    rows = rows_of(donors, tmp_path / "r", {"attack": balls}, {"robust": "pgd-2"})
    assert [row["robust_eps"] for row in rows] == [1e-4, 0.9]
    for row, ball in zip(rows, balls, strict=True):
        assert row["end_robust_accuracy"] == alone(donors["b"], "pgd-2", **ball)
    settings = [{"steps": n, "random_start": True} for n in (3, 5)]  # of training, which has none
    merged = rows_of(donors, tmp_path / "s", {"attack": settings}, {"robust": "pgd-2"})
    assert len(merged) == 1
