"""Permutation tests and Holm's correction against written-out formulas and packages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.measures.chance import against_chance, best_against_chance, family, holm, oriented
from fula_fast.measures.intervals import over_images
from fula_fast.measures.matrices import Sides, between
from fula_fast.measures.outputs import Outputs
from fula_fast.measures.registry import Needs, measure, measures
from fula_fast.measures.sampling import halves, orders, subset

OF_FEATURES = {m.name: {} for m in measures() if m.needs is not Needs.OUTPUTS}
OF_OUTPUTS = {m.name: {} for m in measures(Needs.OUTPUTS)}


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- indices


def test_orders_are_permutations_that_depend_on_seed_and_draw_alone() -> None:
    found = orders(30, 5, seed=3)
    assert found.shape == (5, 30)
    assert (np.sort(found, axis=1) == np.arange(30)).all()
    np.testing.assert_array_equal(orders(30, 9, seed=3)[:5], found)
    assert len({tuple(row) for row in found.tolist()}) == 5
    assert (orders(30, 5, seed=4) != found).any()


def test_subsets_and_halves_hold_each_sample_once() -> None:
    chosen = subset(1000, 100, seed=1)
    assert len(set(chosen.tolist())) == 100 and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(subset(50, 100), np.arange(50))
    found = halves(31, 400)
    assert found.shape == (400, 15) and (np.diff(found, axis=1) > 0).all()
    share = np.bincount(found.ravel(), minlength=31) / 400
    assert np.abs(share - 15 / 31).max() < 0.1


# --- scores under permutations


def test_nulls_are_the_measures_of_permuted_samples() -> None:
    x = [draw(0, 25, 4), draw(1, 25, 30)]
    y = [draw(2, 25, 3), draw(3, 25, 5), draw(4, 25, 40)]
    taken = torch.from_numpy(orders(25, 3))
    found = Sides(x, OF_FEATURES).against(Sides(y, OF_FEATURES), taken)
    for name in OF_FEATURES:
        assert found[name].shape == (3, 2, 3)
        for k, order in enumerate(taken):
            for i, a in enumerate(x):
                for j, b in enumerate(y):
                    expected = between(name, a, b[order])
                    assert found[name][k, i, j] == pytest.approx(expected, abs=1e-9), name


def test_nulls_of_outputs() -> None:
    labels = torch.arange(25) % 3
    a, b = (Outputs.of(draw(seed, 25, 3), labels) for seed in (0, 1))
    taken = torch.from_numpy(orders(25, 3))
    found = Sides([a], OF_OUTPUTS).against(Sides([b], OF_OUTPUTS), taken)
    for name in OF_OUTPUTS:
        for k, order in enumerate(taken):
            expected = between(name, a, b.ordered(order))
            assert found[name][k, 0, 0] == pytest.approx(expected, abs=1e-12)


def test_work_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = Sides([draw(0, 25, 4)], OF_FEATURES), Sides([draw(1, 25, 4)], OF_FEATURES)
    taken = torch.from_numpy(orders(25, 7))
    whole = x.against(y, taken)
    monkeypatch.setattr("fula_fast.measures.matrices.WORK_BYTES", 1)
    for name, values in x.against(y, taken).items():
        torch.testing.assert_close(values, whole[name], atol=1e-12, rtol=0)


def test_singular_values_that_do_not_converge_are_found_by_iteration(monkeypatch) -> None:
    """LAPACK's divide and conquer gave up on one of 99 permutations of a random network's layer."""
    choice = {name: {} for name in ("mean_cca", "svcca", "pwcca", "procrustes", "angular_shape")}
    x, y = Sides([draw(0, 25, 4)], choice), Sides([draw(1, 25, 7)], choice)
    taken = torch.from_numpy(orders(25, 5))
    whole, alone = x.against(y, taken), x.against(y)

    def fails(*arguments, **options):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr("torch.linalg.svd", fails)
    monkeypatch.setattr("torch.linalg.svdvals", fails)
    for expected, found in ((whole, x.against(y, taken)), (alone, x.against(y))):
        for name in choice:
            torch.testing.assert_close(found[name], expected[name], atol=1e-12, rtol=0)


def test_sides_of_other_measures_or_images_are_refused() -> None:
    x = Sides([draw(0, 25, 4)], {"linear_cka": {}})
    with pytest.raises(FulaError, match="prepared for other measures"):
        x.against(Sides([draw(0, 25, 4)], {"mean_cca": {}}))
    with pytest.raises(FulaError, match="25 and 24 samples"):
        x.against(Sides([draw(0, 24, 4)], {"linear_cka": {}}))
    with pytest.raises(FulaError, match=r"\[24, 25\] samples at the sites"):
        Sides([draw(0, 25, 4), draw(0, 24, 4)], {"linear_cka": {}})


# --- chance


def test_p_and_threshold_written_out() -> None:
    cka, null = measure("linear_cka"), np.arange(1, 20) / 100  # 0.01 ... 0.19
    found = against_chance(cka, 0.155, null, alpha=0.05)
    assert found.p == pytest.approx((1 + 4) / 20)  # 0.16 ... 0.19
    assert found.threshold == pytest.approx(0.18)  # the 19th of 20, the observed one included
    assert found.calibrated == 0
    found = against_chance(cka, 0.6, null, alpha=0.05)
    assert found.p == pytest.approx(1 / 20)
    assert found.threshold == pytest.approx(0.19)
    assert found.calibrated == pytest.approx((0.6 - 0.19) / (1 - 0.19))


def test_distances_are_tested_as_their_negatives() -> None:
    angle, null = measure("angular_shape"), 1 + np.arange(1, 20) / 100
    found = against_chance(angle, 0.5, null)
    assert found.p == pytest.approx(1 / 20)
    assert found.threshold == pytest.approx(1.01)
    assert found.calibrated == pytest.approx((1.01 - 0.5) / 1.01)
    assert against_chance(angle, 1.5, null).p == 1
    np.testing.assert_array_equal(oriented(angle, oriented(angle, null)), null)


@pytest.mark.parametrize("observed", [0.02, 0.06, 0.3])
def test_chance_against_calibrated_similarity(observed: float) -> None:
    package = pytest.importorskip("calibrated_similarity")
    x, z = draw(0, 60, 5), draw(1, 60, 5)
    y = observed * 10 * x + z
    taken = torch.from_numpy(orders(60, 40))
    draws = iter(taken)
    expected = package.calibrate(
        x, y, lambda a, b: between("linear_cka", a, b), K=40, perm_fn=lambda n, device: next(draws)
    )
    choice = {"linear_cka": {}}
    one, other = Sides([x], choice), Sides([y], choice)
    scores, null = one.against(other), one.against(other, taken)
    found = against_chance(measure("linear_cka"), scores["linear_cka"], null["linear_cka"])
    ours = [found.calibrated.item(), found.p.item(), found.threshold.item()]
    assert ours == pytest.approx([float(e) for e in expected], abs=1e-6)


def test_the_best_pair_against_calibrated_similarity() -> None:
    package = pytest.importorskip("calibrated_similarity")
    x, y = [draw(s, 40, 4) for s in (0, 1)], [draw(s, 40, 6) for s in (2, 3, 4)]
    y[1] = y[1] + draw(5, 40, 1) + x[0][:, :1]
    taken = torch.from_numpy(orders(40, 30))
    draws = iter(taken)
    expected = package.calibrate_layers(
        x, y, lambda a, b: between("linear_cka", a, b), K=30, perm_fn=lambda n, device: next(draws)
    )
    choice = {"linear_cka": {}}
    one, other = Sides(x, choice), Sides(y, choice)
    scores, null = one.against(other), one.against(other, taken)
    found = best_against_chance(measure("linear_cka"), scores["linear_cka"], null["linear_cka"])
    ours = [float(found.calibrated), float(found.p), float(found.threshold)]
    assert ours == pytest.approx([float(e) for e in expected], abs=1e-6)


def test_the_best_pair_of_distances_is_the_smallest() -> None:
    distances = np.array([[1.0, 0.2], [1.2, 0.9]])
    null = np.ones((19, 2, 2)) * np.linspace(0.5, 1.4, 19)[:, None, None]
    found = best_against_chance(measure("angular_shape"), distances, null)
    assert float(found.p) == pytest.approx(1 / 20)
    assert float(found.threshold) == pytest.approx(0.5)
    assert float(found.calibrated) == pytest.approx((0.5 - 0.2) / 0.5)


def test_nothing_is_above_chance_where_there_is_no_room() -> None:
    found = against_chance(measure("linear_cka"), np.array([1.0, 0.3]), np.ones((19, 2)))
    np.testing.assert_array_equal(found.calibrated, [0, 0])
    np.testing.assert_array_equal(found.p, [1, 1])
    with pytest.raises(FulaError, match="alpha 1.5"):
        against_chance(measure("linear_cka"), 0.1, np.ones(19), alpha=1.5)


def test_holm() -> None:
    p = np.array([[0.01, 0.04], [0.03, 0.005]])
    np.testing.assert_allclose(holm(p), [[0.03, 0.06], [0.06, 0.02]])
    package = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).uniform(size=50) ** 3
    np.testing.assert_allclose(holm(p), package.multipletests(p, method="holm")[1], rtol=1e-12)


def step_down(s: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Westfall & Young 1993, Algorithm 4.1, loop by loop."""
    both = np.concatenate([s[None], null])
    both = (both - both.mean(0)) / both.std(0)
    order = sorted(range(s.size), key=lambda c: -both[0, c])
    p, before = np.empty(s.size), 0.0
    for place, cell in enumerate(order):
        left = order[place:]
        reached = sum(max(row[c] for c in left) >= both[0, cell] - 1e-12 for row in both)
        p[cell] = before = max(before, reached / len(both))
    return p


