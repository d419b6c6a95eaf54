"""Workers that take the next wave when they are free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fula_fast.study.schedule import schedule


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
