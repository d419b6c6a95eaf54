"""Combined gradients: the loop of Yu et al. 2020 in NumPy, cell by cell."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fula_fast.engine.surgery import Surgery, projected, projection_orders


def written_out(grads: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Algorithm 1: grads (K, P), order (K, K - 1)."""
    total = np.zeros(grads.shape[1])
    for i in range(len(grads)):
        own = grads[i].copy()
        for j in order[i]:
            inner = sum(a * b for a, b in zip(own, grads[j], strict=True))
            if inner < 0:
                own = own - inner / sum(b * b for b in grads[j]) * grads[j]
        total += own
    return total


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_lane_combines_its_own(count):
    """A wave's form, on small matrices of inner products, and a cell's: as written out. The
    gradients of one lane conflict, those of one agree, one has a zero, one is not a number."""
    rng = np.random.default_rng(count)
    lanes, each = 4, 6
    grads = rng.normal(size=(count, lanes, each))
    grads[0, 0] = 0.3 * grads[0, 0] - grads[1, 0]
    grads[:, 1] = np.abs(grads[:, 1])
    grads[1, 2] = 0
    grads[0, 3] = np.nan
    flat = torch.from_numpy(grads.reshape(count, -1))
    bank = SimpleNamespace(
        flat=flat[0],
        lane_of=torch.arange(lanes).repeat_interleave(each),
        parts=lambda: [(torch.arange(lanes), slice(0, lanes * each))],
    )
    lane = SimpleNamespace(cell=SimpleNamespace(data_seed=3), parts=range(count))
    optimiser = SimpleNamespace(grad=torch.zeros(lanes * each).double(), done=torch.tensor(2))
    surgery = Surgery(bank, [[lane] * lanes], 4)
    buffers = surgery.buffers(count, optimiser)
    surgery.combine(buffers.copy_(flat), optimiser)
    order = projection_orders(3, 4, count)[2]
    found = optimiser.grad.view(lanes, each).numpy()
    for n in range(3):
        expected = written_out(grads[:, n], order)
        np.testing.assert_allclose(found[n], expected, rtol=1e-12, atol=1e-13)
        alone = projected(torch.from_numpy(grads[:, n].copy()), order)
        np.testing.assert_allclose(alone.numpy(), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found[1], grads[:, 1].sum(0))
    assert np.isnan(found[3]).all() and not np.isclose(found[0], grads[:, 0].sum(0)).all()


def test_orders_are_keyed_and_keep_among_fewer_parts():
    whole, few = projection_orders(7, 50, 4), projection_orders(7, 50, 3)
    assert whole.shape == (50, 4, 3)
    for i in range(4):
        assert (np.sort(whole[:, i]) == [j for j in range(4) if j != i]).all()
    for i in range(3):
        kept = np.array([[j for j in row if j < 3] for row in whole[:, i]])
        assert (kept == few[:, i]).all()
    assert (projection_orders(7, 20, 4) == whole[:20]).all()
    assert (projection_orders(8, 50, 4) != whole).any()
    firsts = np.bincount(projection_orders(1, 3000, 3)[:, 0, 0], minlength=3)
    assert firsts[0] == 0 and abs(firsts[1] - 1500) < 150