def test_family_written_out() -> None:
    draws = np.random.default_rng(1)
    null = draws.normal(size=(39, 6)) * np.arange(1, 7) + np.arange(6)  # unlike chance levels
    s = np.array([0.2, 5.0, 2.5, 2.0, 40.0, 6.0])
    found = family(measure("unbiased_linear_cka"), s.reshape(2, 3), null.reshape(39, 2, 3))
    np.testing.assert_allclose(found.ravel(), step_down(s, null))
    assert found.min() == 1 / 40
    turned = family(measure("angular_shape"), -s.reshape(2, 3), -null.reshape(39, 2, 3))
    np.testing.assert_array_equal(turned, found)


def test_family_finds_what_holm_cannot() -> None:
    draws = np.random.default_rng(2)
    null, s = draws.normal(size=(200, 9, 9)), draws.normal(size=(9, 9))
    np.fill_diagonal(s, 12)
    cka = measure("unbiased_linear_cka")
    found = family(cka, s, null) <= 0.05
    assert found.diagonal().all() and found.sum() <= 10
    assert holm(against_chance(cka, s, null).p).min() > 0.05


def test_family_of_cells_that_never_change_is_one() -> None:
    null = np.random.default_rng(3).normal(size=(19, 2))
    found = family(measure("unbiased_linear_cka"), np.array([9.0, 0.3]),
                   np.stack([null[:, 0], np.full(19, 0.3)], 1))  # fmt: skip
    np.testing.assert_allclose(found, [1 / 20, 1])


