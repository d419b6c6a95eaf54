"""What is made once for a pair of donors, and what each of them does itself."""

import pytest

from fula_fast.errors import FulaError
from fula_fast.pipelines import Frame, Input, Normalisation
from fula_fast.runs.pair_inputs import PairInputs, pair_inputs

HALF, OTHER = (Normalisation((m,), (0.5,)) for m in (0.5, 0.25))
PLAIN = Input()


@pytest.mark.parametrize("plain", [False, True])
def test_pixels_as_they_are_stay_so(plain):
    found = pair_inputs([PLAIN, PLAIN], [True, True], (None, None), plain=plain)
    assert found == PairInputs((None, None), None, PLAIN, PLAIN)


def test_equal_inputs_are_made_in_the_batches():
    given = Input(Frame(8, 9), HALF)
    found = pair_inputs([given, given], [False, False], (None, None), plain=False)
    assert found == PairInputs((HALF, HALF), Frame(8, 9), PLAIN, PLAIN)


def test_an_attack_moves_pixels_before_them():
    given = Input(Frame(8, 9), HALF)
    found = pair_inputs([given, given], [False, False], (None, None), plain=True)
    assert found == PairInputs((None, None), None, given, given)


def test_published_moments_may_differ_from_training_to_tests():
    """Colour MNIST and its bw variant: each set has its own."""
    own = Input(None, HALF)
    found = pair_inputs([own, own], [True, True], (OTHER, HALF), plain=False)
    assert found.moments == (OTHER, HALF)
    stated = pair_inputs([own, own], [False, True], (OTHER, HALF), plain=False)
    assert stated.moments == (HALF, HALF)


@pytest.mark.parametrize("plain", [False, True])
def test_but_no_donor_can_follow_them(plain):
    inputs = [Input(Frame(8), HALF), Input(None, HALF)]
    with pytest.raises(FulaError, match="published with different normalisations"):
        pair_inputs(inputs, [True, True], (OTHER, HALF), plain=plain)
    same = pair_inputs(inputs, [True, True], (HALF, HALF), plain=plain)
    assert same == PairInputs((None, None), None, *inputs)
