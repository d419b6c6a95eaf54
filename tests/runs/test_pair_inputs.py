"""What batches are made to, and what is left for each donor of a pair."""

from __future__ import annotations

import pytest

from fula_fast.errors import FulaError
from fula_fast.pipelines import Frame, Input, Normalisation
from fula_fast.runs.pair_inputs import PairInputs, pair_inputs

GRAY, OTHER = Normalisation((0.5,) * 3, (0.25,) * 3), Normalisation((0.4,) * 3, (0.2,) * 3)
SMALL = Input(Frame(8), GRAY)
LARGE = Input(Frame(12, 16, "bicubic"), GRAY)
OWN = (OTHER, OTHER)


def test_what_both_take_is_made_once_in_the_batches():
    made = PairInputs((GRAY, GRAY), Frame(8), Input(), Input())
    assert pair_inputs([SMALL, SMALL], [False, False], OWN, plain=False) == made
    assert pair_inputs([SMALL, SMALL], [False, True], OWN, plain=False) == made


def test_the_datas_own_normalisation_may_differ_between_training_and_test():
    own = GRAY, OTHER
    found = pair_inputs([SMALL, SMALL], [True, True], own, plain=False)
    assert found == PairInputs(own, Frame(8), Input(), Input())


def test_donors_that_differ_prepare_their_images_themselves():
    found = pair_inputs([SMALL, LARGE], [True, False], OWN, plain=False)
    assert found == PairInputs((None, None), None, SMALL, LARGE)


def test_an_attack_needs_plain_pixels():
    found = pair_inputs([SMALL, SMALL], [False, False], OWN, plain=True)
    assert found == PairInputs((None, None), None, SMALL, SMALL)
    nothing = pair_inputs([Input(), Input()], [False, False], (None, None), plain=True)
    assert nothing == PairInputs((None, None), None, Input(), Input())


def test_one_donor_cannot_have_two_normalisations():
    with pytest.raises(FulaError, match="published with different normalisations"):
        pair_inputs([SMALL, LARGE], [True, False], (GRAY, OTHER), plain=False)