def test_family_errs_in_one_matrix_of_twenty() -> None:
    """Under the null for all cells, which depend on each other: exact but for ties."""
    draws, wrong = np.random.default_rng(4), 0
    for _ in range(2000):
        shared = draws.normal(size=(20, 1))
        both = shared + draws.normal(size=(20, 12)) ** 3
        wrong += family(measure("unbiased_linear_cka"), both[0], both[1:]).min() <= 0.05
    assert stats.binom.cdf(wrong, 2000, 0.05) > 0.001
    assert stats.binom.sf(wrong, 2000, 0.05) > 0.001


# --- the guarantees, over many draws


KINDS = (Needs.MOMENTS, Needs.PAIRS, Needs.OUTPUTS)
PERMUTATIONS = 19  # p <= 0.05 has as exact a probability as with 199


def chances_of_error(kind: Needs, draws: int, samples: int) -> dict[str, np.ndarray]:
    """By measure, [alone, best of two pairs] x [how often p <= 0.05, how often it should be] of
    independent sides.

    By exchangeability the observed score is any of the observed and permuted ones with the same
    probability, so that p <= 0.05 has a probability given all of them: the share of them that have
    themselves and at most 0.05 (K + 1) - 1 others at or above. It is 0.05 but for ties.
    """
    choice = {m.name: {} for m in measures(kind)}
    found = {name: np.zeros((2, 2)) for name in choice}
    taken = torch.from_numpy(orders(samples, PERMUTATIONS))
    labels = torch.arange(samples) % 3
    for seed in range(draws):
        sites = [draw(3 * seed + k, samples, 3) for k in range(3)]
        if kind is Needs.OUTPUTS:
            sites = [Outputs.of(site, labels) for site in sites]
        x, y = Sides(sites[:1], choice), Sides(sites[1:], choice)
        scores, null = x.against(y), x.against(y, taken)
        for name in choice:
            record = measure(name)
            alone = against_chance(record, scores[name], null[name]).p[0, 0]
            best = best_against_chance(record, scores[name], null[name]).p
            both = oriented(record, torch.cat([scores[name][None], null[name]]))[:, 0]
            sizes = [size_given(both[:, 0]), size_given(both.max(1))]
            found[name] += np.array([[alone <= 0.05, best <= 0.05], sizes]).T
    return {name: counts / draws for name, counts in found.items()}


def size_given(scores: np.ndarray) -> float:
    """The share of scores that p <= 0.05 would hold for, if it were theirs."""
    at_or_above = (scores >= scores[:, None]).sum(1)
    return float((at_or_above / len(scores) <= 0.05).mean())


