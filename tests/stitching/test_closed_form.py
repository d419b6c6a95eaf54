"""The closed form, against NumPy's least squares and pseudo-inverse in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.errors import FulaError
from fula_fast.stitching.closed_form import Gram, cutoff, least_squares, paired_rows, solve


def spectrum(rows, values, seed=0):
    """x (rows, columns) such that [x 1] has roughly these singular values: orthogonal columns,
    each with mean zero, so that the column of ones is orthogonal to all."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(rows, len(values)))
    basis -= basis.mean(0)
    q, _ = np.linalg.qr(basis)
    turn, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return q * np.asarray(values) @ turn


def with_ones(x):
    return np.concatenate([x, np.ones((len(x), 1))], 1)


def by_pinv(x, y, rcond):
    solution = np.linalg.pinv(with_ones(x), rcond=rcond) @ y
    return solution[:-1].T, solution[-1]


def by_gram(x, y, rcond, parts=3):
    gram = Gram()
    for rows in np.array_split(np.arange(len(x)), parts):
        gram.add(torch.tensor(x[rows]), torch.tensor(y[rows]))
    return gram.solve(rcond)


def assert_form(form, weight, bias, tolerance=1e-9):
    np.testing.assert_allclose(form.weight, weight, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(form.bias, bias, rtol=tolerance, atol=tolerance)


PATHS = {
    "qr": lambda x, y, rcond: least_squares(torch.tensor(x), torch.tensor(y), rcond),
    "gram": by_gram,
}
both_paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@pytest.fixture
def system():
    rng = np.random.default_rng(1)
    return rng.normal(size=(200, 7)) + 0.3, rng.normal(size=(200, 4)) - 1


@both_paths
def test_full_rank_is_least_squares(system, path):
    x, y = system
    solution, *_ = np.linalg.lstsq(with_ones(x), y, rcond=None)
    form = path(x, y, 1e-6)
    assert_form(form, solution[:-1].T, solution[-1])
    assert (form.kept, form.directions) == (8, 8)


@both_paths
def test_a_known_map_is_found_again(path):
    rng = np.random.default_rng(2)
    x, weight, bias = rng.normal(size=(50, 5)), rng.normal(size=(3, 5)), rng.normal(size=3)
    assert_form(path(x, x @ weight.T + bias, 1e-6), weight, bias)


@both_paths
def test_rank_deficient_is_the_pseudo_inverse(system, path):
    x, y = system
    x = np.concatenate([x, x[:, :2] @ [[1.0, 2.0], [0.5, -1.0]]], 1)  # two dependent columns
    form = path(x, y, 1e-6)
    assert_form(form, *by_pinv(x, y, 1e-6), tolerance=1e-7)
    assert (form.kept, form.directions) == (8, 10)


@both_paths
def test_fewer_rows_than_columns(path):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 10)), rng.normal(size=(6, 2))
    form = path(x, y, 1e-6)
    assert_form(form, *by_pinv(x, y, 1e-6), tolerance=1e-7)
    assert form.kept == 6


@both_paths
def test_a_cut_off_inside_a_gap(path):
    """Six singular values: three above a cut-off of 1e-3, two far below it, and the ones' own."""
    x = spectrum(400, [30, 10, 4, 1e-4, 3e-5])
    y = np.random.default_rng(4).normal(size=(400, 3))
    form = path(x, y, 1e-3)
    assert_form(form, *by_pinv(x, y, 1e-3), tolerance=1e-8)
    assert (form.kept, form.directions) == (4, 6)
    whole = path(x, y, 1e-7)
    assert whole.kept == 6 and not np.allclose(whole.weight, form.weight)


def test_the_paths_agree_on_a_wide_spectrum_with_a_gap():
    x = spectrum(1000, np.r_[np.geomspace(100, 1, 12), np.geomspace(1e-5, 1e-6, 6)], seed=5)
    y = np.random.default_rng(6).normal(size=(1000, 8)) + x[:, :8]
    qr, gram = (path(x, y, 1e-4) for path in PATHS.values())
    assert qr.kept == gram.kept == 13
    assert_form(gram, qr.weight, qr.bias)


