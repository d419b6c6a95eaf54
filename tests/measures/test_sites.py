"""Measures by site against NumPy over the whole data set at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.measures.registry import measure
from fula_fast.measures.sites import SiteTable, stitch_columns

NAMES = ("terms", "r2", "penultimate", "linear_cka")


def table(data, names=NAMES) -> list[dict]:
    found = SiteTable([1, 2], 2, torch.device("cpu"), names)
    for site, lanes, h, g, index in data.batches():
        found.target(site, g)
        found.add(site, lanes, h, g, index)
    return found.columns()


def expected(data, lane: int, site: int) -> tuple[float, float]:
    """term(l) = |h - g| / |g| over all images, and R^2 around the one global mean."""
    g, h = data[0][site - 1], data[1][site - 1][lane]
    residual = ((h - g) ** 2).mean()
    return np.linalg.norm(h - g) / np.linalg.norm(g), 1 - residual / g.var()


def r_squared_by_channel(data, lane: int, site: int) -> float:
    """R^2 around the mean of each channel over images and positions."""
    g, h = data[0][site - 1], data[1][site - 1][lane]
    means = g.mean((0, 1, 3, 4), keepdims=True)
    return 1 - ((h - g) ** 2).sum() / ((g - means) ** 2).sum()


@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 5)])
def test_features_of_vectors_and_tokens_are_their_last_axis(shape):
    """Features whose means differ by much: explained around the one mean, not around their own."""
    draw = np.random.default_rng(2)
    g = draw.normal(0, 1, shape) + 100.0 * np.arange(shape[-1])
    h = np.broadcast_to(100.0 * np.arange(shape[-1]), shape).copy()
    found = SiteTable([1], 1, torch.device("cpu"), ("r2",))
    found.target(1, torch.from_numpy(g))
    found.add(1, [0], torch.from_numpy(h), torch.from_numpy(g), torch.arange(7))
    (columns,) = found.columns()
    axes = tuple(range(len(shape) - 1))
    wanted = 1 - ((h - g) ** 2).sum() / ((g - g.mean(axes)) ** 2).sum()
    assert columns["r2_channel"] == pytest.approx([wanted], rel=1e-6)
    assert columns["r2"][0] > 0.999 and columns["r2_channel"][0] < 0.1


def test_terms_and_r_squared_from_the_lanes_own_site_to_the_last(data):
    first, second = table(data)
    wanted = [expected(data, 0, 1), expected(data, 0, 2)]
    np.testing.assert_allclose(first["terms"], [w[0] for w in wanted], rtol=1e-10)
    np.testing.assert_allclose(first["r2"], [w[1] for w in wanted], rtol=1e-10)
    assert first["term_stitch"] == first["terms"][0]
    assert first["penultimate"] == first["terms"][1]
    np.testing.assert_allclose(
        first["r2_channel"], [r_squared_by_channel(data, 0, site) for site in (1, 2)], rtol=1e-10
    )
    np.testing.assert_allclose(second["terms"], [expected(data, 1, 2)[0]], rtol=1e-10)
    assert second["r2"][0] < 0 < first["r2"][0] < 1  # worse than the mean, and better


def test_columns_are_those_of_the_records(data):
    wanted = {column for name in NAMES for column in measure(name).columns}
    assert all(set(c) == wanted | {"term_stitch"} for c in table(data))


def test_only_what_is_asked_for_is_a_column(data):
    assert [set(c) for c in table(data, ("r2",))] == [{"term_stitch", "r2", "r2_channel"}] * 2


def test_the_spectrum_of_a_stitch_is_a_column_where_asked_for():
    weight = torch.diag(torch.tensor([4.0, 2.0, 1e-5]))[..., None, None]
    found = stitch_columns({"weight": weight}, ("rank",))
    assert found["stitch_rank"] == 2
    assert found["stitch_condition"] == pytest.approx(4e5, rel=1e-4)
    assert stitch_columns({"weight": weight}, ()) == {}
