"""What must hold of every registered measure: range, symmetry, invariances, order, never NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fula_fast.errors import FulaError
from fula_fast.measures.matrices import between
from fula_fast.measures.outputs import Outputs
from fula_fast.measures.registry import Invariance, Measure, Needs, measures

OF_FEATURES = [m for m in measures() if m.needs is not Needs.OUTPUTS]
OF_OUTPUTS = measures(Needs.OUTPUTS)


def ids(measure: Measure) -> str:
    return measure.name


def draw(seed: int, n: int, p: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, p, generator=generator, dtype=torch.float64)


def related(seed: int, n: int = 24, p: int = 5, q: int = 7) -> tuple[Tensor, Tensor]:
    x = draw(seed, n, p)
    return x + 3, x @ draw(seed + 1, p, q) + draw(seed + 2, n, q)


def models(seed: int, n: int = 30) -> tuple[Outputs, Outputs]:
    labels = torch.arange(n) % 4
    x, y = related(seed, n, 4, 4)
    return Outputs.of(x, labels), Outputs.of(y, labels)


def sides(measure: Measure, seed: int) -> tuple[Tensor, Tensor] | tuple[Outputs, Outputs]:
    return models(seed) if measure.needs is Needs.OUTPUTS else related(seed)


seeds = st.integers(0, 2**20)
every = pytest.mark.parametrize("measure", measures(), ids=ids)
of_features = pytest.mark.parametrize("measure", OF_FEATURES, ids=ids)
few = settings(max_examples=15, deadline=None, derandomize=True)


@every
@few
@given(seeds)
def test_range_and_self_similarity(measure: Measure, seed: int) -> None:
    x, y = sides(measure, seed)
    assert measure.low <= between(measure.name, x, y) <= measure.high
    for side in (x, y):
        assert between(measure.name, side, side) == pytest.approx(measure.best, abs=1e-6)


@every
def test_symmetric_exactly_where_it_says_so(measure: Measure) -> None:
    found = [sides(measure, seed) for seed in range(0, 60, 3)]
    gaps = [abs(between(measure.name, *s) - between(measure.name, *s[::-1])) for s in found]
    assert (max(gaps) < 1e-9) is measure.symmetric


@of_features
@few
@given(seeds)
def test_the_order_of_samples_is_irrelevant(measure: Measure, seed: int) -> None:
    x, y = related(seed)
    x[3], x[5] = x[8], x[8]  # with ties
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    found = between(measure.name, x[order], y[order])
    assert found == pytest.approx(between(measure.name, x, y), abs=1e-9)


def moved(x: Tensor, how: Invariance, seed: int) -> Tensor:
    if how is Invariance.SHIFT:
        return x + 10 * draw(seed, 1, x.shape[1])
    if how is Invariance.SCALE:
        return 7.3 * x
    mix = draw(seed, x.shape[1], x.shape[1])
    return x @ (torch.linalg.qr(mix)[0] if how is Invariance.ROTATION else mix)


@of_features
@pytest.mark.parametrize("how", list(Invariance))
def test_invariances(measure: Measure, how: Invariance) -> None:
    """Of both sides where the record says so, of at least one side never where it does not."""
    changes = {0: [], 1: []}
    for seed in range(0, 50, 5):
        for side in (0, 1):
            given_sides = list(related(seed, n=40))
            before = between(measure.name, *given_sides)
            given_sides[side] = moved(given_sides[side], how, seed + 3)
            changes[side].append(abs(between(measure.name, *given_sides) - before))
    worst = max(max(c) for c in changes.values())
    assert (worst < 1e-7) is (how in measure.invariances), worst


def awkward() -> dict[str, tuple[Tensor, Tensor]]:
    x, y = related(0, n=20)
    dead, twice = x.clone(), x.clone()
    dead[:, 1:3] = 0
    dead[:, 0] = 0.1
    twice[1:15] = twice[0]
    two = torch.zeros(20, 5, dtype=torch.float64)
    two[10:] = 0.1
    return {
        "dead channels": (dead, y),
        "constant": (torch.full((20, 5), 0.1, dtype=torch.float64), y),
        "both constant": (torch.full((20, 5), 0.1), torch.full((20, 3), 0.7)),
        "fewer images than features": (draw(1, 20, 300), draw(2, 20, 400)),
        "duplicated images": (twice, y),
        "all but two images equal": (two, two[:, :1]),
        "one feature": (x[:, :1], y[:, :1]),
        "a row of zeros": (torch.cat([x[:-1], torch.zeros(1, 5)]), y),
        "huge": (1e12 * x, 1e-12 * y),
        "far from zero": ((x + 1e6).float(), y),
        "as few samples as it takes": (draw(3, 11, 4), draw(4, 11, 4)),
    }


@of_features
@pytest.mark.parametrize("case", awkward())
def test_never_nan(measure: Measure, case: str) -> None:
    x, y = awkward()[case]
    for a, b in ((x, y), (y, x), (x, x), (y, y)):
        found = between(measure.name, a, b)
        assert measure.low <= found <= measure.high  # false for NaN


@of_features
def test_a_constant_side_shares_nothing(measure: Measure) -> None:
    x, y = awkward()["constant"]
    chance = {"mutual_knn": 10 / 19, "neighbourhood_jaccard": (100 / 19) / (20 - 100 / 19)}
    expected = chance.get(measure.name, measure.worst)
    assert between(measure.name, x, y) == pytest.approx(expected, abs=1e-12)


@of_features
def test_duplicated_images_in_both_keep_self_similarity(measure: Measure) -> None:
    x, _ = awkward()["duplicated images"]
    assert between(measure.name, x, x) == pytest.approx(measure.best, abs=1e-6)


@pytest.mark.parametrize("measure", OF_OUTPUTS, ids=ids)
def test_outputs_never_nan(measure: Measure) -> None:
    n = 12
    labels = torch.zeros(n, dtype=torch.long)  # one class, always right, always wrong
    sure = 1000 * torch.eye(3)[labels]
    wrong = 1000 * torch.eye(3)[labels + 1]
    one = torch.zeros(n, 1)
    for a, b in ((sure, sure), (sure, wrong), (wrong, wrong), (one, one), (sure[:1], wrong[:1])):
        found = between(measure.name, *(Outputs.of(m, labels[: len(m)]) for m in (a, b)))
        assert measure.low <= found <= measure.high


@of_features
def test_too_few_samples_are_refused(measure: Measure) -> None:
    for n in range(measure.least):
        with pytest.raises(FulaError, match=f"{n} sample"):
            between(measure.name, torch.ones(n, 3), torch.ones(n, 3))


def test_other_images_on_the_other_side_are_refused() -> None:
    with pytest.raises(FulaError, match="20 and 19 samples"):
        between("linear_cka", draw(0, 20, 3), draw(0, 19, 3))


def test_numbers_that_are_not_finite_are_refused() -> None:
    x = draw(0, 20, 3)
    x[4, 1] = math.nan
    for name in ("linear_cka", "rbf_cka", "mutual_knn", "cknna", "rsa_cosine_pearson"):
        with pytest.raises(FulaError, match="NaN or infinity"):
            between(name, x, draw(1, 20, 3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mutual_knn", {"k": 20}, "k 20 must lie in 1 ... 19"),
        ("mutual_knn", {"kk": 3}, "no option 'kk'; did you mean 'k'"),
        ("mutual_knn", {"distance": "manhattan"}, "unknown distance 'manhattan'"),
        ("linear_cka", {"k": 3}, "takes no options"),
        ("svcca", {"variance": 0.0}, "variance 0.0 must lie in"),
        ("rbf_cka", {"bandwidth": -1.0}, "bandwidth -1.0 must be above 0"),
        ("linear_r2", {"ridge": -1.0}, "ridge -1.0 must be at least 0"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(FulaError, match=message):
        between(name, draw(0, 20, 3), draw(1, 20, 3), **options)