def test_only_qr_resolves_what_normal_equations_cannot():
    """Singular values down to 1e-9 of the largest: their squares drown in float64."""
    x = spectrum(300, [10, 1, 1e-7])
    truth = np.random.default_rng(7).normal(size=(2, 3))
    pairs = [(torch.tensor(x), torch.tensor(x @ truth.T + 2.0))]
    form = solve(pairs, 1e-12)
    assert form.kept == 4
    np.testing.assert_allclose(form.weight, truth, rtol=1e-4)
    np.testing.assert_allclose(form.bias, 2.0, rtol=1e-9)


def test_rows_are_positions_and_batches_do_not_matter():
    rng = np.random.default_rng(8)
    a, g = rng.normal(size=(6, 3, 4, 4)), rng.normal(size=(6, 2, 4, 4))
    rows = [t.transpose(0, 2, 3, 1).reshape(96, -1) for t in (a, g)]
    parts = [(torch.tensor(a[k : k + 2]), torch.tensor(g[k : k + 2])) for k in (0, 2, 4)]
    for rcond in (1e-6, 1e-9):
        assert_form(solve(parts, rcond), *by_pinv(*rows, 1e-9), tolerance=1e-9)


def test_wide_numbers_are_not_narrowed_to_their_partners():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((40, 3)).astype(np.float32), rng.standard_normal((40, 2))
    gram = Gram()
    gram.add(torch.from_numpy(x), torch.from_numpy(y))
    augmented = np.concatenate([x.astype(np.float64), np.ones((40, 1))], 1)
    np.testing.assert_allclose(gram.xx, augmented.T @ augmented, rtol=1e-13)
    np.testing.assert_allclose(gram.xy, augmented.T @ y, rtol=1e-13, atol=1e-13)


def test_tokens_and_vectors():
    rng = np.random.default_rng(9)
    a, g = rng.normal(size=(10, 5, 3)), rng.normal(size=(10, 5, 4))
    expected = by_pinv(a.reshape(50, 3), g.reshape(50, 4), 1e-9)
    assert_form(solve([(torch.tensor(a), torch.tensor(g))], 1e-6), *expected)
    a, g = rng.normal(size=(30, 3)), rng.normal(size=(30, 4))
    assert_form(solve([(torch.tensor(a), torch.tensor(g))], 1e-6), *by_pinv(a, g, 1e-9))


def test_the_front_is_resized_to_the_end():
    rng = np.random.default_rng(10)
    a, g = torch.tensor(rng.normal(size=(4, 3, 4, 4))), torch.tensor(rng.normal(size=(4, 2, 2, 2)))
    halved = a.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))  # bilinear by 2, no antialias
    x, y = paired_rows(a, g)
    torch.testing.assert_close(x, halved.permute(0, 2, 3, 1).reshape(16, 3))
    torch.testing.assert_close(y, g.permute(0, 2, 3, 1).reshape(16, 2))


def test_the_rule_of_the_float32_pseudo_inverse():
    assert cutoff("rows", 6400, streaming_all=False) == 6400 * 2.0**-23
    assert cutoff("rows", 10**9, streaming_all=True) == 1e-4
    assert cutoff(1e-5, 6400, streaming_all=True) == 1e-5
    x = spectrum(100, [1e3, 1.0, 1e-3])  # rule: 100 * 2**-23 = 1.2e-5 of 1e3
    y = np.random.default_rng(11).normal(size=(100, 2))
    form = solve([(torch.tensor(x), torch.tensor(y))], "rows")
    assert form.kept == 3
    assert_form(form, *by_pinv(x, y, 100 * 2.0**-23), tolerance=1e-6)


@pytest.mark.parametrize("rcond", [1e-4, 1e-9])
def test_activations_that_are_not_finite(rcond):
    a = torch.ones(3, 2, dtype=torch.float64)
    a[1, 1] = float("nan")
    with pytest.raises(FulaError, match="not finite"):
        solve([(a, torch.ones(3, 2, dtype=torch.float64))], rcond)


def test_what_has_no_closed_form():
    conv, token = torch.zeros(2, 3, 4, 4), torch.zeros(2, 16, 3)
    with pytest.raises(FulaError, match=r"one form, not \(3, 4, 4\) and \(16, 3\)"):
        solve([(conv, token)], 1e-4)
    with pytest.raises(FulaError, match="no samples"):
        solve([], 1e-4)
    with pytest.raises(FulaError, match="below 1e-07"):
        by_gram(np.ones((2, 2)), np.ones((2, 2)), 1e-9)
