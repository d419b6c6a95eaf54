"""Workers that take the next wave when they are free."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fula_fast.study.schedule import corrected, schedule


def test_the_classic_example():
    """Graham's: 5 5 4 4 3 3 3 on three workers ends at 11, where 9 is possible."""
    found = schedule([5, 5, 4, 4, 3, 3, 3], 3)
    assert found.makespan == 11 and found.efficiency == pytest.approx(27 / 33)


@given(st.lists(st.floats(0.1, 10), min_size=1), st.integers(1, 9))
def test_it_is_between_the_bounds(costs, workers):
    found = schedule(costs, workers)
    least = max(max(costs), sum(costs) / workers)
    assert least <= found.makespan * (1 + 1e-9) <= (2 - 1 / workers) * least * (1 + 1e-8)
    assert sum(found.busy) == pytest.approx(sum(costs))
    assert found.efficiency <= 1 + 1e-9


def test_nothing_to_do_wastes_nothing():
    assert schedule([], 4).efficiency == 1.0


def test_finished_waves_correct_the_prediction_of_others_of_their_kind():
    """Two of kind a took 2 and 4 s per unit and a half-done one 3; of kind b none is finished."""
    costs, kinds = [10, 10, 20, 5, 8], ["a", "a", "a", "a", "b"]
    shares, seconds = [1, 1, 0.5, 0, 0], [20, 40, 30, 0, 0]
    assert corrected(costs, kinds, shares, seconds) == [30, 30, 60, 15, 24]


def test_one_that_was_disturbed_changes_little():
    costs, kinds = [1, 1, 1, 1], "aaaa"
    assert corrected(costs, kinds, [1, 1, 1, 0], [5, 5, 500, 0]) == [5, 5, 5, 5]


def test_nothing_finished_tells_nothing():
    assert corrected([1, 2], "ab", [0, 0], [0, 0]) is None
    assert corrected([1, 2], "ab", [1, 0], [0, 0]) is None  # imported rows without times


def _by_hand(costs, kinds, shares, seconds):
    """The definition written out, with NumPy's median."""
    known = [k for k in range(len(costs)) if shares[k] > 0 and seconds[k] > 0]
    if not known:
        return None
    rate = {k: seconds[k] / (costs[k] * shares[k]) for k in known}
    found = []
    for k in range(len(costs)):
        same = [rate[j] for j in known if kinds[j] == kinds[k]] or list(rate.values())
        found.append(costs[k] * np.median(same))
    return found


def test_it_is_the_median_of_its_kind():
    draw = random.Random(0)
    for _ in range(200):
        waves = range(draw.randint(1, 12))
        costs, seconds = ([draw.uniform(0.1, 10) for _ in waves] for _ in range(2))
        kinds, shares = draw.choices("abc", k=len(waves)), draw.choices([0, 0.5, 1], k=len(waves))
        expected = _by_hand(costs, kinds, shares, seconds)
        found = corrected(costs, kinds, shares, seconds)
        assert (found is None) == (expected is None)
        assert found is None or found == pytest.approx(expected)
