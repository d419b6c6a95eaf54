"""Waves: what may share one, packing to a budget, costs, and the plan's round trip."""

import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fula_fast.errors import FulaError
from fula_fast.methods import TrainingStage
from fula_fast.study.cell import Cell
from fula_fast.study.cells import Held
from fula_fast.study.costs import step_flops
from fula_fast.study.facts import DataFacts, DonorFacts
from fula_fast.study.packing import even_runs, first_fit
from fula_fast.study.plan import Plan, plan
from fula_fast.study.protocol import protocol
from fula_fast.study.schedule import schedule
from fula_fast.study.show_plan import bytes_text, flops_text, plan_view
from fula_fast.study.spec import load_spec
from fula_fast.study.wave_keys import wave_key


def spec_of(grid=None, **tables):
    return load_spec(
        {
            "data": {"source": "digits", "size": 16},
            "donors": {
                "a": {"model": "resnet18", "width": 8},
                "b": {"model": "resnet18", "width": 8, "seed": 1},
            },
            "grid": {"front": "a", "end": "b", **(grid or {})},
            **tables,
        }
    )


def test_one_grid_of_one_pair_is_one_wave():
    planned = plan(spec_of({"sites": "all-pairs", "seeds": [0]}))
    assert len(planned.cells) == 81 * 5
    assert [len(w.cells) for w in planned.waves] == [81 * 5]


def test_what_cannot_be_captured_is_refused_before_any_work():
    spec = spec_of({"methods": ["hint"]}, protocol={"dropout": "train"})
    assert plan(spec, mode="compiled", device="cuda").waves
    with pytest.raises(FulaError, match="'captured' is not possible: dropout masks"):
        plan(spec, mode="captured", device="cuda")
    plain = spec_of({"methods": ["hint"]})
    assert plan(plain, mode="captured", device="cuda").waves
    with pytest.raises(FulaError, match="'captured' is not possible: it needs a CUDA device"):
        plan(plain, mode="captured", device="cpu")


@pytest.mark.parametrize(
    "grid, waves",
    [
        ({"seeds": [0, 1]}, 2),
        ({"seeds": [0, 1], "data_seeds": [0]}, 1),
        ({"alpha": [0, 0.5, 1]}, 2),
        ({"shortcut": ["none", "both"]}, 2),
        ({"subset": [2, "all"]}, 2),
        ({"axes": {"lr": [0.1, 0.2], "weight_decay": [0.0, 0.1]}}, 1),
        ({"axes": {"schedule": ["constant", "thirds"], "dm_samples": [9, 99]}}, 1),
        ({"axes": {"bn": ["train", "eval"]}}, 2),
        ({"axes": {"batch_size": [32, 64]}}, 2),
        ({"axes": {"optimiser": ["adam", "sgd"]}}, 2),
        ({"axes": {"crop_padding": [0, 1]}}, 2),
        ({"weightings": ["uniform", "last", "cutoff=2"]}, 1),
    ],
)
def test_what_may_share_a_wave(grid, waves):
    grid = {"methods": ["hint", "fula"], **grid}
    assert len(plan(spec_of(grid)).waves) == waves


def test_a_dm_without_passes_waits_for_no_training():
    planned = plan(spec_of({"methods": ["dm", "hint"]}, protocol={"dm_stats": "stale"}))
    assert sorted((w.key.epochs, w.steps) for w in planned.waves) == [(0, 0), (30, 30 * 11)]


def test_the_solo_executor_takes_cells_one_by_one():
    planned = plan(spec_of(engine={"executor": "solo"}))
    assert [len(w.cells) for w in planned.waves] == [1] * 45


grids = st.fixed_dictionaries(
    {
        "methods": st.lists(
            st.sampled_from(["dm", "hint", "slm", "tlm", "fula"]), min_size=1, unique=True
        ),
        "alpha": st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, unique=True),
        "seeds": st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
        "data_seeds": st.none() | st.just([0]),
        "sites": st.sampled_from(["same", [[1, 1], [4, 7]]]),
        "subset": st.lists(st.sampled_from([2, 5, "all"]), min_size=1, unique=True),
    }
)
GIB = 2**30


