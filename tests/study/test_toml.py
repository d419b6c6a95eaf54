"""Texts that are no spec: one line each."""

from __future__ import annotations

import pytest

from fula_fast.errors import FulaError
from fula_fast.study.toml import fractions, parse_override, read_toml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = = 2", r"spec\.toml:2: not valid TOML"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "stand in each other too deeply"),
        (b"a = " + b"9" * 5000, "too many digits"),
    ],
)
def test_texts_that_are_no_spec(tmp_path, content, message):
    (tmp_path / "spec.toml").write_bytes(content)
    with pytest.raises(FulaError, match=message):
        read_toml(tmp_path / "spec.toml")


def test_places_that_hold_no_spec(tmp_path):
    for place, message in (
        (tmp_path, "is a folder; give the path of a spec file"),
        (tmp_path / ("n" * 300), "cannot read .*File name too long"),
        (tmp_path / "nowhere.toml", "no spec file .*quickstart"),
        ("a\0b", "is no path: it holds a null byte"),
    ):
        with pytest.raises(FulaError, match=message):
            read_toml(place)


def test_overrides_beyond_the_limits():
    with pytest.raises(FulaError, match="--set grid.sites: lists or tables"):
        parse_override("grid.sites=" + "[" * 5000)
    with pytest.raises(FulaError, match="--set protocol.epochs: a number has too many digits"):
        parse_override("protocol.epochs=" + "9" * 5000)


def test_a_fraction_of_zero():
    with pytest.raises(FulaError, match="eps = '8/0' divides by zero"):
        fractions({"eps": "8/0"})
