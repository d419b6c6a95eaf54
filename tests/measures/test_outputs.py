"""Measures of outputs over a test set that comes in batches, against NumPy over all of it."""

from __future__ import annotations

import numpy as np
import torch

from fula_fast.measures import measure
from fula_fast.measures.outputs import OutputTable

NAMES = ("jensen_shannon", "disagreement", "kappa")


def table(lanes: np.ndarray, end: np.ndarray, names=NAMES) -> list[dict]:
    """Logits (L, N, C), (N, C) in batches of 7."""
    found = OutputTable(len(lanes), [measure(name) for name in names])
    for start in range(0, len(end), 7):
        part = slice(start, start + 7)
        labels = torch.zeros(len(end[part]), dtype=torch.int64)
        found.add(torch.from_numpy(lanes[:, part]), torch.from_numpy(end[part]), labels)
    return found.columns()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log2(p)).sum(-1)


def test_each_lane_against_the_end_over_all_images():
    draw = np.random.default_rng(0)
    lanes, end = draw.normal(0, 2, (3, 30, 4)), draw.normal(0, 2, (30, 4))
    for found, logits in zip(table(lanes, end), lanes, strict=True):
        p, q = softmax(logits), softmax(end)
        wanted = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
        np.testing.assert_allclose(found["jensen_shannon"], wanted.mean(), rtol=1e-12)
        assert found["disagreement"] == (logits.argmax(1) != end.argmax(1)).mean()
        assert "kappa" not in found  # which every tested model has


def test_a_lane_that_answers_nan_has_no_measures_and_takes_none_from_the_others():
    draw = np.random.default_rng(1)
    lanes, end = draw.normal(0, 2, (2, 20, 3)), draw.normal(0, 2, (20, 3))
    before = table(lanes, end)
    lanes[0, 11, 1] = np.nan
    assert table(lanes, end) == [{"jensen_shannon": None, "disagreement": None}, before[1]]


def test_nothing_is_kept_where_nothing_was_chosen():
    assert table(np.zeros((2, 9, 3)), np.zeros((9, 3)), ("kappa", "linear_cka")) == [{}, {}]
