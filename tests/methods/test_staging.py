"""Objectives one after another: epochs, borders, neighbours that are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fula_fast.errors import FulaError
from fula_fast.methods import TrainingStage
from fula_fast.methods.staging import joined, stage_at, starts, timed, united

A, B = {"hint": 1.0}, {"tlm": 1.0}


def asked(*epochs):
    return tuple(TrainingStage(A, None, e) for e in epochs)


@pytest.mark.parametrize(
    ("given_", "total", "found"),
    [
        ((15, 15), 30, (15, 15)),
        ((None, None), 30, (15, 15)),
        ((None, None, None), 11, (4, 4, 3)),
        ((None, 10, None), 30, (10, 10, 10)),
        ((3,), 3, (3,)),
    ],
)
def test_epochs_are_those_given_and_even_shares_of_the_rest(given_, total, found):
    assert tuple(s.epochs for s in timed(asked(*given_), total)) == found


@pytest.mark.parametrize(
    ("given_", "total", "text"),
    [
        ((15, 10), 30, "sum to 15 + 10 = 25, but epochs = 30"),
        ((20, 20), 30, "20 + 20 = 40"),
        ((30, None), 30, "sum to 30, and 1 more need one each, but epochs = 30"),
        ((None, None), 1, "has 2 stages, but epochs = 1"),
        ((None,), 0, "has 1 stages, but epochs = 0"),
    ],
)
def test_epochs_that_do_not_fit_are_refused(given_, total, text):
    with pytest.raises(FulaError, match="epochs") as error:
        timed(asked(*given_), total)
    assert text in str(error.value)


def test_neighbours_that_minimise_the_same_are_one():
    a, b = TrainingStage(A, None, 2), TrainingStage(B, None, 3)
    assert joined((a, a, b, a)) == (TrainingStage(A, None, 4), b, a)
    assert joined((a, a)) == (TrainingStage(A, None, 4),)
    other = TrainingStage(A, "last", 2)
    assert joined((a, other)) == (a, other)


def test_weights_together():
    assert united([{"fula": 1.0}, {"tlm": 2.0, "fula": 0.5}]) == {"fula": 1.5, "tlm": 2.0}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 20))
def test_a_step_belongs_to_the_stage_of_its_epoch(epochs, per_epoch):
    stages = tuple(TrainingStage({"hint": k + 1.0}, None, e) for k, e in enumerate(epochs))
    steps = sum(epochs) * per_epoch
    expected = [stage for stage in stages for _ in range(stage.epochs * per_epoch)]
    assert [stage_at(stages, step, steps) for step in range(steps)] == expected
    begun = starts(stages, steps)
    assert [expected[start] for start in begun] == list(stages)
