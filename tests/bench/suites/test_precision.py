"""The precision bench's arithmetic on made-up accuracies."""

from __future__ import annotations

import pytest

from fula_fast.bench.suites.precision import compared, summary


def test_differences_stand_beside_the_spread_between_seeds():
    exact = {(1, "fula", 0): 0.80, (1, "fula", 1): 0.84, (9, "hint", 0): 0.9, (9, "hint", 1): 0.9}
    fast = {(1, "fula", 0): 0.81, (1, "fula", 1): 0.82, (9, "hint", 0): 0.9, (9, "hint", 1): 0.88}
    rows = compared({"bf16-compiled": fast, "fp32-eager": exact})
    fula, hint = rows
    assert (fula["site"], fula["method"]) == (1, "fula")
    assert fula["fp32"] == pytest.approx(0.82) and fula["bf16"] == pytest.approx(0.815)
    assert fula["largest_difference"] == pytest.approx(0.02)
    assert fula["mean_difference"] == pytest.approx(-0.005)
    assert fula["seed_deviation"] == pytest.approx(0.02)
    assert hint["seed_deviation"] == 0
    found = summary(rows)
    assert found["largest_difference"] == pytest.approx(0.02)
    assert found["bias"] == pytest.approx(-0.0075)
    assert found["mean_absolute_difference_of_means"] == pytest.approx(0.0075)
