"""Streaming CKA against Gram matrices in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.measures.cka import LinearCKA, MinibatchCKA


def numpy_hsic(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    n, k, l = len(x), x @ x.T, y @ y.T
    if not unbiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ l @ h)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


def numpy_cka(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    both = numpy_hsic(x, x, unbiased) * numpy_hsic(y, y, unbiased)
    return numpy_hsic(x, y, unbiased) / np.sqrt(both)


def streamed(x: torch.Tensor, y: torch.Tensor, unbiased: bool, batch: int = 17) -> float:
    cka = LinearCKA(unbiased=unbiased)
    for start in range(0, len(x), batch):
        cka.add(x[start : start + batch], y[start : start + batch])
    return cka.result()


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, 2, 2, generator=generator, dtype=torch.float64) + 3
    mixed = x.flatten(1) @ torch.randn(20, 11, generator=generator, dtype=torch.float64)
    return x, mixed + 2 * torch.randn(60, 11, generator=generator, dtype=torch.float64) - 40


@pytest.mark.parametrize("unbiased", [False, True])
def test_against_gram_matrices(pair, unbiased: bool) -> None:
    x, y = pair
    # Centred first, which changes nothing in exact arithmetic: a mean would cost the oracle digits.
    sides = (side.flatten(1) for side in (x, y))
    expected = numpy_cka(*((side - side.mean(0)).numpy() for side in sides), unbiased)
    assert streamed(x, y, unbiased) == pytest.approx(expected, abs=1e-11)
    assert streamed(y, x, unbiased, batch=60) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("unbiased", [False, True])
def test_invariant_to_rotation_scale_and_shift(pair, unbiased: bool) -> None:
    x, _ = pair
    x = x.flatten(1)
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    assert streamed(x, 7 * x @ rotation - 2, unbiased) == pytest.approx(1, abs=1e-11)


def test_a_large_mean_does_not_cost_digits(pair) -> None:
    x, y = pair
    assert streamed(x + 1e5, y, True) == pytest.approx(streamed(x, y, True), abs=1e-8)


def test_independent_features_have_no_unbiased_cka_but_a_biased_one() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(200, 300, generator=generator) for _ in "xy")
    assert abs(streamed(x, y, True)) < 0.02
    assert streamed(x, y, False) > 0.5


def sites(pair):
    """Two sites each, of other widths, maps in both memory orders among them."""
    x, y = pair
    maps = x.flatten(1)[:, : x.flatten(1).shape[1] // 4 * 4].unflatten(1, (-1, 2, 2))
    return [x, maps.contiguous(memory_format=torch.channels_last)], [y, y.flatten(1)[:, :2]]


def test_one_minibatch_is_the_unbiased_cka_of_every_site_pair(pair) -> None:
    x, y = sites(pair)
    cka = MinibatchCKA()
    cka.add(x, y)
    expected = [[streamed(a, b, True) for b in y] for a in x]
    np.testing.assert_allclose(cka.result(), expected, atol=1e-11)


def test_minibatches_average_their_hsic(pair) -> None:
    x, y = ([s.flatten(1) for s in side] for side in sites(pair))
    cka, parts = MinibatchCKA(), [slice(0, 30), slice(30, 60)]
    for part in parts:
        cka.add([a[part] for a in x], iter([b[part] for b in y]))
    found = cka.result()
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            xy, xx, yy = (
                sum(numpy_hsic(c[p].numpy(), d[p].numpy(), True) for p in parts)
                for c, d in ((a, b), (a, a), (b, b))
            )
            assert float(found[i, j]) == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-11)


def test_minibatches_in_float32_and_bfloat16(pair) -> None:
    x, y = sites(pair)
    exact = MinibatchCKA()
    exact.add(x, y)
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        cka = MinibatchCKA()
        cka.add([a.to(dtype) for a in x], [b.to(dtype) for b in y])
        np.testing.assert_allclose(cka.result(), exact.result(), atol=near)


def test_minibatches_against_pytorch_cka(pair) -> None:
    package = pytest.importorskip("cka")
    x, y = ([s.flatten(1) for s in side] for side in sites(pair))
    cka = MinibatchCKA()
    cka.add(x, y)
    np.testing.assert_allclose(cka.result(), package.cka_from_features(x, y), atol=1e-9)


def test_too_few_samples() -> None:
    cka = LinearCKA()
    cka.add(torch.ones(3, 2), torch.ones(3, 2))
    assert np.isnan(cka.result())
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        MinibatchCKA().add([torch.ones(3, 2)], [torch.ones(3, 2)])
    with pytest.raises(ValueError, match="one batch"):
        MinibatchCKA().result()
