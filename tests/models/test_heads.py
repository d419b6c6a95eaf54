"""Heads as a spec names them."""

import pytest

from fula_fast.errors import FulaError
from fula_fast.models.heads import FittedHead, HeadChoice, check_room, fitting_bytes, head_choice


@pytest.mark.parametrize(
    "text, kind, neighbours, images",
    [
        ("linear-probe", "linear-probe", 0, 0),
        ("linear-probe of 500", "linear-probe", 0, 500),
        ("none", "none", 0, 0),
        ("knn=20", "knn", 20, 0),
        ("knn=20 of 7000", "knn", 20, 7000),
    ],
)
def test_a_head_is_read_and_written(text, kind, neighbours, images):
    found = head_choice(text)
    assert found == HeadChoice(kind, neighbours, images) and str(found) == text
    assert head_choice(text).fitted == (kind != "none")


@pytest.mark.parametrize(
    "text, said",
    [
        ("linear_probe", r"unknown head 'linear_probe'; did you mean 'linear-probe'\?"),
        ("knn", "head 'knn': K of knn=K must be a whole number from 1, as in knn=20"),
        ("knn=0", "whole number from 1"),
        ("knn=2.5", "whole number from 1"),
        ("", "unknown head ''"),
        ("knn=20 of", "unknown head|whole number from 1"),
        (
            "knn=20 of all",
            "N of a head 'of N' must be a whole number from 1, as in knn=20 of 50000",
        ),
        ("none of 20", "unknown head 'none of 20'"),
    ],
)
def test_another_text_is_refused(text, said):
    with pytest.raises(FulaError, match=said):
        head_choice(text)


def test_what_a_head_holds():
    assert (FittedHead(7, 3).weights, FittedHead(7, 3, 2, 50).weights) == (21, 350)
    assert FittedHead(7, 3, 2, 50).votes and not FittedHead(7, 3).votes


GIB = 2**30


def test_what_fitting_takes_at_the_size_of_imagenet():
    """1.3 million images: 512 features in float32 are 2.5 GiB, 2048 are 9.9 GiB."""
    probe, votes = head_choice("linear-probe"), head_choice("knn=20")
    assert fitting_bytes(probe, 512, 1_300_000) == 4 * 512 * 1_300_000
    assert fitting_bytes(votes, 512, 1_300_000) == 2 * 4 * 512 * 1_300_000
    assert fitting_bytes(head_choice("linear-probe of 1000"), 512, 1_300_000) == 4 * 512 * 1000
    check_room(probe, 512, 1_300_000, 8 * GIB)
    with pytest.raises(FulaError, match="2048 features of 1,300,000 images, 9.92 GiB, but 8 GiB"):
        check_room(probe, 2048, 1_300_000, 8 * GIB)


@pytest.mark.parametrize("text", ["linear-probe", "knn=20", "knn=20 of 900000"])
def test_what_a_refusal_proposes_fits(text):
    choice = head_choice(text)
    with pytest.raises(FulaError) as caught:
        check_room(choice, 2048, 1_300_000, 4 * GIB)
    proposed = str(caught.value).rpartition("head = '")[2].partition("'")[0]
    check_room(head_choice(proposed), 2048, 1_300_000, 4 * GIB)
    assert fitting_bytes(head_choice(proposed), 2048, 1_300_000) > 3.9 * GIB
