"""Measures of lanes and their end at every site against NumPy and `between` over all images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.measures import Needs, measure, measures
from fula_fast.measures.cka import LinearCKA
from fula_fast.measures.matrices import between
from fula_fast.measures.pooled import PooledTable

SAMPLES = [0, 1, 3, 4, 5, 8, 9, 10, 11, 12, 14, 15, 16, 19, 20, 21, 23]


def table(data, names, samples=SAMPLES) -> list[dict]:
    chosen = [measure(name) for name in names]
    found = PooledTable([1, 2], 2, torch.device("cpu"), chosen, samples)
    for part in data.batches():
        found.add(*part)
    return found.columns()


def numpy_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return np.sum((x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def numpy_r2(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return np.sum(fitted**2) / np.sum(y**2)


def numpy_nuclear(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    found = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return 2 - 2 * found / (np.linalg.norm(x) * np.linalg.norm(y))


WRITTEN = {"linear_cka": numpy_cka, "linear_r2": numpy_r2, "procrustes": numpy_nuclear}


def test_measures_of_moments_are_taken_at_every_site_from_the_lanes_own_on(data):
    for lane, columns in enumerate(table(data, tuple(WRITTEN))):
        for name, written in WRITTEN.items():
            wanted = [written(*data.means(lane, site)) for site in range(lane + 1, 3)]
            np.testing.assert_allclose(columns[name], wanted, atol=1e-10)


def test_unbiased_cka_from_the_lanes_own_site_on(data):
    """Against the stream of its own (`LinearCKA`)."""
    (columns, _) = table(data, ("unbiased_linear_cka",))
    for place, site in enumerate((1, 2)):
        whole = LinearCKA(unbiased=True)
        whole.add(*map(torch.from_numpy, data.means(0, site)))
        assert columns["unbiased_linear_cka"][place] == pytest.approx(whole.result(), abs=1e-10)


def test_measures_of_pairs_are_of_the_chosen_images_alone(data):
    """All that there are, against the same measure of the two matrices of these images."""
    names = tuple(each.name for each in measures(Needs.PAIRS))
    for lane, columns in enumerate(table(data, names)):
        for name in names:
            wanted = [
                between(name, *(torch.from_numpy(x[SAMPLES]) for x in data.means(lane, site)))
                for site in range(lane + 1, 3)
            ]
            np.testing.assert_allclose(columns[name], wanted, atol=1e-12)


def numpy_rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of the two sides' Euclidean distances between samples."""
    pairs = np.triu_indices(len(x), 1)
    distances = (np.linalg.norm(m[:, None] - m[None], axis=2)[pairs] for m in (x, y))
    return np.corrcoef(*distances)[0, 1]


def test_a_measure_of_pairs_written_out(data):
    (columns, _) = table(data, ("rsa_euclidean_pearson",))
    wanted = [numpy_rsa(*(x[SAMPLES] for x in data.means(0, site))) for site in (1, 2)]
    np.testing.assert_allclose(columns["rsa_euclidean_pearson"], wanted, atol=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lane_that_is_not_finite_has_no_measures_and_takes_none_from_the_others(data, value):
    names = ("linear_cka", "mutual_knn")
    before = table(data, names)
    data.lanes[1][0][2, 3, 0, 1, 1] = value  # lane 0 at site 2, one number of one image
    after = table(data, names)
    for name in names:
        assert after[0][name] == [before[0][name][0], None]
        assert after[1][name] == pytest.approx(before[1][name], abs=1e-12)


def test_too_few_images_for_a_measure_leave_its_column_empty(data):
    (columns, other) = table(data, ("cknna", "rbf_cka"), samples=[4, 7, 8])
    assert columns["cknna"] == [None, None] and other["cknna"] == [None]
    assert all(isinstance(value, float) for value in columns["rbf_cka"])
