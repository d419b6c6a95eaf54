"""Expansion of a grid: sites, refusals, and cells that would be the same twice."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fula_fast.errors import FulaError
from fula_fast.study.expand import expand, same_sites, site_pairs
from fula_fast.study.facts import DataFacts, DonorFacts
from fula_fast.study.spec import load_spec

IMAGE = (3, 32, 32)
DATA = DataFacts(IMAGE, 10, 1000)


def donor(name="a", sites=9, classes=10, shape=(4, 8, 8)):
    names, ones = tuple(f"block{k}" for k in range(1, sites + 1)), (1,) * sites
    return DonorFacts(name, IMAGE, classes, names, (shape,) * sites, ones, ones, 1)


def cells_of(grid, donors=None, protocol=None, data=DATA, **tables):
    """Cells and notes of a grid between the described donors `a` and `b`."""
    donors = donors or {"a": donor("a"), "b": donor("b")}
    spec = load_spec(
        {
            "data": {"source": "cifar10"},
            "donors": {
                "a": {"model": "resnet18", "seed": 0},
                "b": {"model": "resnet18", "seed": 1},
            },
            "grid": {"front": "a", "end": "b", **grid},
            "protocol": protocol or {},
            **tables,
        }
    )
    return expand(spec, data, lambda name, hook: donors[name])


def refusal(*args, **tables):
    with pytest.raises(FulaError) as error:
        cells_of(*args, **tables)
    assert "\n" not in str(error.value)
    return str(error.value)


@given(st.integers(1, 60), st.integers(2, 60))
def test_same_sites_are_a_rounded_linear_spacing(front, end):
    spacing = np.linspace(1, front, end)
    pairs = same_sites(front, end)
    assert [j for _, j in pairs] == list(range(1, end + 1))
    assert np.allclose([i for i, _ in pairs], np.floor(spacing + 0.5 + 1e-9))


@given(st.integers(1, 40))
def test_same_sites_of_equal_counts_are_the_diagonal(count):
    assert same_sites(count, count) == tuple((i, i) for i in range(1, count + 1))


def test_a_single_end_site_pairs_with_the_last_front_site():
    assert same_sites(9, 1) == ((9, 1),)


def test_site_lists():
    front, end = donor("a", 9), donor("b", 5)
    assert len(site_pairs("all-pairs", front, end)) == 45
    assert site_pairs(((3, 2), (2,), (3, 2)), front, end) == ((3, 2),)
    assert site_pairs(((1, 5), (5,)), front, end) == ((1, 5), (9, 5))


@pytest.mark.parametrize(
    ("sites", "numbers"),
    [
        ([["block1", "block9"]], [(1, 9)]),
        ([["block2", 3]], [(2, 3)]),
        (["block4"], [(4, 4)]),
        ([5, "block5", ["block5", "block5"]], [(5, 5)]),
    ],
)
def test_sites_by_name(sites, numbers):
    cells, _ = cells_of({"sites": sites, "methods": ["hint"]})
    assert [(cell.front_site, cell.end_site) for cell in cells] == numbers
    same, _ = cells_of({"sites": [list(pair) for pair in numbers], "methods": ["hint"]})
    assert [cell.id for cell in cells] == [cell.id for cell in same]


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([["block1", "blok2"]], "end 'b' has no site 'blok2'; did you mean 'block2'"),
        ([["layer1", 2]], "front 'a' has no site 'layer1'; valid: block1, "),
        (["head"], "end 'b' has no site 'head'"),
        ([["same", 1]], "front 'a' has no site 'same'"),
    ],
)
def test_wrong_names_get_the_nearest_one(sites, message):
    assert message in refusal({"sites": sites})


@pytest.mark.parametrize("sites", [[[1, 10]], [[10, 1]], [[0, 1]], [10], [[1, -1]]])
def test_sites_out_of_range_name_the_range(sites):
    assert "has sites 1 to 9" in refusal({"sites": sites})


def test_a_grid_is_the_product_of_its_lists():
    cells, notes = cells_of(
        {
            "methods": ["hint", "slm"],
            "alpha": [0, 0.5],
            "shortcut": ["none", "both"],
            "subset": [2, "all"],
            "seeds": [0, 1, 2],
        }
    )
    assert len(cells) == 9 * 2 * 2 * 2 * 2 * 3
    assert len({cell.id for cell in cells}) == len(cells)
    assert notes == ()


def test_data_seeds_follow_seeds_unless_given():
    assert {(c.seed, c.data_seed) for c in cells_of({"seeds": [3, 4]})[0]} == {(3, 3), (4, 4)}
    random = {"init": "random"}
    cells, _ = cells_of({"seeds": [3, 4], "data_seeds": [7], "methods": ["hint"]}, protocol=random)
    assert {(c.seed, c.data_seed) for c in cells} == {(3, 7), (4, 7)}


def test_several_seeds_with_dm_and_one_data_seed_are_merged_with_a_note():
    cells, notes = cells_of({"seeds": [0, 1, 2], "data_seeds": [0], "methods": ["dm", "hint"]})
    assert len(cells) == 18
    assert {cell.seed for cell in cells} == {0}
    assert len(notes) == 1 and "36 cells" in notes[0] and "seed" in notes[0] and "dm" in notes[0]


def test_seeds_count_where_dm_is_not_defined():
    """Conv to token has no closed form: the stitch is drawn from the seed."""
    donors = {"a": donor("a"), "b": donor("b", shape=(5, 4))}
    cells, notes = cells_of(
        {"seeds": [0, 1], "data_seeds": [0], "methods": ["hint"]}, donors=donors
    )
    assert len(cells) == 18 and notes == ()


def test_seeds_do_not_count_under_dropout():
    cells, notes = cells_of(
        {"seeds": [0, 1], "data_seeds": [0], "methods": ["hint"]}, protocol={"dropout": "train"}
    )
    assert len(cells) == 9 and len(notes) == 1  # masks are keyed by the data seed


def test_fula_and_hint_stay_apart_at_the_last_site():
    cells, notes = cells_of({"sites": [9], "methods": ["hint", "fula"]})
    assert len(cells) == 2 and notes == ()


def test_a_subset_of_all_classes_is_no_subset():
    cells, notes = cells_of({"subset": [10, "all", 3], "methods": ["hint"]})
    assert len(cells) == 18 and "subset" in notes[0]


def test_options_that_cannot_act_make_no_new_cells():
    cells, notes = cells_of(
        {"methods": ["slm", "dm"], "axes": {"lr": [0.1, 0.2], "share": ["first", "random"]}}
    )
    by_method = {m: [c for c in cells if c.method == m] for m in ("slm", "dm")}
    assert (len(by_method["slm"]), len(by_method["dm"])) == (18, 9)
    assert any("share" in note for note in notes) and any("lr" in note for note in notes)


def test_dm_with_stale_statistics_ignores_all_of_training():
    cells, _ = cells_of(
        {"methods": ["dm"], "alpha": [0, 1], "axes": {"epochs": [3, 9]}},
        protocol={"dm_stats": "stale"},
    )
    assert len(cells) == 9


def test_refreshed_dm_depends_on_the_training_passes():
    cells, _ = cells_of({"methods": ["dm"], "alpha": [0, 1], "axes": {"epochs": [3, 9]}})
    assert len(cells) == 36


def test_equal_presets_are_merged():
    cells, notes = cells_of({"protocols": ["fula-v2", "fula-v1"], "methods": ["hint"]},
                            protocol={"schedule": "constant", "dm_samples": 100})  # fmt: skip
    assert len(cells) == 9 and "preset" in notes[0]


def test_weightings_apply_to_fula_alone():
    cells, _ = cells_of({"methods": ["hint", "fula"], "weightings": ["uniform", "last"]})
    assert sum(c.method == "hint" for c in cells) == 9
    assert [c.weighting for c in cells if c.method == "fula"].count("last") == 9


def test_a_weighting_list_of_another_length_is_refused():
    assert "8 sites follow" in refusal({"sites": [2], "weightings": [[1, 2]]})
    cells, _ = cells_of({"sites": [8], "methods": ["fula"], "weightings": [[1, 2]]})
    assert cells[0].weighting == "1,2"


def test_mixtures_have_their_name_and_weights():
    mixture = {"name": "half", "fula": 0.5, "tlm": 0.5}
    cells, _ = cells_of({"methods": [mixture, "tlm"], "sites": [1]})
    assert [c.method for c in cells] == ["half", "tlm"]
    assert cells[0].objective == {"tlm": 0.5, "fula": 0.5}


def test_a_mixture_equal_to_a_method_is_merged_with_it():
    cells, notes = cells_of({"methods": ["hint", {"name": "same", "hint": 1}], "sites": [1]})
    assert [c.method for c in cells] == ["hint"] and "same" in notes[0]


FFM = {"name": "ffm-tlm", "stages": [{"fula": 1, "weighting": "last"}, {"tlm": 1}]}
SHORT = {"epochs": 4}


def staged(*stages, name="m", **more):
    return {"name": name, "stages": list(stages), **more}


def id_of(method, protocol=SHORT, **grid):
    (cell,), _ = cells_of({"methods": [method], "sites": [2], **grid}, protocol=protocol)
    return cell.id


def test_stages_share_the_epochs_and_stand_in_the_cell():
    (cell,), _ = cells_of({"methods": [FFM], "sites": [2]}, protocol={"epochs": 5})
    found = [(s.objective, s.weighting, s.epochs) for s in cell.stages]
    assert found == [({"fula": 1.0}, "last", 3), ({"tlm": 1.0}, None, 2)]
    assert cell.objective == {"fula": 1.0, "tlm": 1.0} and cell.weighting == ""


def test_an_id_counts_what_acts_in_a_stage():
    last, task = {"fula": 1, "weighting": "last"}, {"tlm": 1}
    others = [
        staged(task, last), staged(last, {"tlm": 2}), staged({"fula": 1, "weighting": "cutoff=1"}, task),
        staged({**last, "epochs": 1}, task), staged(last, {"slm": 1}), staged(last, task, last),
        staged(last, {"tlm": 1, "hint": 1}), staged(last, {"tlm": 1, "hint": 1}, combine="pcgrad"),
    ]  # fmt: skip
    ids = [id_of(FFM), *map(id_of, others)]
    assert len(set(ids)) == len(ids)
    assert id_of(FFM, {**SHORT, "lr": 0.5}) != id_of(FFM)
    soft = {**SHORT, "fula_soft": True}
    assert id_of(FFM, soft) != id_of(FFM)


def test_an_id_leaves_out_what_does_not_act():
    assert id_of(FFM) == id_of(FFM, weightings=["uniform"])
    assert id_of(FFM) == id_of(FFM, {**SHORT, "weighting": "cutoff=1"})
    assert id_of(FFM) == id_of(staged({**FFM["stages"][0], "epochs": 2}, {"tlm": 1}))
    assert id_of(FFM) == id_of(staged(FFM["stages"][0], {"tlm": 1, "weighting": "cutoff=1"}))
    unset = staged({"fula": 1}, {"tlm": 1})
    assert id_of(FFM) == id_of(unset, weightings=["last"]) != id_of(unset)
    task = {"tlm": 1, "epochs": 1}
    assert id_of(FFM) == id_of(staged(FFM["stages"][0], task, task))
    one = staged({"hint": 1, "epochs": 3}, {"hint": 1})
    assert id_of(one) == id_of("hint") == id_of(staged({"hint": 1}))
    assert id_of(staged({"fula": 1, "weighting": "last"})) == id_of("fula", weightings=["last"])
    both = {"name": "m", "fula": 1, "tlm": 1, "combine": "sum"}
    assert id_of(both) == id_of({"name": "n", "tlm": 1, "fula": 1})


def test_stages_that_do_not_fit_are_refused():
    wrong = staged({"fula": 1, "epochs": 3}, {"tlm": 1, "epochs": 2})
    message = refusal({"methods": [wrong], "axes": {"epochs": [5, 4]}})
    assert "method 'm': the epochs of its stages sum to 3 + 2 = 5, but epochs = 4" in message
    assert "8 sites follow" in refusal(
        {"sites": [2], "methods": [staged({"fula": 1, "weighting": [1, 2]}, {"tlm": 1})]}
    )


def test_a_combination_of_one_gradient_is_refused():
    one = {"name": "m", "fula": 1, "combine": "pcgrad"}
    message = refusal({"methods": [one]})
    assert "method 'm': combine = 'pcgrad' needs two methods" in message and "fula alone" in message
    assert "fula and tlm alone" in refusal({"methods": [FFM | {"combine": "pcgrad"}]})
    cells, _ = cells_of({"methods": [one], "sites": [2]}, protocol={"fula_soft": True})
    assert cells[0].objective.keys() == {"fula", "slm"} and cells[0].combine == "pcgrad"


def test_labels_in_a_later_stage_are_needed():
    donors = {"a": donor("a", classes=7), "b": donor("b")}
    assert "tlm trains on labels" in refusal({"methods": [FFM]}, donors=donors)


def test_tlm_needs_labels_that_mean_the_same():
    donors = {"a": donor("a", classes=7), "b": donor("b")}
    message = refusal({"methods": ["hint", "tlm"]}, donors=donors)
    assert "tlm trains on labels" in message and "7" in message and "10" in message
    assert len(cells_of({"methods": ["hint", "slm"]}, donors=donors)[0]) == 18
    both = {"a": donor("a", classes=7), "b": donor("b", classes=7)}
    assert "[data], which has 10 classes" in refusal({"methods": ["tlm"]}, donors=both)


def test_dlr_needs_three_classes():
    donors = {"a": donor("a", classes=2), "b": donor("b", classes=2)}
    data = DataFacts(IMAGE, 2, 1000)
    message = refusal({}, donors, {"robust": "apgd20"}, data)
    assert "at least three classes" in message and "pgd-10" in message


@pytest.mark.parametrize("sites", ["same", [[1, 2], [2, 2]]])
def test_dm_between_unlike_sites_is_refused(sites):
    token = replace(donor("b"), shapes=((4, 8, 8), (16, 4)) + ((4, 8, 8),) * 7)
    donors = {"a": donor("a"), "b": token}
    message = refusal({"sites": sites, "methods": ["hint", "dm"]}, donors)
    assert "method 'dm' needs sites of one form" in message and "'b' 16x4; leave dm out" in message
    trained = [{"name": "m", "hint": 1.0, "tlm": 1.0}, "fula"]
    assert cells_of({"sites": sites, "methods": trained}, donors)[0]
    assert cells_of({"sites": [[1, 1]], "methods": ["dm"]}, donors)[0]


def test_attacks_on_normalised_images_are_refused():
    data = replace(DATA, normalised=True)
    message = refusal({"alpha": [0, 0.5]}, data=data)
    assert "alpha = 0.5 attacks pixels in [0, 1]" in message and "mean = 0 and std = 1" in message
    assert "robust = 'pgd-3' attacks" in refusal({}, protocol={"robust": "pgd-3"}, data=data)
    assert len(cells_of({"methods": ["hint"]}, data=data)[0]) == 9


def test_donors_of_another_image_shape_are_refused():
    small = DataFacts((3, 16, 16), 10, 1000)
    assert "3x32x32" in refusal({}, data=small) and "3x16x16" in refusal({}, data=small)


def test_subsets_and_markers_must_fit_the_data():
    assert "classes 1 to 10" in refusal({"subset": [11]})
    big = {"pattern": "pixel", "location": "class", "size": 33}
    assert "larger than the images" in refusal({"shortcut": [big]})
    many = {n: donor(n, classes=101) for n in "ab"}
    message = refusal({"shortcut": "aruco+class"}, many, data=DataFacts(IMAGE, 101, 1000))
    assert "100 markers" in message
