"""Heads as a spec names them."""

import pytest

from fula_fast.errors import FulaError
from fula_fast.models.heads import FittedHead, HeadChoice, head_choice


@pytest.mark.parametrize(
    "text, kind, neighbours",
    [("linear-probe", "linear-probe", 0), ("none", "none", 0), ("knn=20", "knn", 20)],
)
def test_a_head_is_read_and_written(text, kind, neighbours):
    assert head_choice(text) == HeadChoice(kind, neighbours) and str(head_choice(text)) == text
    assert head_choice(text).fitted == (kind != "none")


@pytest.mark.parametrize(
    "text, said",
    [
        ("linear_probe", r"unknown head 'linear_probe'; did you mean 'linear-probe'\?"),
        ("knn", "head 'knn': K of knn=K must be a whole number from 1, as in knn=20"),
        ("knn=0", "whole number from 1"),
        ("knn=2.5", "whole number from 1"),
        ("", "unknown head ''"),
    ],
)
def test_another_text_is_refused(text, said):
    with pytest.raises(FulaError, match=said):
        head_choice(text)


def test_what_a_head_holds():
    assert (FittedHead(7, 3).weights, FittedHead(7, 3, 2, 50).weights) == (21, 350)
    assert FittedHead(7, 3, 2, 50).votes and not FittedHead(7, 3).votes
