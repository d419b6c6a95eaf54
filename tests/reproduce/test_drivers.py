"""Drivers: the models they put together, the inputs they search, the labels they shift."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fula_fast import stitch
from fula_fast.donors.donor import fresh_model
from fula_fast.donors.obtain import open_source
from fula_fast.errors import FulaError
from fula_fast.pipelines import ImageSet, Source
from fula_fast.progress import Progress
from fula_fast.reproduce import load_recipe, recipe_names, resolve
from fula_fast.reproduce.claims import FAILS, HOLDS, verdicts
from fula_fast.reproduce.drivers import (
    autoencoder,
    invariance,
    noise,
    offset,
    penultimate,
    ranks,
    sheets,
)  # fmt: skip
from fula_fast.reproduce.evidence import gathered
from fula_fast.reproduce.lab import Lab
from fula_fast.reproduce.runner import driver_of
from fula_fast.study.donor_spec import DataSpec, DonorSpec
from fula_fast.study.protocol import Attack, protocol
from fula_fast.study.resources import Resources

NOWHERE = Path("no-such-folder")
DRIVEN = [n for n in recipe_names() if resolve(n, "smoke", NOWHERE).recipe.driver]


@pytest.fixture(scope="module")
def model():
    shape = {"num_classes": 10, "input_shape": (3, 8, 8)}
    return fresh_model("resnet18", seed=3, options={"width": 4}, **shape).eval()


@pytest.mark.parametrize("name", DRIVEN)
@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_tasks_have_their_own_files_and_are_known_without_data(name, scale):
    experiment = resolve(name, scale, NOWHERE)
    tasks = driver_of(experiment).tasks(experiment)
    assert tasks and len({task.key for task in tasks}) == len(tasks)
    assert all(Path(task.key).name == task.key and task.flops >= 0 for task in tasks)


def test_a_receiver_behind_a_site_answers_as_the_whole_does(model):
    x = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        for site in (1, 5, 9):
            rest = noise.behind(model, site)
            activation = model.run(x, 0, site)
            assert rest.input_shape == tuple(activation.shape[1:]) == rest.site_shapes[0]
            torch.testing.assert_close(rest(activation), model(x), rtol=0, atol=0)
            assert rest.num_sites == model.num_sites - site + 1


def test_the_noise_front_hands_its_input_on():
    front = noise.through((7, 2, 2), 10)
    x = torch.rand(3, 7, 2, 2)
    assert front.run(x, 0, 1) is x and front.site_shapes == ((7, 2, 2),)


def test_the_search_finds_inputs_with_the_same_representation(model):
    draw = torch.Generator().manual_seed(0)
    x, start = (torch.rand(6, 3, 8, 8, generator=draw) for _ in range(2))

    def distances(inputs):
        with torch.no_grad():
            a, b = (model.run(v, 0, 3).flatten(1) for v in (inputs, x))
        return (a - b).norm(dim=1) / b.norm(dim=1)

    found, left = invariance.search(model, 3, x, start, 60)
    torch.testing.assert_close(left, distances(found))
    assert (left < 0.5 * distances(start)).all()
    assert found.min() >= 0 and found.max() <= 1 and (found - start).abs().max() <= 60 / 255 + 1e-6


def test_one_step_of_the_search_is_one_grey_value_against_the_gradient(model):
    x, start = torch.full((1, 3, 8, 8), 0.4), torch.full((1, 3, 8, 8), 0.6)
    found, _ = invariance.search(model, 2, x, start, 1)
    moved = (found - start).abs()
    assert torch.isclose(moved, torch.tensor(1 / 255)).logical_or(moved == 0).all()
    with torch.no_grad():  # a directional derivative, from differences in float64
        double = fresh_model(
            "resnet18", seed=3, options={"width": 4}, num_classes=10, input_shape=(3, 8, 8)
        ).double().eval()  # fmt: skip
        target = double.run(x.double(), 0, 2)
        away = [
            (double.run(start.double() + t * (found - start).double(), 0, 2) - target).norm()
            for t in (0.0, 1e-3)
        ]
    assert away[1] < away[0]


def test_labels_are_shifted_by_one_class():
    images = ImageSet(np.zeros((3, 1, 1, 3), np.uint8), np.array([0, 1, 2]), ("a", "b", "c"))
    assert offset._shifted(images).labels.tolist() == [1, 2, 0]


@pytest.fixture(scope="module")
def sheet_rows(tmp_path_factory):
    """What each shortcut of Fig. 12 gives away, on 40 images of 10 classes."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    names = tuple(f"class {n}" for n in range(10))
    train = ImageSet(images, np.arange(40) % 10, names)
    lab = SimpleNamespace(
        plots=tmp_path_factory.mktemp("sheets"),
        data=lambda _: Source("made up", train, train),
        experiment=SimpleNamespace(options={"columns": 2}),
    )
    texts = load_recipe("fig12").options["shortcuts"]
    tasks = sheets.tasks(SimpleNamespace(options={"shortcuts": [*texts, "noise+random"]}))
    rows = [row for task in tasks for row in sheets.run(task, lab)]
    assert all((lab.plots / f"{task.key}.png").exists() for task in tasks)
    return {row["shortcut"]: row for row in rows}


