"""What a similarity run gathers, against the functions that make the matrices."""

from __future__ import annotations

import pytest
import torch

from fula_fast.errors import FulaError
from fula_fast.measures.features import as_matrix
from fula_fast.measures.registry import COMPARES, measures
from fula_fast.study.cells import Held
from fula_fast.study.plan import Plan, plan
from fula_fast.study.similarity_plan import FeatureView, blocks, similarity_spec
from fula_fast.study.similarity_spec import SimilaritySpec
from fula_fast.study.spec import load_spec

DONORS = {n: {"model": "resnet18", "width": 4, "untrained": True} for n in "abc"}
TABLE = {"data": {"source": "digits", "size": 8}, "donors": DONORS}


@pytest.mark.parametrize("shape", [(3, 4, 6), (5, 7), (9,)])
@pytest.mark.parametrize("words", [("mean", "mean"), ("flat", "cls"), ("positions", "all")])
@pytest.mark.parametrize("size", [None, (2, 3)])
def test_a_views_matrix_is_as_matrix_makes_it(shape, words, size):
    view, x = FeatureView(*words, size), torch.rand(2, *shape)
    rows, width = view.matrix(shape)
    assert as_matrix(x, view.word(shape), size).shape == (2 * rows, width)


@pytest.mark.parametrize(
    ("table", "pairs"),
    [
        ({}, "aa ab ac bb bc cc"),
        ({"donors": "b"}, "bb"),
        ({"donors": ["a", "c"]}, "aa ac cc"),
        ({"pairs": [["c", "a"]]}, "ca"),
    ],
)
def test_pairs(table, pairs):
    found = load_spec(TABLE | {"similarity": table}).similarity.pairs
    assert " ".join(map("".join, found)) == pairs


def test_pairs_of_the_grid_stay_when_it_is_left_out():
    table = TABLE | {"grid": {"pairs": [["a", "b"], ["c", "a"]]}}
    spec = similarity_spec(table, {"similarity.null": 10})
    assert spec.grid is None and spec.similarity.pairs == (("a", "b"), ("c", "a"))
    assert load_spec(spec.dump()) == spec
    assert load_spec(table).similarity is None


def test_all_measures_are_those_that_compare():
    found = load_spec(TABLE | {"similarity": {"measures": "all"}}).similarity
    assert found.measures == tuple(each.name for each in measures(*COMPARES))
    assert {"linear_cka", "kappa"} < set(found.measures)


def test_outputs_have_no_features():
    asked = {"measures": ["linear_cka", "kappa"], "features": {"kappa": "mean"}}
    with pytest.raises(FulaError, match="features.kappa: it compares outputs, which have no"):
        load_spec(TABLE | {"similarity": asked})


def test_a_spec_needs_a_grid_or_similarity():
    with pytest.raises(FulaError, match=r"'grid' is missing.*\[similarity\]"):
        load_spec(TABLE)


def test_a_plan_survives_json():
    planned = plan(similarity_spec(TABLE), budget=2**34)
    assert planned.cells == () and planned.similarity.images == 355
    values, columns = planned.stored()
    assert Plan.from_stored(values, Held(columns)).similarity == planned.similarity


def test_positions_make_a_block_for_each_size_of_the_end():
    maps = [(4, 8, 8), (4, 8, 8), (8, 4, 4)]
    spec = SimilaritySpec(measures=["linear_cka", "mutual_knn"], features="positions")
    found = blocks(spec, maps, maps, ("a", "b"))
    assert [(b.view.size, b.end_sites, b.rows) for b in found] == [
        ((8, 8), (0, 1), 64), ((4, 4), (2,), 16)
    ]  # fmt: skip


def test_unequal_rows_are_refused():
    spec = SimilaritySpec(measures=["linear_cka"], features=["mean", "all"])
    with pytest.raises(
        FulaError, match="all and mean give 5 rows per image at site 1 of 'a' and 1 at"
    ):
        blocks(spec, [(5, 8)], [(4, 8, 8)], ("a", "b"))


def test_memory_grows_with_what_is_asked():
    def bytes_of(**table):
        asked = {"measures": ["linear_cka"], "pairs": [["a", "b"]], "null": 0} | table
        return plan(load_spec(TABLE | {"similarity": asked})).similarity.memory

    usual = bytes_of()
    assert bytes_of(features="flat") > usual
    assert bytes_of(measures=["linear_cka", "mutual_knn"]) > usual
    assert bytes_of(pairs=[["a", "b"], ["a", "c"]]) > usual
    assert bytes_of(samples=20) < usual