@given(grids, st.sampled_from([None, GIB // 2, 4 * GIB]))
@settings(max_examples=40, deadline=None)
def test_waves_partition_the_cells_and_keep_to_key_and_budget(grid, budget):
    planned = plan(spec_of(grid), budget=budget)
    ridden = [cell.id for wave in planned.waves for cell in wave.cells]
    assert sorted(ridden) == sorted(cell.id for cell in planned.cells)
    assert len(set(ridden)) == len(ridden)
    assert len({wave.id for wave in planned.waves}) == len(planned.waves)
    for wave in planned.waves:
        assert {wave_key(cell) for cell in wave.cells} == {wave.key}
        assert budget is None or wave.memory <= budget


@pytest.mark.parametrize("sites", [[[1, 9]], [[9, 1]], [[9, 9]]])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_budget_is_accepted_that_a_wave_exceeds(sites, precision):
    """Also where the closed form, not the training, needs the most."""
    accepted, refused = 0, 0
    for size in range(64, 800, 8):
        try:
            planned = plan(spec_of({"sites": sites}), budget=size * 2**20, precision=precision)
        except FulaError:
            refused += 1
            continue
        accepted += 1
        assert all(wave.memory <= size * 2**20 for wave in planned.waves)
    assert accepted and refused


@given(grids)
@settings(max_examples=20, deadline=None)
def test_a_plan_survives_json(grid):
    planned = plan(spec_of(grid), budget=4 * GIB, precision="bf16", mode="compiled")
    values, columns = planned.stored()
    back = Plan.from_stored(json.loads(json.dumps(values)), Held(columns))
    assert back == planned
    assert [c.id for c in back.cells] == [c.id for c in planned.cells]


def test_planning_twice_gives_the_same_plan():
    spec = spec_of({"sites": "all-pairs", "seeds": [0, 1]})
    assert plan(spec, budget=GIB) == plan(load_spec(spec.dump()), budget=GIB)


def test_ids_do_not_depend_on_the_rest_of_the_grid():
    small, large = plan(spec_of({"methods": ["fula"]})), plan(spec_of({"seeds": [0, 1]}))
    assert {c.id for c in small.cells} < {c.id for c in large.cells}


def test_a_lane_that_cannot_fit_is_refused_with_what_to_do():
    with pytest.raises(FulaError, match=r"site.*needs .* GiB.*budget.*--memory.*batch_size"):
        plan(spec_of(), budget=2**20)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(100, 300))
def test_first_fit_fills_bins_and_loses_nothing(sizes, room):
    bins = [found.tolist() for found in first_fit(np.array(sizes), room)]
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in b) <= room for b in bins)
    # First fit never leaves two bins that would fit in one.
    loads = [sum(sizes[i] for i in b) for b in bins]
    assert all(a + b > room for n, a in enumerate(loads) for b in loads[n + 1 :])


CHAIN = DonorFacts(
    "x",
    (3, 4, 4),
    10,
    ("1", "2", "3"),
    ((2, 4, 4), (5, 2, 2), (7, 1, 1)),
    (100, 200, 400),
    (1, 1, 1),
    50,
)


def cell(method, i, j, alpha=0.0):
    objective = {} if method == "dm" else {method: 1.0}
    return Cell("x", "x", i, j, method, objective, protocol(batch_size=4), alpha)


def test_step_flops_by_hand():
    """Front to the deepest site, the end once, and each lane's own work."""
    shared = (100 + 200) + (700 + 50)
    product = 2 * (5 * 2) * 4  # 5 to 2 features, at 2x2
    tail = 200 + 400 + 50
    hint, fula, dm = (cell(m, 2, 1) for m in ("hint", "fula", "dm"))
    assert step_flops([hint], CHAIN, CHAIN) == 4 * (shared + 3 * product)
    assert step_flops([fula], CHAIN, CHAIN) == 4 * (shared + 3 * product + 2 * tail)
    assert step_flops([dm], CHAIN, CHAIN) == 4 * (shared + product + tail)
    both = step_flops([hint, fula], CHAIN, CHAIN)
    assert both == 4 * (shared + 6 * product + 2 * tail)


