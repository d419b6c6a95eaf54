"""A run beside a table of results: which cells meet, and Welch's interval against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.report import RunRows
from fula_fast.report.against import against, model_of, with_models
from fula_fast.study.donor_spec import DonorSpec

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


def test_cells_that_experiments_share_are_told_and_counted_once():
    again = [row | {"experiment": name} for name in ("fig8", "fig9") for row in THEIRS]
    (found,) = against(RunRows("mine", MINE), RunRows("theirs", THEIRS + again)).found
    assert found.group == "a → b, Hint | x → y (fig4 and 2 more, tiny, CIFAR-10)"
    assert found.adjusted == found.difference.p

    # of another experiment's cells the run has no more than those that are told already
    wider = [row | {"front_site": 7, "end_site": 7, "cell": row["cell"] + "w"} for row in again]
    (found,) = against(RunRows("mine", MINE), RunRows("theirs", THEIRS + again + wider)).found
    assert found.cells == 3

    other = [row | {"experiment": "fig5", "cell": row["cell"] + "v"} for row in THEIRS]
    both = against(RunRows("mine", MINE), RunRows("theirs", THEIRS + other)).found
    assert [each.group for each in both] == [
        f"a → b, Hint | x → y ({name}, tiny, CIFAR-10)" for name in ("fig4", "fig5")
    ]


def with_axis(rows: list[dict], values: list) -> list[dict]:
    return [
        row | {"dm_samples": value, "cell": f"{row['cell']}{value}", "accuracy": place / 10}
        for row in rows
        for place, value in enumerate(values)
    ]


def test_options_that_vary_keep_cells_apart_and_are_said():
    mine = RunRows("mine", with_axis(MINE, [20, "all"]), ("dm_samples",))
    table = RunRows("theirs", with_axis(THEIRS, ["all", "20", "500"]), ("dm_samples",))
    found = {each.group: each for each in against(mine, table).found}
    other = " | x → y (fig4, tiny, CIFAR-10)"
    few, every = (found.pop(f"a → b, Hint, dm_samples {n}{other}") for n in (20, "all"))
    assert not found
    assert [few.first, few.second, every.first, every.second] == pytest.approx([0, 0.1, 0.1, 0])


def test_an_option_that_only_the_table_varies_meets_no_run_that_leaves_it():
    table = RunRows("theirs", with_axis(THEIRS, ["20", "all"]), ("dm_samples",))
    with pytest.raises(FulaError, match="no cell of mine is like"):
        against(RunRows("mine", MINE), table)


def test_settings_that_vary_in_the_run_are_said():
    mine, table = ([r | {"alpha": a, "cell": f"{r['cell']}{a}"} for r in rows for a in (0.0, 1.0)]
                   for rows in (MINE, THEIRS))  # fmt: skip
    found = against(RunRows("mine", mine), RunRows("theirs", table)).found
    assert [each.group.split(" | ")[0] for each in found] == [
        "a → b, Hint, alpha 0.0", "a → b, Hint, alpha 1.0"
    ]  # fmt: skip


def test_a_shared_cell_meets_once_whatever_experiments_call_it_and_vary():
    """An experiment's axis tells its own rows apart; to the run it is the one cell with its id."""
    table = [row | {"front": "other", "experiment": "fig3"} for row in MINE]
    table = with_axis(table, ["20"]) + [row | {"dm_samples": "all"} for row in table] + MINE
    found = against(RunRows("mine", MINE), RunRows("theirs", table, ("dm_samples",))).found
    assert [(each.group, each.cells, each.seeds) for each in found] == [("a → b, Hint", 3, 3)]
    assert found[0].difference.mean == 0


def difference(ours: list[float], theirs: list[float]):
    """Of seeds with these accuracies, at one site."""
    sides = [
        [row | {"accuracy": values[row["seed"]]} for row in rows
         if row["end_site"] == 1 and row["seed"] < len(values)]
        for rows, values in ((MINE, ours), (THEIRS, theirs))
    ]  # fmt: skip
    (found,) = against(RunRows("mine", sides[0]), RunRows("theirs", sides[1])).found
    return found.difference


