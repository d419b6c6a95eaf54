"""Activations as matrices, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fula_fast.errors import FulaError
from fula_fast.measures.features import as_matrix, rows_per_sample
from fula_fast.measures.registry import Features, measure
from fula_fast.measures.sampling import by_row

MAPS = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))


def test_maps() -> None:
    maps = MAPS.numpy()
    np.testing.assert_allclose(as_matrix(MAPS, "mean"), maps.mean((2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(as_matrix(MAPS, "flat"), maps.reshape(3, -1))
    rows = as_matrix(MAPS, "positions")
    assert rows.shape == (3 * 30, 4)
    np.testing.assert_array_equal(rows[30 + 2 * 6 + 5], maps[1, :, 2, 5])


def test_positions_are_resized_as_a_stitch_resizes() -> None:
    rows = as_matrix(MAPS, "positions", size=(3, 2))
    resized = F.interpolate(MAPS, size=(3, 2), mode="bilinear", align_corners=False)
    assert rows.shape == (3 * 6, 4)
    torch.testing.assert_close(rows[6 + 2 + 1], resized[1, :, 1, 1])
    assert rows_per_sample(MAPS, "positions", (3, 2)) == 6


def test_tokens() -> None:
    tokens = TOKENS.numpy()
    np.testing.assert_array_equal(as_matrix(TOKENS, "cls"), tokens[:, 0])
    np.testing.assert_allclose(as_matrix(TOKENS, "mean"), tokens.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(as_matrix(TOKENS, "all")[7 + 3], tokens[1, 3])


@pytest.mark.parametrize("features", ["mean", "flat", "positions"])
def test_rows_of_a_sample_of_maps(features: str) -> None:
    assert len(as_matrix(MAPS, features)) == 3 * rows_per_sample(MAPS, features)


@pytest.mark.parametrize("features", ["cls", "mean", "all"])
def test_rows_of_a_sample_of_tokens(features: str) -> None:
    per = rows_per_sample(TOKENS, features)
    rows = as_matrix(TOKENS, features)
    assert len(rows) == 3 * per
    order = by_row(np.array([2, 0, 1]), per)  # permuting images permutes their rows together
    torch.testing.assert_close(as_matrix(TOKENS[[2, 0, 1]], features), rows[order])


def test_vectors_stay() -> None:
    vectors = torch.randn(3, 4)
    assert as_matrix(vectors, "mean") is vectors


def test_defaults_are_valid() -> None:
    assert measure("linear_cka").map_features is Features.MEAN
    assert measure("linear_cka").token_features is Features.MEAN


@pytest.mark.parametrize(
    ("x", "features", "message"),
    [
        (MAPS, "cls", "'cls' of maps must be one of mean, flat, positions"),
        (TOKENS, "flat", "'flat' of tokens must be one of cls, mean, all"),
        (torch.ones(2), "mean", "neither maps nor tokens nor vectors"),
    ],
)
def test_unknown_features_are_refused(x: torch.Tensor, features: str, message: str) -> None:
    with pytest.raises(FulaError, match=message):
        as_matrix(x, features)