def test_stages_cost_by_their_epochs_and_combined_gradients_a_pass_each():
    shared, product, tail = 1050, 80, 650
    stages = TrainingStage({"hint": 1.0}, None, 3), TrainingStage({"tlm": 1.0}, None, 1)
    staged = replace(cell("tlm", 2, 1), stages=stages)
    assert step_flops([staged], CHAIN, CHAIN) == 4 * (shared + 3 * product + 2 * tail // 4)
    both = replace(cell("tlm", 2, 1), objective={"fula": 1.0, "tlm": 1.0})
    combined = replace(both, combine="pcgrad")
    assert step_flops([both], CHAIN, CHAIN) == 4 * (shared + 3 * product + 2 * tail)
    assert step_flops([combined], CHAIN, CHAIN) == 4 * (shared + 5 * product + 3 * tail)


def test_a_dry_run_prices_stages_and_combined_gradients():
    """Stages ride with other methods, gradients that are combined in a wave of their own."""
    staged = {"name": "staged", "stages": [{"hint": 1}, {"tlm": 1}]}
    combined = {"name": "combined", "fula": 1, "tlm": 1, "combine": "pcgrad"}
    both = {"name": "both", "fula": 1, "tlm": 1}
    options = {"protocol": {"epochs": 4}}

    def of(*methods):
        return plan(spec_of({"methods": list(methods), "sites": [3]}, **options))

    found = of("hint", "tlm", staged, combined)
    assert [len(wave.cells) for wave in found.waves] == [3, 1]
    assert 2 * of(staged).flops == of("hint").flops + of("tlm").flops
    assert of(combined).flops > of(both).flops
    assert of(combined).waves[0].memory > of(both).waves[0].memory
    back = Plan.from_stored(json.loads(json.dumps(found.stored()[0])), Held(found.stored()[1]))
    assert back == found
    assert [c.stages for c in back.cells] == [c.stages for c in found.cells]


def test_attacks_cost_ten_passes_there_and_back():
    plain, attacked = cell("fula", 2, 1), cell("fula", 2, 1, alpha=0.5)
    one_pass = 300 + 2 * 40 + 650
    extra = 0.5 * 10 * 2 * one_pass
    assert step_flops([attacked], CHAIN, CHAIN) == step_flops([plain], CHAIN, CHAIN) + 4 * extra


def test_flops_of_the_published_grid():
    """ResNet-18, 9x9 sites, 30 epochs of CIFAR-10: 140 PFLOP for one functional method."""
    spec = load_spec(
        {
            "data": {"source": "cifar10"},
            "donors": {"a": {"model": "resnet18"}, "b": {"model": "resnet18", "seed": 1}},
            "grid": {"front": "a", "end": "b", "sites": "all-pairs", "methods": ["fula"]},
        }
    )
    assert round(plan(spec).flops / 1e15) in range(130, 150)


def test_facts_may_be_given():
    facts = {name: replace(CHAIN, name=name) for name in "ab"}
    planned = plan(spec_of(), data=DataFacts((3, 4, 4), 10, 1280), donors=facts)
    assert len(planned.cells) == 3 * 5 and planned.waves[0].steps == 30 * 10


def test_unknown_models_name_the_donor_and_the_nearest_model():
    with pytest.raises(FulaError, match=r"\[donors\.a\].*'resnet1'.*'resnet18'"):
        plan(spec_of(donors={"a": {"model": "resnet1"}, "b": {"model": "resnet18"}}))


def test_a_checkpoint_may_say_which_model_it_is_for(tmp_path):
    from fula_fast.models import build, save_checkpoint

    file = tmp_path / "donor.safetensors"
    model = build("resnet18", num_classes=10, input_shape=(3, 16, 16), width=8)
    save_checkpoint(model, file)
    donors = {"a": {"checkpoint": str(file)}, "b": {"model": "resnet18", "width": 8}}
    assert len(plan(spec_of(donors=donors)).cells) == 45
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(FulaError, match="is damaged: it is truncated"):
        plan(spec_of(donors=donors))
    file.unlink()
    with pytest.raises(FulaError, match="cannot read checkpoint"):
        plan(spec_of(donors=donors))


def test_planning_needs_no_torch():
    code = (
        "import sys; from fula_fast.study.spec import load_spec; from fula_fast.study.plan import "
        "plan; from fula_fast.study.show_plan import plan_view; "
        "plan_view(plan(load_spec('quickstart'), budget=2**30)); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_view_shows_counts_costs_and_what_is_done():
    from rich.console import Console

    planned = plan(spec_of({"seeds": [0, 0]}), budget=8 * GIB)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(plan_view(planned, {planned.cells[0].id}))
    text = console.export_text()
    assert "45 cells" in text and "1 done" in text and "listed twice" in text
    assert planned.waves[0].id in text and "budget 8.0 GiB" in text


def test_lanes_above_the_budget_take_turns():
    """One wave, whose cells stand turn by turn, the deepest end sites first; the view tells it."""
    from rich.console import Console

    spec = spec_of({"sites": "all-pairs"})
    whole, small = plan(spec), plan(spec, budget=GIB // 4)
    (wave,) = small.waves
    assert whole.waves[0].turns == () and whole.waves[0].turn_of == {}
    assert wave.flops == whole.waves[0].flops and wave.memory <= GIB // 4 < whole.waves[0].memory
    assert 2 < len(wave.turns) < len(wave.cells) == sum(wave.turns)
    assert list(wave.turn_of.values()) == sorted(wave.turn_of.values())
    deepest = [cell.end_site for cell in wave.cells]
    assert deepest == sorted(deepest, reverse=True)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(plan_view(small))
    assert f"{len(wave.cells)} in {len(wave.turns)} turns" in console.export_text()
    assert len(plan(spec, budget=GIB // 4, device="cuda").waves[0].turns) < len(wave.turns)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(60, 200))
def test_even_runs_are_the_fewest_and_the_largest_is_least(sizes, most):
    bounds = even_runs(np.array(sizes), most)
    assert [a for a, _ in bounds] == [0, *(b for _, b in bounds[:-1])] and bounds[-1][1] == len(
        sizes
    )
    sums = [sum(sizes[a:b]) for a, b in bounds]
    assert max(sums) <= most
    best = [0] + [None] * len(sizes)  # the least that the largest of k runs can be, by their ends
    for k in range(1, len(bounds) + 1):
        best = [
            min(
                (max(best[a], sum(sizes[a:b])) for a in range(b) if best[a] is not None),
                default=None,
            )
            for b in range(len(sizes) + 1)
        ]
        assert k == len(bounds) or best[-1] is None or best[-1] > most
    assert max(sums) == best[-1]


@pytest.mark.parametrize(
    "size, text", [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (3 * GIB, "3.0 GiB")]
)
def test_sizes_as_text(size, text):
    assert bytes_text(size) == text


def test_work_as_text():
    assert flops_text(1.5e15) == "1.5 PFLOP" and flops_text(2e9) == "2 GFLOP"


@pytest.mark.parametrize("workers", [2, 3, 8, 100])
def test_waves_are_cut_so_that_workers_end_together(workers):
    spec = spec_of({"sites": "all-pairs", "methods": ["hint", "tlm"], "seeds": [0]})
    whole, parts = plan(spec), plan(spec, workers=workers)
    assert Counter(c.id for w in parts.waves for c in w.cells) == Counter(c.id for c in whole.cells)
    ends = [sorted({c.end_site for c in w.cells}) for w in parts.waves]
    assert all(e == list(range(e[0], e[-1] + 1)) for e in ends)
    work = [w.flops for w in parts.waves]
    assert work == sorted(work, reverse=True) and len(work) >= min(workers, 9)
    if workers < 100:  # a lane is not cut
        found = schedule(work, workers)
        assert found.efficiency >= 0.9
        # what lanes share is computed in each wave
        assert whole.flops / found.makespan >= 0.8 * workers


def test_waves_within_a_workers_share_stay_whole():
    """Two pairs of donors: two waves for two workers."""
    spec = spec_of({"front": ["a", "b"], "end": "b", "sites": "same", "methods": ["hint"]})
    assert [w.id for w in plan(spec, workers=2).waves] == [w.id for w in plan(spec).waves]


def test_four_equal_waves_are_cut_for_three_workers():
    pairs = {"front": ["a", "b"], "end": ["a", "b"], "sites": "all-pairs"}
    spec = spec_of(pairs | {"methods": ["fula", "tlm"]})
    whole = plan(spec, workers=1)
    assert len(whole.waves) == 4
    work = [w.flops for w in plan(spec, workers=3).waves]
    assert schedule([w.flops for w in whole.waves], 3).efficiency < 0.7
    assert schedule(work, 3).efficiency >= 0.95 and len(work) <= 24


def test_waves_whose_lanes_share_nearly_everything_stay_whole():
    """Half a wave would take nearly as long."""
    spec = spec_of({"front": ["a", "b"], "end": ["a", "b"], "sites": "same", "methods": ["hint"]})
    assert len(plan(spec, workers=3).waves) == 4
