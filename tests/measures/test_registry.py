"""The records of measures: complete, checked, and readable without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fula_fast.errors import FulaError
from fula_fast.measures import registry
from fula_fast.measures.registry import Measure, Needs, measure, measures, register

FIELDS = {
    "label": "mine",
    "needs": Needs.MOMENTS,
    "function": "operator:neg",
    "low": 0.0,
    "high": 1.0,
    "best": 1.0,
    "reads": "r",
    "careful": "c",
    "source": "s",
}


@pytest.fixture
def own():
    yield "own_measure"
    registry._MEASURES.pop("own_measure", None)


def test_reading_the_records_imports_no_torch() -> None:
    code = (
        "import sys; from fula_fast.measures.registry import measures; from fula_fast.measures "
        "import moment_memory; assert len(measures()) > 20; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("record", measures(), ids=lambda m: m.name)
def test_records_are_complete(record: Measure) -> None:
    assert callable(record.load())
    assert callable(record.load_prepare())
    assert record.load().__doc__
    assert record.reads and record.careful and record.source
    assert record.low < record.high


def test_a_measure_is_added_by_one_call(own: str) -> None:
    mine = register(Measure(name=own, **FIELDS))
    assert measure(own) is mine
    assert mine in measures(Needs.MOMENTS)
    assert mine not in measures(Needs.PAIRS)
    assert register(Measure(name=own, **FIELDS)) == mine  # again: a module imported twice
    with pytest.raises(FulaError, match="registered already, as 'mine'"):
        register(Measure(name=own, **FIELDS | {"label": "other"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Linear CKA"}, "lower case letters"),
        ({"best": 0.5}, "best 0.5 must be an end of its range"),
        ({"prepare": "operator:pos"}, "`prepare` is given exactly where it needs pairs"),
        ({"needs": Needs.PAIRS}, "`prepare` is given exactly where it needs pairs"),
        ({"function": "operator.neg"}, "must read 'module:function'"),
    ],
)
def test_bad_records_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(FulaError, match=message):
        Measure(**{"name": "own_measure", **FIELDS, **fields})


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(FulaError, match="unknown measure 'linear_ckaa'; did you mean 'linear_cka'"):
        measure("linear_ckaa")
