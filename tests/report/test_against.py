"""A run beside a table of results: which cells meet, and Welch's interval against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.report import RunRows
from fula_fast.report.against import against, model_of, with_models

from .conftest import make_row

DRAW = np.random.default_rng(7)
DONORS = {"a": {"model": "resnet18"}, "b": {"model": "resnet18"}}


def rows_of(front: str, end: str, seeds: int, start: int, **columns) -> list[dict]:
    rows = [
        make_row(
            start + 10 * site + seed, front=front, end=end, front_site=site, end_site=site,
            method="hint", seed=seed, accuracy=float(DRAW.uniform(0.3, 0.9)), **columns,
        )
        for site in (1, 2, 5)
        for seed in range(seeds)
    ]  # fmt: skip
    donors = {front: {"model": "resnet18"}, end: {"model": "resnet18"}}
    return with_models(rows, donors)


MINE = rows_of("a", "b", 3, 0)
THEIRS = [
    r | {"experiment": "fig4", "scale": "tiny", "data": "CIFAR-10"}
    for r in rows_of("x", "y", 4, 1000)
]


def test_cells_meet_by_architecture_and_the_interval_is_welchs():
    left_out = [row for row in THEIRS if row["end_site"] != 5]
    (found,) = against(RunRows("mine", MINE), RunRows("theirs", left_out)).found
    means = [
        [np.mean([r["accuracy"] for r in rows if r["seed"] == seed and r["end_site"] < 5]) for seed in range(n)]
        for rows, n in ((MINE, 3), (THEIRS, 4))
    ]  # fmt: skip
    test = stats.ttest_ind(*means, equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert (found.cells, found.seeds, found.measure) == (2, 3, "accuracy")
    got = found.difference
    assert (got.mean, got.low, got.high, got.p) == pytest.approx(
        (np.mean(means[0]) - np.mean(means[1]), low, high, test.pvalue)
    )
    assert found.group == "a → b, Hint | x → y (fig4, tiny, CIFAR-10)"


def test_the_same_cells_are_compared_in_pairs_and_no_others():
    more = rows_of("x", "y", 3, 5000)
    again = [row | {"accuracy": row["accuracy"] + 0.01 * row["seed"]} for row in MINE]
    (found,) = against(RunRows("mine", again), RunRows("theirs", MINE + more)).found
    assert found.seeds == 3 and found.difference.mean == pytest.approx(0.01)
    assert found.difference.p == pytest.approx(stats.ttest_1samp([0, 0.01, 0.02], 0).pvalue)


def test_one_seed_has_a_difference_and_no_interval():
    one = [row for row in MINE if row["seed"] == 0]
    (found,) = against(RunRows("mine", one), RunRows("theirs", THEIRS)).found
    assert found.seeds == 1 and np.isnan([found.difference.low, found.difference.p]).all()


@pytest.mark.parametrize(
    "other", [{"alpha": 1.0}, {"protocol": "smith25"}, {"method": "tlm"}, {"end_model": "vgg16"}]
)
def test_what_is_not_alike_does_not_meet(other):
    unlike = [row | other for row in THEIRS]
    with pytest.raises(FulaError, match="no cell of mine is like one of theirs"):
        against(RunRows("mine", MINE), RunRows("theirs", unlike))


def test_a_setting_that_one_side_writes_as_none_is_no_setting():
    unset = [row | {"shortcut": None, "weighting": None} for row in THEIRS]
    assert against(RunRows("mine", MINE), RunRows("theirs", unset)).found


def test_a_donor_is_named_by_what_it_is():
    assert model_of({"model": "resnet18", "width": 8}) == "resnet18"
    assert model_of({"model": "resnet18", "residuals": False, "adversarial": {"steps": 2}}) == (
        "resnet18, without residuals, adversarial"
    )
