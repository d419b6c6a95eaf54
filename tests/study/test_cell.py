"""Cell ids: equal exactly where the numbers would be."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fula_fast.study.cell import Cell, Context, cell_id, digest
from fula_fast.study.donor_spec import ShortcutSpec
from fula_fast.study.protocol import protocol

CELL = Cell("a", "b", 2, 3, "fula", {"fula": 1.0}, protocol())
CONTEXT = Context(front="f" * 16, end="e" * 16, data="d" * 16, classes=10, like=True)


def test_ids_are_16_hex_digits_and_stable():
    name = cell_id(CELL, CONTEXT)
    assert len(name) == 16 and set(name) <= set("0123456789abcdef")
    assert name == cell_id(replace(CELL), replace(CONTEXT))


def test_ids_count_donors_by_recipe_and_not_by_name():
    assert cell_id(replace(CELL, front="x", end="y"), CONTEXT) == cell_id(CELL, CONTEXT)
    assert cell_id(CELL, replace(CONTEXT, front="0" * 16)) != cell_id(CELL, CONTEXT)


def test_ids_differ_where_numbers_would():
    changes = [
        {"front_site": 1},
        {"end_site": 1},
        {"objective": {"fula": 0.5}},
        {"objective": {}},
        {"alpha": 0.5},
        {"subset": 3},
        {"data_seed": 1},
        {"shortcut": ShortcutSpec(pattern="pixel", location="class")},
        {"protocol": protocol(lr=1e-2)},
        {"protocol": protocol(weighting="last")},
        {"protocol": protocol(dm_samples=100)},
        {"protocol": protocol(init="random")},
    ]
    ids = {cell_id(replace(CELL, **change), CONTEXT) for change in changes}
    assert len(ids | {cell_id(CELL, CONTEXT)}) == len(changes) + 1


def test_ids_ignore_what_cannot_act():
    same = [
        {"method": "another name"},
        {"seed": 5},
        {"protocol": protocol(momentum=0.5)},
        {"protocol": protocol(share="first")},
        {"protocol": protocol(attack_target="clean")},
        {"protocol": protocol(target_bn="train")},
        {"protocol": protocol(dm_stats="stale")},
    ]
    assert {cell_id(replace(CELL, **change), CONTEXT) for change in same} == {
        cell_id(CELL, CONTEXT)
    }


def test_the_seed_counts_for_a_random_start():
    start = replace(CELL, protocol=protocol(init="random"))
    assert cell_id(start, CONTEXT) != cell_id(replace(start, seed=1), CONTEXT)
    unlike = replace(CONTEXT, like=False)
    assert cell_id(CELL, unlike) != cell_id(replace(CELL, seed=1), unlike)


cells = st.builds(
    Cell,
    front=st.sampled_from("ab"),
    end=st.sampled_from("ab"),
    front_site=st.integers(1, 9),
    end_site=st.integers(1, 9),
    method=st.just("m"),
    objective=st.dictionaries(st.sampled_from(["hint", "slm", "tlm", "fula"]), st.floats(0.1, 1)),
    protocol=st.builds(
        protocol, st.sampled_from(["fula-v1", "smith25"]), epochs=st.integers(0, 99)
    ),
    alpha=st.floats(0, 1),
    shortcut=st.none()
    | st.builds(ShortcutSpec, pattern=st.just("noise"), location=st.just("class")),
    subset=st.none() | st.integers(1, 10),
    seed=st.integers(0, 9),
    data_seed=st.integers(0, 9),
    id=st.text("0123456789abcdef", min_size=16, max_size=16),
)


@given(cells)
def test_cells_survive_json(cell):
    values = json.loads(json.dumps(cell.to_json()))
    back = Cell.from_json(values, cell.protocol)
    assert back == cell and back.id == cell.id and hash(back) == hash(cell)


def test_digest_is_over_canonical_json():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
