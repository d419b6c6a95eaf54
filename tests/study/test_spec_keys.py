"""The words about a spec's keys: every key has them, and they are what the models do."""

from __future__ import annotations

import tomllib

import pytest

from fula_fast.errors import FulaError
from fula_fast.study.protocol import Protocol, acts
from fula_fast.study.spec import load_spec
from fula_fast.study.spec_keys import find, in_words, keys, tables

DONORS = {"a": {"model": "resnet18"}, "b": {"model": "resnet18", "seed": 1}}
MINIMAL = {"donors": DONORS, "grid": {"front": ["a"], "end": ["b"]}}


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.path)
def test_every_key_has_its_words(key):
    assert key.meaning and key.type and key.default


def test_no_docstring_speaks_of_a_key_that_is_not_there():
    from fula_fast.study.spec import Spec
    from fula_fast.study.spec_keys import meanings_of

    for model in {Spec, Protocol} | {key.inner for key in keys() if key.inner}:
        assert set(meanings_of(model)) == set(model.model_fields), model


def test_every_field_of_every_table_is_listed_once():
    told = [key.path for some in tables().values() for key in some]
    assert len(told) == len(set(told))
    assert {f"protocol.{name}" for name in Protocol.model_fields} <= set(told)
    dumped = load_spec(MINIMAL).dump()
    for table in ("data", "grid", "evaluation", "engine"):
        assert {f"{table}.{name}" for name in dumped[table]} <= set(told)


@pytest.mark.parametrize(
    "key",
    [
        k
        for k in keys()
        if not k.inner and k.table.split(".")[0] in ("data", "evaluation", "engine")
    ],
    ids=lambda k: k.path,
)
def test_a_default_is_what_a_spec_without_the_key_has(key):
    value = load_spec(MINIMAL)
    for part in key.path.split("."):
        value = getattr(value, part)
    told = None if key.default == "unset" else tomllib.loads(f"x = {key.default}")["x"]
    assert told == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    "key, below, above",
    [("data.size", 0, 1), ("evaluation.robust_images", 0, 1), ("engine.workers", 0, 1), ("protocol.momentum", 1.0, 0.99),
     ("donors.a.min_accuracy", 1.1, 1.0), ("grid.alpha", -0.1, 0.0)],
)  # fmt: skip
def test_a_range_is_the_one_that_is_checked(key, below, above):
    (found,) = find(key)
    limit = found.range.split(", ")[-1 if below > above else 0]
    sign, number = limit.split()
    assert {
        "≥": below < float(number) <= above,
        "<": above < float(number) <= below,
        "≤": above <= float(number) < below,
    }[sign]
    load_spec(MINIMAL, [(key, above)])
    with pytest.raises(FulaError):
        load_spec(MINIMAL, [(key, below)])


def test_a_key_is_found_by_path_table_and_last_part():
    assert [k.path for k in find("protocol.lr")] == ["protocol.lr"]
    assert [k.path for k in find("lr")] == ["donors.NAME.lr", "protocol.lr"]
    assert [k.path for k in find("donors.my_net.width")] == ["donors.NAME.width"]
    assert [k.name for k in find("grid.shortcut.size")] == ["size"]


def test_a_table_is_found_with_its_keys():
    marker = [
        "grid.shortcut",
        *(f"grid.shortcut.{n}" for n in ("pattern", "location", "size", "seed")),
    ]
    assert [k.path for k in find("[grid.shortcut]")] == marker
    assert [k.path for k in find("shortcut")][-5:] == marker
    assert [k.path for k in find("grid.methods")][:2] == ["grid.methods", "grid.methods.name"]
    (donors, *inside), own = find("donors"), find("donors.my_net")
    assert donors.path == "donors" and {k.table for k in inside} == {"donors.NAME"}
    assert own == (donors, *inside)


def test_what_is_unset_is_no_value():
    for name in ("grid.subset", "grid.shortcut", "donors.a.shortcut", "data.size"):
        assert find(name)[0].default == "unset"
    with pytest.raises(FulaError, match="subset"):
        load_spec(MINIMAL, [("grid.subset", "none")])


def test_a_keys_words_by_name_are_those_that_it_has():
    (lr,), (options,) = find("protocol.momentum"), find("data.options")
    assert lr.to_json() == {
        "key": "protocol.momentum", "type": "number", "default": "0.9", "range": "≥ 0, < 1",
        "meaning": "of SGD", "acts": "the stitch has an objective and the optimiser is SGD",
    }  # fmt: skip
    assert options.to_json().keys() == {"key", "type", "default", "meaning"}


def test_a_wrong_key_gets_the_nearest_one():
    with pytest.raises(FulaError, match="did you mean 'protocol.schedule'"):
        find("protocol.shedule")
    with pytest.raises(FulaError, match="did you mean 'lr'"):
        find("learning_rate")


def test_when_an_option_acts_is_told_from_its_rule():
    assert in_words(acts("momentum").when) == (
        "the stitch has an objective and the optimiser is SGD"
    )
    assert in_words(acts("bn").when) == (
        "the stitch has an objective; or a closed form waits for training passes"
    )
    assert in_words(acts("hook").when) == "always"
    assert in_words(lambda s: not s.trained and s.robust) == (
        "not (the stitch has an objective) and robust accuracy is measured"
    )
