"""Ranks and condition numbers against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.measures import rank
from fula_fast.measures.rank import ActivationRank, chosen_features, stitch_spectrum


def low_rank(samples: int, features: int, directions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(directions)
    left = torch.randn(samples, directions, generator=generator)
    return left @ torch.randn(directions, features, generator=generator) + 4


@pytest.mark.parametrize("directions", [1, 5, 12])
def test_rank_of_a_stream(directions: int) -> None:
    rows = low_rank(90, 12, directions).view(90, 3, 2, 2)
    stream = ActivationRank(12)
    for part in rows.split(25):
        stream.add(part)
    covariance = np.cov(rows.flatten(1).double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(stream.covariance(), covariance, atol=1e-10)
    singular = np.linalg.svd(covariance, compute_uv=False)
    assert stream.result() == (singular > 1e-3 * singular[0]).sum()
    assert stream.result() == directions or directions == 12


def test_the_threshold_is_on_the_covariance_not_the_activations() -> None:
    scales = torch.tensor([1.0, 0.1, 0.02])  # variances 1, 1e-2, 4e-4
    generator = torch.Generator().manual_seed(0)
    stream = ActivationRank(3)
    stream.add(torch.randn(2000, 3, generator=generator) * scales)
    assert stream.result() == 2


def test_constant_activations_have_rank_zero() -> None:
    stream = ActivationRank(4)
    stream.add(torch.full((9, 4), 2.5))
    assert stream.result() == 0


def test_many_features_are_thinned_by_a_seeded_draw(monkeypatch) -> None:
    monkeypatch.setattr(rank, "MOST_FEATURES", 6)
    first, again, other = (chosen_features(40, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first) == 6 and (first.diff() > 0).all() and first.max() < 40
    rows = low_rank(50, 40, 3)
    stream = ActivationRank(40, seed=1)
    stream.add(rows)
    covariance = np.cov(rows[:, first].double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(stream.covariance(), covariance, atol=1e-9)
    assert stream.result() == 3


def test_a_batch_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 features, got 5"):
        ActivationRank(4).add(torch.zeros(2, 5))


def test_stitches_of_all_lanes() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(6, 4, generator=generator)
    thin = full[:, :2] @ torch.randn(2, 4, generator=generator)
    lanes = torch.stack([full, thin])
    ranks, conditions = stitch_spectrum(lanes)
    assert ranks.tolist() == [4, 2]
    assert conditions[0].item() == pytest.approx(np.linalg.cond(full.double().numpy()), rel=1e-9)
    assert conditions[1] > 1e6
    assert torch.equal(stitch_spectrum(lanes[..., None, None])[0], ranks)
    assert stitch_spectrum(torch.zeros(2, 2))[0] == 0
