"""The records of methods: complete, without torch, and each name written in one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fula_fast
from fula_fast.attacks import attacks
from fula_fast.errors import FulaError
from fula_fast.methods import METHODS, Method, method, methods, register, trained

PACKAGE = Path(fula_fast.__file__).parent
ELSEWHERE = {
    ("dm", "study/protocol.py"): "the start of a stitch that is its closed form",
    ("fula", "reproduce/recipe.py"): "a family of the papers' experiments",
}


@pytest.mark.parametrize("name", METHODS)
def test_records_are_complete(name):
    each = method(name)
    assert each.stitch and each.reads and each.careful and each.mark is not None
    assert each.trained == (name in trained()) == (name != "dm")
    assert (each.load() is not None) == (name in ("slm", "tlm"))


def test_the_papers_five_stand_in_their_order():
    assert [each.name for each in methods()][:5] == ["dm", "hint", "slm", "tlm", "fula"]


def test_marks_differ_in_colour_marker_and_dashes():
    marks = [method(name).mark for name in METHODS]
    for part in ("colour", "marker", "dashes"):
        assert len({getattr(mark, part) for mark in marks}) == len(METHODS)


@pytest.mark.parametrize(
    "name, terms, tail",
    [("hint", (1, 0, 0), False), ("fula", (1 / 3,) * 3, True), ("slm", None, True)],
)
def test_what_a_method_needs(name, terms, tail):
    each = method(name)
    found = each.terms and each.terms("uniform", 3)
    assert found == (terms and pytest.approx(terms)) and each.needs_tail == tail


def test_a_method_that_takes_logits_has_a_loss():
    with pytest.raises(FulaError, match="has no loss"):
        register(Method("odd", "Odd", "", "", "", end_logits=True))
    assert "odd" not in [each.name for each in methods()]


@pytest.mark.parametrize(
    "module", ["methods", "study.plan", "study.spec", "attacks.names", "measures.registry"]
)
def test_no_torch_for(module):
    code = f"import sys, fula_fast.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def literals(path: Path) -> set[str]:
    """The strings of a module that are whole expressions' parts, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


@pytest.mark.parametrize("name", [*METHODS, *(each.name for each in attacks())])
def test_a_name_is_a_string_in_one_file(name):
    found = {
        place
        for path in PACKAGE.rglob("*.py")
        if name in literals(path)
        and (name, place := path.relative_to(PACKAGE).as_posix()) not in ELSEWHERE
    }
    assert len(found) <= 1, found
    assert found <= {f"methods/{name}.py", "attacks/names.py"}