def check_errors(kind: Needs, draws: int, samples: int, within: float) -> None:
    found = chances_of_error(kind, draws, samples)
    print({name: rates.round(4).tolist() for name, rates in found.items()})
    for name, rates in found.items():
        seen, expected = rates.T
        assert np.abs(seen - expected).max() <= within, (name, rates)
        assert expected.max() <= 0.05 + 1e-9  # valid: ties only make it careful
        # of real scores it is exact; of counts (right answers, neighbours) ties cost some of it
        assert kind is Needs.OUTPUTS or not measure(name).settles or expected.min() > 0.0499, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_type_one_error(kind: Needs) -> None:
    """In fewer draws, four standard errors wide: an error of 0.1 would fail."""
    check_errors(kind, draws=300, samples=40, within=4 * math.sqrt(0.05 * 0.95 / 300))


DRAWS = 4000


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_type_one_error_within_a_hundredth(kind: Needs) -> None:
    """p <= 0.05 in 0.05 +- 0.01 of independent draws of 200 samples, each measure alone and the
    best of two pairs; where scores tie, in what their ties leave of 0.05, +- 0.01."""
    check_errors(kind, DRAWS, samples=200, within=0.01)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [(np.arange(20.0), 0.05), (np.r_[np.arange(19), 18.0], 0.0), (np.zeros(20), 0.0),
     (np.arange(40.0), 0.05), (np.r_[np.arange(39), 38.0], 0.05)],
)  # fmt: skip
def test_ties_make_p_careful_and_never_wrong(scores: np.ndarray, expected: float) -> None:
    """Of 20 scores only one may lie below 0.05, and none where the two largest tie."""
    assert size_given(scores) == pytest.approx(expected)
    record = measure("agreement_top1")
    below = [
        against_chance(record, s, np.delete(scores, i)).p <= 0.05 for i, s in enumerate(scores)
    ]
    assert np.mean(below) == pytest.approx(expected)


def population_r2(mix: torch.Tensor) -> float:
    """Of y = x M + e with x, e standard normal: ||M||^2 / (||M||^2 + q)."""
    return float(mix.square().sum() / (mix.square().sum() + mix.shape[1]))


def population_cka(mix: torch.Tensor) -> float:
    """||cov(x, y)||^2 / (||cov(x)|| ||cov(y)||) of the same model."""
    own = mix.T @ mix + torch.eye(mix.shape[1], dtype=mix.dtype)
    return float(mix.square().sum() / (mix.shape[0] ** 0.5 * own.norm()))


def coverage(trials: int, samples: int, half_samples: int) -> dict[str, float]:
    """How often 95 % intervals over images hold the population's value."""
    mix = torch.tensor([[1.0, 0.3], [0.2, -0.8], [0.0, 0.5]], dtype=torch.float64)
    truth = {
        "linear_r2": population_r2(mix),
        "linear_cka": population_cka(mix),
        "unbiased_linear_cka": population_cka(mix),
        "procrustes": None,
    }
    x = draw(10**6, 10**6, 3)
    y = x @ mix + draw(10**6 + 1, 10**6, 2)
    truth["procrustes"] = between("procrustes", x, y)
    choice = {name: {} for name in truth}
    taken = halves(samples, half_samples)
    held = dict.fromkeys(choice, 0)
    for seed in range(trials):
        x = draw(2 * seed, samples, 3)
        y = x @ mix + draw(2 * seed + 1, samples, 2)
        value = Sides([x], choice).against(Sides([y], choice))
        draws = [Sides([x[h]], choice).against(Sides([y[h]], choice)) for h in taken]
        for name in choice:
            found = over_images(measure(name), value[name][0, 0], [float(d[name]) for d in draws])
            held[name] += found.low <= truth[name] <= found.high
    print(held)
    return {name: count / trials for name, count in held.items()}


@pytest.mark.slow
def test_coverage_of_intervals_over_images() -> None:
    """In fewer trials: an interval that holds the truth in 0.8 of them would fail."""
    for name, rate in coverage(60, 100, 39).items():
        assert rate >= 0.85, (name, rate)


@pytest.mark.long
def test_coverage_of_intervals_over_images_within_two_hundredths() -> None:
    """0.95 +- 0.02 of 1,000 draws of 200 images."""
    for name, rate in coverage(1000, 200, 99).items():
        assert abs(rate - 0.95) <= 0.02, (name, rate)


def test_a_binomial_check_of_the_rates() -> None:
    """The bounds are 2.9 standard errors of the rates: the long tests can fail."""
    assert 0.01 / math.sqrt(0.05 * 0.95 / DRAWS) == pytest.approx(2.9, abs=0.01)
    assert 0.02 / math.sqrt(0.05 * 0.95 / 1000) == pytest.approx(2.9, abs=0.01)
    assert stats.binom.cdf(0.06 * DRAWS, DRAWS, 0.08) < 1e-5