def test_sheets_tell_one_pattern_of_each_class_from_fresh_noise(sheet_rows):
    square, noise = sheet_rows["pixel+random"], sheet_rows["noise+class"]
    assert square["patterns"] == noise["patterns"] == 10  # the first image of each class
    assert (square["patterns_per_class"], noise["patterns_per_class"]) == (1, 4)
    assert (noise["places"], noise["fresh"]) == (1, 1)
    assert square["places"] > 1.5


@pytest.mark.parametrize("name", ["fig7", "fig12"])
def test_what_is_said_of_the_sheets_holds_but_not_for_noise(sheet_rows, name):
    recipe = load_recipe(name)
    found = verdicts(recipe, gathered({"sheets": sheet_rows.values()}))
    assert {v.outcome for v in found} == {HOLDS}
    disguised = sheet_rows["noise+random"] | {"shortcut": "pixel+random"}
    found = verdicts(recipe, gathered({"sheets": [*list(sheet_rows.values())[1:], disguised]}))
    assert FAILS in {v.outcome for v in found}


def test_an_autoencoder_has_a_flat_bottleneck_and_pixels_out():
    net = autoencoder.Autoencoder(20)
    x = torch.rand(2, 1, 28, 28)
    assert net.encoder(x).shape == (2, 20)
    y = net(x)
    assert y.shape == x.shape and y.min() >= 0 and y.max() <= 1


def test_ranks_are_drawn_for_stitches_and_donors(tmp_path):
    stitches = [
        {"front": f, "end": "a", "end_site": j, "seed": s, "stitch_rank": j + s}
        for f in ("b", "c")
        for j in (1, 2)
        for s in (0, 1)
    ]
    donors = [{"donor": "b", "layer_place": j, "activation_rank": 9 - j} for j in (1, 2)]
    lab = SimpleNamespace(plots=tmp_path)
    found = ranks.pictures(lab, stitches + donors)
    assert [f.path.stem for f in found] == ["rank-of-stitches", "rank-of-donors"]
    assert all(f.path.exists() for f in found)
    assert [f.path.stem for f in ranks.pictures(lab, donors)] == ["rank-of-donors"]


def test_ranks_are_of_every_convolution_and_linear_map(model):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    test = ImageSet(images, np.zeros(40, np.int64), ("a", "b", "c"), "made up")
    spec = DonorSpec(name="d", model="resnet18", data={"source": "digits", "mean": 0, "std": 1})
    lab = SimpleNamespace(
        experiment=SimpleNamespace(
            sweeps=[SimpleNamespace(spec=SimpleNamespace(donor=lambda _: spec))]
        ),
        staged=lambda _: model,
        source=lambda _: SimpleNamespace(test=test, image_shape=(3, 8, 8), normalisation=None),
        device=torch.device("cpu"),
    )
    rows = list(ranks._donor(lab, "d"))
    layers = dict(model.named_modules())
    kinds = {type(layers[row["layer"]]) for row in rows}
    assert all(issubclass(kind, torch.nn.Conv2d | torch.nn.Linear) for kind in kinds)
    assert len(rows) == sum(
        isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in layers.values()
    )
    seen = {}
    for row in rows:
        layers[row["layer"]].register_forward_hook(
            lambda _, __, out, name=row["layer"]: seen.update({name: out.flatten(1).double()})
        )
    with torch.no_grad():
        model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    for row in rows:
        values = np.linalg.svd(np.cov(seen[row["layer"]].numpy().T), compute_uv=False)
        assert row["activation_rank"] == (values > 1e-3 * values[0]).sum()
        assert row["features"] == len(values)
    assert [row["layer_place"] for row in rows] == list(range(1, len(rows) + 1))


def test_unlike_networks_are_compared_at_corresponding_sites():
    experiment = resolve("invariance", "smoke", NOWHERE, front="vit_tiny")
    assert [t.arguments["sites"] for t in invariance.tasks(experiment)] == [(2, 2), (12, 9)]


STAGED = {"name": "ffm-tlm", "stages": [{"fula": 1, "weighting": "last"}, {"tlm": 1}]}
MIXED = {"name": "both", "hint": 1, "tlm": 2, "combine": "pcgrad"}


