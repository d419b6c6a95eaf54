"""The README's tables are those of the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from fula_fast.attacks import attacks
from fula_fast.measures import Needs, measures
from fula_fast.methods import METHODS, method

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    each = method(name)
    assert f"| `{name}` | {each.stitch} | {each.reads} | {each.careful} |" in README


@pytest.mark.parametrize("each", attacks(), ids=lambda a: a.name)
def test_attacks(each):
    row = f"| `{each.name}` | {each.reads} | {each.careful} | {each.gradients:,} |"
    assert row in README


@pytest.mark.parametrize("each", measures(), ids=lambda m: m.name)
def test_measures_of_donors(each):
    ends = f"{each.low:.4g} … {each.high:.4g} | {each.best:.4g}"
    assert f"| `{each.name}` | {ends} | {each.reads} | {each.careful} |" in README


@pytest.mark.parametrize("each", measures(Needs.SITES, Needs.STITCH), ids=lambda m: m.name)
def test_measures_of_stitched_models(each):
    columns = ", ".join(f"`{name}`" for name in each.columns)
    assert f"| `{each.name}` | {columns} | {each.reads} | {each.careful} |" in README