def test_a_side_without_spread_has_welchs_interval_still():
    theirs = [0.3, 0.5, 0.6, 0.65]
    found = difference([0.2, 0.2, 0.2], theirs)
    test = stats.ttest_1samp(theirs, 0.2)  # which is Welch's then
    low, high = test.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((0.2 - high, 0.2 - low, test.pvalue))


def test_seeds_that_differ_by_rounding_alone_have_no_interval():
    same = [0.3, 0.1 + 0.2, 0.3]
    found = difference(same, [0.7, 0.7])
    assert found.mean == pytest.approx(-0.4) and np.isnan([found.low, found.high, found.p]).all()
    found = difference(same, [0.7, 0.6])
    assert found.low < found.mean < found.high and 0 < found.p < 1


@pytest.mark.parametrize(
    "other",
    [
        {"alpha": 1.0}, {"protocol": "smith25"}, {"method": "tlm"}, {"end_model": "vgg16"},
        {"source": "cifar10"}, {"bn": "eval"},
    ],
)  # fmt: skip
def test_what_is_not_alike_does_not_meet(other):
    unlike = [row | other for row in THEIRS]
    with pytest.raises(FulaError, match="no cell of mine is like one of theirs"):
        against(RunRows("mine", MINE), RunRows("theirs", unlike))


def test_a_setting_that_one_side_writes_as_none_is_no_setting():
    unset = [row | {"shortcut": None, "weighting": None} for row in THEIRS]
    assert against(RunRows("mine", MINE), RunRows("theirs", unset)).found


def test_other_data_do_not_meet_and_both_are_named():
    mine, table = (
        [row | {"source": source} for row in rows]
        for rows, source in ((MINE, "digits"), (THEIRS, "cifar10"))
    )
    with pytest.raises(FulaError, match=r"the same data \(digits; there: cifar10\)"):
        against(RunRows("mine", mine), RunRows("theirs", table))
    with pytest.raises(FulaError, match=r"the same data \(digits; there: unknown\)"):
        against(RunRows("mine", mine), RunRows("theirs", THEIRS))
    same = [row | {"source": "digits"} for row in THEIRS]
    told = against(RunRows("mine", mine), RunRows("theirs", same)).told
    (left,) = [line for line in told if line.startswith("may still differ")]
    assert all(word in left for word in ("width", "epochs", "number of images", "training"))


def test_a_donor_is_named_by_what_it_is():
    assert model_of({"model": "resnet18", "width": 8}) == "resnet18"
    assert model_of({"model": "resnet18", "residuals": False, "adversarial": {"steps": 2}}) == (
        "resnet18, without residuals, adversarial"
    )


@pytest.mark.parametrize(
    "table, words",
    [
        ({"recipe": "simclr"}, "recipe simclr"),
        ({"shortcut": "pixel+class"}, "shortcut pixel+class"),
        ({"shortcut": {"pattern": "aruco", "location": "random", "size": 6}}, "shortcut aruco+random+size=6"),
        ({"head": "knn=5"}, "head knn=5"),
        ({"stem": "stock", "untrained": True}, "stem stock, untrained"),
        ({"data": {"source": "cifar10"}}, "data cifar10"),
        ({"data": {"source": "stylized", "options": {"base": "cifar10"}}}, "data stylized base cifar10"),
        ({"data": {"source": "digits"}, "epochs": 3, "lr": 0.1, "recipe": "fast", "stem": "lowres"}, ""),
    ],
)  # fmt: skip
def test_what_is_unusual_about_a_donors_training_is_said(table, words):
    """As a spec's donors are kept: whole, with every default."""
    donor = DonorSpec.model_validate({"model": "resnet18"} | table).model_dump()
    (row,) = with_models([{"front": "a", "end": "z", "source": "digits"}], {"a": donor})
    assert row["front_model"] == ", ".join(["resnet18", *filter(None, [words])])
    assert row["end_model"] == ""
