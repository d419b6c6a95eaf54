"""Measures by site against NumPy over the whole data set at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.measures.cka import LinearCKA
from fula_fast.measures.sites import SiteTable, pooled, stitch_columns

SHAPES = [(3, 4, 4), (5, 2, 2)]
NAMES = ("terms", "r2", "penultimate", "cka", "cka_unbiased")
BATCHES, SIZE = 4, 6


@pytest.fixture
def data():
    """Per site: the end's own activations, and those of lanes 0 and 1; lane 1 joins at site 2."""
    draw = np.random.default_rng(0)
    targets = [draw.normal(2, 1, (BATCHES, SIZE, *shape)) for shape in SHAPES]
    stitched = [[t + draw.normal(0, s, t.shape) for s in (0.3, 2.0)] for t in targets]
    return targets, stitched


def table(data, names=NAMES) -> list[dict]:
    targets, stitched = data
    found = SiteTable([1, 2], 2, torch.device("cpu"), names)
    for batch in range(BATCHES):
        for site, lanes in ((1, [0]), (2, [0, 1])):
            g = torch.from_numpy(targets[site - 1][batch])
            h = np.concatenate([stitched[site - 1][lane][batch] for lane in lanes])
            found.target(site, g)
            found.add(site, lanes, torch.from_numpy(h), g)
    return found.columns()


def expected(data, lane: int, site: int) -> tuple[float, float]:
    """term(l) = |h - g| / |g| over all images, and R^2 around the one global mean."""
    g, h = data[0][site - 1], data[1][site - 1][lane]
    residual = ((h - g) ** 2).mean()
    return np.linalg.norm(h - g) / np.linalg.norm(g), 1 - residual / g.var()


def test_terms_and_r_squared_from_the_lanes_own_site_to_the_last(data):
    first, second = table(data)
    wanted = [expected(data, 0, 1), expected(data, 0, 2)]
    np.testing.assert_allclose(first["terms"], [w[0] for w in wanted], rtol=1e-10)
    np.testing.assert_allclose(first["r2"], [w[1] for w in wanted], rtol=1e-10)
    assert first["term_stitch"] == first["terms"][0]
    assert first["penultimate"] == first["terms"][1]
    np.testing.assert_allclose(second["terms"], [expected(data, 1, 2)[0]], rtol=1e-10)
    assert second["r2"][0] < 0 < first["r2"][0] < 1  # worse than the mean, and better


@pytest.mark.parametrize("name", ["cka", "cka_unbiased"])
def test_cka_is_that_of_the_last_sites_mean_over_positions(data, name):
    for lane, columns in enumerate(table(data)):
        whole = LinearCKA(unbiased=name == "cka_unbiased")
        h, g = (x.reshape(-1, *SHAPES[1]).mean((2, 3)) for x in (data[1][1][lane], data[0][1]))
        whole.add(torch.from_numpy(h), torch.from_numpy(g))
        assert columns[name] == pytest.approx(whole.result(), abs=1e-10)


def test_only_what_is_asked_for_is_a_column(data):
    assert [set(c) for c in table(data, ("r2",))] == [{"term_stitch", "r2"}] * 2


@pytest.mark.parametrize("shape, axes", [((2, 3, 4, 4), (2, 3)), ((2, 5, 3), (1,)), ((2, 3), ())])
def test_maps_and_tokens_count_as_their_mean_over_positions(shape, axes):
    x = np.random.default_rng(1).normal(size=shape)
    wanted = x.mean(axes) if axes else x
    np.testing.assert_allclose(pooled(torch.from_numpy(x)), wanted, rtol=1e-12)


def test_the_spectrum_of_a_stitch_is_a_column_where_asked_for():
    weight = torch.diag(torch.tensor([4.0, 2.0, 1e-5]))[..., None, None]
    found = stitch_columns({"weight": weight}, ("rank",))
    assert found["stitch_rank"] == 2
    assert found["stitch_condition"] == pytest.approx(4e5, rel=1e-4)
    assert stitch_columns({"weight": weight}, ()) == {}