def test_methods_of_a_driver_are_those_of_a_grid(model, tmp_path):
    """Stages and combined gradients, against single stitches trained one at a time."""
    source = open_source(DataSpec(source="digits", size=8, train_images=150, test_images=60))
    end = fresh_model(
        "resnet18", seed=4, options={"width": 4}, num_classes=10, input_shape=(3, 8, 8)
    ).eval()
    experiment, rule = resolve("invariance", "smoke", NOWHERE), {"epochs": 2, "batch_size": 50}
    rule |= {"bn": "eval", "crop_padding": 0, "flip": False, "dm_samples": 50}
    lab = Lab(experiment, tmp_path, Resources("cpu", "fp64", 2**30), Progress())
    options = {"methods": ["hint", STAGED, MIXED], "seeds": [0, 3]}
    names = {"front": "a", "end": "b"}
    rows = invariance._rows(
        lab, model, end, (3, 5), source, source.train, protocol("fula-v2", **rule), names, options
    )
    asked = {(m, s) for s in (0, 3) for m in ("hint", "ffm-tlm", "both")}
    assert len(rows) == 6 and {(r["method"], r["seed"]) for r in rows} == asked
    for row in rows:
        method = {"hint": "hint", "ffm-tlm": STAGED, "both": MIXED}[row["method"]]
        asked = (
            {k: v for k, v in method.items() if k != "name"} if row["method"] != "hint" else method
        )
        alone = stitch(
            model, end, 3, 5, source, asked, seed=row["seed"], precision="fp64", quiet=True, **rule
        )
        assert row["term_stitch"] == pytest.approx(alone.term_stitch, rel=1e-6)
        assert row["accuracy"] == pytest.approx(alone.accuracy, abs=1e-9)


@pytest.mark.parametrize(
    "methods, said",
    [
        ("[{name='x', stages=[{fula=1, epochs=3}, {tlm=1, epochs=3}]}]", "sum to 3 . 3 = 6, but epo"),
        ("[{name='x', hint=1, combine='pcgrad'}]", "needs two methods that are minimised together"),
        ("['hint', 'hint']", "methods lists 'hint' twice"),
        ("['hints']", "did you mean 'hint'"),
    ],
)  # fmt: skip
def test_methods_that_do_not_fit_are_refused_before_any_work(methods, said):
    with pytest.raises(FulaError, match=said) as caught:
        invariance.tasks(resolve("invariance", "smoke", NOWHERE, [f"options.methods={methods}"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DRIVEN)
def test_staged_methods_of_the_grid_reach_the_sweeps_or_are_refused_in_a_line(name):
    asked = ["grid.methods=[{name='x', stages=[{fula=1}, {tlm=1}]}]", "protocol.epochs=2"]
    if not load_recipe(name).sweeps:
        with pytest.raises(FulaError, match="has nothing that grid.methods.* would change; leave"):
            resolve(name, "smoke", NOWHERE, asked)
        return
    experiment = resolve(name, "smoke", NOWHERE, asked)
    for sweep in experiment.sweeps:
        cells = sweep.plan().cells
        assert {cell.method for cell in cells} == {"x"}
        assert all(len(cell.stages) == 2 or cell.end_site == 9 for cell in cells)
    assert driver_of(experiment).tasks(experiment)


def test_penultimate_layers_are_compared_on_adversarial_images_by_both_measures(model):
    """Against the two measures of the same matrices at once, of images attacked here."""
    from fula_fast.attacks.pgd import pgd
    from fula_fast.engine.solo import StitchedModel
    from fula_fast.measures.matrices import between
    from fula_fast.stitching.stitch import Stitch

    other = fresh_model(
        "resnet18", seed=4, options={"width": 4}, num_classes=10, input_shape=(3, 8, 8)
    ).eval()
    torch.manual_seed(0)
    stitch = Stitch(model.site_shapes[2], other.site_shapes[2])
    torch.nn.init.normal_(stitch.weight, std=0.5)
    stitched = StitchedModel(model, other, 3, 3, stitch).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)
    test = ImageSet(pixels, np.arange(150) % 10, tuple("abcdefghij"), "made up")
    rule = protocol("fula-v2", attack=Attack(steps=1, random_start=False))
    spec = SimpleNamespace(donor=lambda name: name, data="d", base_protocol=rule)
    lab = SimpleNamespace(
        experiment=SimpleNamespace(
            sweeps=[SimpleNamespace(spec=spec)], options={"steps": 1, "images": 150}
        ),
        staged=lambda name: {"a": model, "b": other}[name],
        source=lambda _: SimpleNamespace(test=test),
        closed_form=lambda *_: stitched,
        device=torch.device("cpu"),
    )
    asked = {"front": "a", "end": "b", "sites": (3, 3), "seed": 0}
    (row,) = penultimate.run(SimpleNamespace(arguments=asked), lab)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    attacked = pgd(stitched, x, torch.arange(150) % 10, rule.attack)
    with torch.no_grad():
        h, g = stitched.tail.run(stitched.at_stitch(attacked), 3), other.run(attacked)
        pair = [y.mean((2, 3)) for y in (h, g)]
    assert row["cka"] == pytest.approx(between("linear_cka", *pair), abs=1e-4)
    assert row["cka_unbiased"] == pytest.approx(between("unbiased_linear_cka", *pair), abs=1e-4)
