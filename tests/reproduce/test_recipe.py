"""Recipes: all of them are whole, share what they should, and resolve without data or torch."""

from __future__ import annotations

import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

from fula_fast.cli.reproduce import reproduce
from fula_fast.errors import FulaError
from fula_fast.methods import METHODS
from fula_fast.reproduce import SCALES, load_recipe, recipe_names, resolve
from fula_fast.reproduce.claims import TESTS
from fula_fast.reproduce.driver_options import Options
from fula_fast.reproduce.experiment import Unsuitable
from fula_fast.reproduce.plots import KINDS
from fula_fast.reproduce.recipe import _table, merged, tables_in
from fula_fast.reproduce.runner import driver_part
from fula_fast.study.spec import parse_table

PAPER = [f"fig{n}" for n in (*range(3, 31),) if n not in (1, 2)]
OTHERS = ["colour", "noise", "modalities", "autoencoder"]
NOWHERE = Path("no-such-folder")


def test_every_experiment_of_both_papers_has_a_recipe():
    others = {"table1", "invariance", "information", "foundation", "sanity", "null", "measures"}
    assert set(recipe_names()) == {*others, *PAPER, *(f"mislead-{o}" for o in OTHERS)}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_tests_and_how(name):
    recipe = load_recipe(name)
    assert recipe.title and recipe.figure and recipe.claims
    assert {claim.test for claim in recipe.claims} <= set(TESTS)
    assert recipe.plot is None or recipe.plot.kind in KINDS
    assert recipe.sweeps or recipe.driver


@pytest.mark.parametrize("scale", SCALES)
def test_every_recipe_resolves_to_valid_specs_without_any_data(scale):
    for name in recipe_names():
        experiment = resolve(name, scale, NOWHERE)
        for sweep in experiment.sweeps:
            assert set(sweep.spec.donors) == {d for p in sweep.spec.grid.pairs for d in p}
        assert bool(experiment.missing) == (scale != "smoke" and bool(experiment.data)), name


def test_resolving_imports_no_torch():
    code = (
        "import sys; from pathlib import Path; from fula_fast.reproduce import *\n"
        "[resolve(n, 'small', Path('x')) for n in recipe_names()]; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@pytest.mark.parametrize("scale", SCALES)
def test_one_donor_is_one_recipe_in_every_experiment(scale):
    """Else it would be trained again; the appendix's other architectures are other donors."""
    seen: dict[str, set[str]] = {}
    for name in recipe_names():
        if not load_recipe(name).model:
            for sweep in resolve(name, scale, NOWHERE).sweeps:
                for donor, spec in sweep.spec.donors.items():
                    seen.setdefault(donor, set()).add(repr(spec.recipe_identity()))
    assert {donor: len(found) for donor, found in seen.items() if len(found) > 1} == {}
    assert {"cifar10_0", "imagenet_0_robust", "colour-only", "audio"} <= set(seen)


@pytest.mark.parametrize("name, of", [("fig15", "fig4"), ("fig26", "fig9"), ("fig16", "fig5")])
def test_a_repetition_in_the_appendix_shares_its_sweeps(name, of):
    assert load_recipe(name).run_name == of
    specs = [resolve(n, "small", NOWHERE).sweeps[0].spec for n in (name, of)]
    assert specs[0] == specs[1]
    assert load_recipe(name).figure != load_recipe(of).figure


@pytest.mark.parametrize("scale", SCALES)
def test_who_shares_a_run_makes_the_same_sweeps(scale):
    """Under one `--out` they have one folder, which holds one spec."""
    runs: dict[str, dict[str, list]] = {}
    for name in recipe_names():
        experiment = resolve(name, scale, NOWHERE)
        specs = [sweep.spec for sweep in experiment.sweeps]
        runs.setdefault(experiment.recipe.run_name, {})[name] = specs
    shared = {run: specs for run, specs in runs.items() if len(specs) > 1}
    assert {"fig4", "fig5", "fig10"} <= set(shared)
    for run, specs in shared.items():
        owned = specs.pop(run)
        assert {name for name, own in specs.items() if own and own != owned} == set()


def test_other_architectures_of_the_appendix_are_runs_of_their_own():
    plain, other = (resolve(n, "paper", NOWHERE).sweeps[0].spec for n in ("fig10", "fig28"))
    assert plain.donors["cifar10_0"].residuals is None
    assert other.donors["cifar10_0"].residuals is False
    assert plain.name != other.name
    assert resolve("fig30", "paper", NOWHERE).sweeps[0].spec.donors["cifar10_0"].model == "resnet34"


def test_the_preprint_is_planned_at_its_own_scale():
    spec = resolve("fig10", "paper", NOWHERE).sweeps[0].spec
    rule, donor = spec.base_protocol, spec.donors["cifar10_0"]
    assert (rule.preset, rule.epochs, rule.batch_size, rule.dm_samples) == ("fula-v1", 30, 128, 100)
    assert (donor.recipe, donor.width, donor.epochs) == ("paper", None, None)
    assert set(spec.grid.methods) == set(METHODS) - {"dm"}
    assert resolve("fig4", "paper", NOWHERE).sweeps[0].spec.base_protocol.attack.steps == 10


def test_small_runs_have_three_seeds_and_demand_accuracy_of_their_donors():
    for name in ("fig8", "fig10", "mislead-colour", "mislead-modalities"):
        spec = resolve(name, "small", NOWHERE).sweeps[0].spec
        assert len(spec.grid.seeds) >= 3
        trained = [d for d in spec.donors.values() if not d.untrained and not d.permute_labels]
        assert all(donor.min_accuracy for donor in trained)


def test_overrides_reach_every_sweep_and_the_driver():
    experiment = resolve("fig3", "smoke", NOWHERE, ["protocol.epochs=7"])
    assert {s.spec.base_protocol.epochs for s in experiment.sweeps} == {7}
    assert resolve("mislead-noise", "smoke", NOWHERE, ["options.train=64"]).options["train"] == 64


@pytest.mark.parametrize(
    "name, lacks",
    [("fig8", 0), ("fig19", 1), ("fig20", 1), ("fig24", 1), ("fig4", 1), ("fig5", 0), ("fig9", 0)],
)
def test_an_inherited_claim_about_pairs_that_a_figure_lacks_is_not_its_own(name, lacks):
    recipe = load_recipe(name)
    written = _table(name)["claims"]
    assert len(recipe.claims) == len(written) - lacks
    fronts = {front for front, _ in recipe.grid["pairs"]}
    named = {t["front"] for c in recipe.claims for t in tables_in(c.args) if "front" in t}
    assert named <= fronts


@pytest.mark.parametrize("name", recipe_names())
def test_a_claim_rests_on_a_claim_of_its_recipe_and_fits_its_test(name):
    claims = load_recipe(name).claims
    assert {c.premise for c in claims if c.premise} <= {c.key for c in claims if c.key}
    for claim in claims:
        bounds = {"more_than", "less_than", "within"} & set(claim.args)
        signature(TESTS[claim.test]).bind(
            None, **{k: v for k, v in claim.args.items() if k not in bounds}
        )
        assert len(bounds) <= 1 and len(set(claim.each)) == len(claim.each)


@pytest.mark.parametrize("name", ["fig4", "fig8", "fig9", "fig10"])
def test_a_claim_about_several_methods_at_once_is_of_each(name):
    """A mean over methods would let one carry the other; only the lesser side may be a mean."""
    for claim in load_recipe(name).claims:
        about = next(t for t in tables_in(claim.args) if "column" in t)
        assert not isinstance(about.get("method"), list) or "method" in {*claim.each} | {
            claim.args.get("by")
        }


def test_checks_of_our_own_are_marked():
    own = {n: [c.ours for c in load_recipe(n).claims] for n in recipe_names()}
    assert all(own["sanity"]) and all(own["invariance"])
    assert sum(own["mislead-colour"]) == 2 and sum(own["mislead-autoencoder"]) == 1
    assert not any(any(own[name]) for name in PAPER)


def test_table_1_is_stated_for_every_donor_and_architecture():
    recipe = load_recipe("table1")
    assert set(recipe.stated) == {m["label"] for m in recipe.options["models"]}
    assert all(set(donors) == set(recipe.donors) for donors in recipe.stated.values())
    assert recipe.stated["ResNet34"]["cifar10_0_robust"] == (0.8669, 0.4289)


@pytest.mark.parametrize(
    "name, model, sites",
    [
        ("fig8", "torchvision:resnet18", [2, 4, 8]),  # of 9 sites 2, 5, 9
        ("fig9", "vit_tiny", [3, 12]),  # 2, 9
        ("mislead-modalities", "vgg16", [2, 6]),  # of 6
    ],
)
def test_listed_sites_are_taken_at_the_relative_depths_of_another_end(name, model, sites):
    for sweep in resolve(name, "smoke", NOWHERE, ["size=32"], end=model).sweeps:
        assert [s[-1] for s in sweep.spec.grid.sites] == sites
    pairs = resolve("fig11", "smoke", NOWHERE, front="vit_tiny").sweeps[0].spec.grid.sites
    assert [tuple(p) for p in pairs] == [(1, 3), (4, 1), (8, 2), (3, 6)]  # fronts of 12


def test_sites_by_name():
    """Of the model that is asked for, in an experiment's options and in its grid."""
    drawn = resolve("sanity", "smoke", NOWHERE, ["options.sites=['layer1.0', 3]"])
    assert drawn.options["sites"] == [2, 3]
    fitted = resolve(
        "fig8", "smoke", NOWHERE, ["size=32", "grid.sites=['features.5']"], end="vgg16"
    )
    assert all(sweep.spec.grid.sites == (("features.5",),) for sweep in fitted.sweeps)


def test_receivers_of_noise_are_ends_and_their_sites_are_checked():
    experiment = resolve("mislead-noise", "smoke", NOWHERE, end="vit_tiny")
    assert {table["model"] for table in experiment.donors.values()} == {"vit_tiny"}
    assert experiment.options["sites"] == [4, 12]
    longer = resolve("mislead-noise", "smoke", NOWHERE, ["donors.digit.epochs=9"])
    assert longer.donors["digit"]["epochs"] == 9


def test_a_size_is_that_of_data_and_donors_alike():
    (sweep,) = resolve("fig9", "small", NOWHERE, ["size=32"], front="vgg16").sweeps
    assert sweep.spec.data.size == sweep.spec.donors["imagenet_0"].data.size == 32
    assert sweep.data.shape == (3, 32, 32)


@pytest.mark.parametrize(
    "name, scale, model, side",
    [
        ("fig8", "small", "vgg16", 32),  # 16 pixels are one before its last pooling
        ("fig8", "small", "timm:vit_tiny_patch16_224", 32),  # 16 pixels are one patch
        ("fig8", "small", "vit_tiny", 16),
        ("fig8", "small", "resnet34", 16),
        ("mislead-colour", "small", "vgg16", 32),
        ("mislead-noise", "smoke", "vgg16", 32),
        ("fig10", "paper", "vgg16", 32),
    ],
)
@pytest.mark.slow
def test_images_are_as_large_as_an_architecture_needs_and_it_is_said(name, scale, model, side):
    front = None if name == "mislead-noise" else model
    experiment = resolve(name, scale, NOWHERE, front=front, end=model)
    own = resolve(name, scale, NOWHERE)
    sides = {chosen.table["size"] for chosen in experiment.data.values()}
    assert sides == {side}
    enlarged = sides != {chosen.table["size"] for chosen in own.data.values()}
    said = [note for note in experiment.notes if note.startswith(f"images of {side}x{side} pixels")]
    assert bool(said) == enlarged


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipes_own_options_are_valid(name):
    for scale in SCALES:
        parse_table(Options, resolve(name, scale, NOWHERE).options, "options")


def test_half_the_margin_is_asked_of_another_architecture():
    experiment = resolve("fig8", "small", NOWHERE, front="vit_tiny")
    donors = experiment.sweeps[0].spec.donors
    own = resolve("fig8", "small", NOWHERE).sweeps[0].spec.donors
    assert donors["cifar10_0"].min_accuracy == own["cifar10_0"].min_accuracy == 0.65
    assert donors["cifar10_1"].min_accuracy == 0.375  # 0.1 + (0.65 - 0.1) / 2
    assert any("37.5% asked for 65.0%" in note for note in experiment.notes)


def test_another_front_leaves_the_end_as_it_is_also_where_both_were_one_donor():
    spec = resolve("fig10", "smoke", NOWHERE, front="vgg16").sweeps[0].spec
    assert spec.grid.pairs[0] == ("cifar10_0-front", "cifar10_0")
    assert spec.donors["cifar10_0-front"].model == "vgg16"
    assert spec.donors["cifar10_0-front"].width == spec.donors["cifar10_0"].width
    assert {spec.donors[end].model for _, end in spec.grid.pairs} == {"resnet18"}
    token = resolve("fig10", "smoke", NOWHERE, front="vit_tiny", end="vit_tiny").sweeps[0].spec
    assert token.donors["cifar10_0"].build_options() == {}
    assert token.grid.pairs[0] == ("cifar10_0", "cifar10_0")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("fig01", "small"), "unknown experiment 'fig01'"),
        (("fig10", "large"), "unknown scale 'large'"),
        (("mislead-noise", "small", NOWHERE, ["options.radius=1"]), "no options.radius"),
        (("fig10", "small", NOWHERE, ["grid.method=dm"]), "unknown key 'method'"),
        (
            ("table1", "small", NOWHERE, ["protocol.lr=1"]),
            "nothing that protocol.lr=1 would change",
        ),
        (("table1", "small", NOWHERE, ["donors.digit.epochs=1"]), "nothing that donors.digit"),
        (("table1", "small", NOWHERE, [], None, "vgg16"), "nothing that --end would change"),
        (("mislead-noise", "small", NOWHERE, [], "vgg16"), "nothing that --front would change"),
        (
            ("fig7", "small", NOWHERE, ["options.columns=abc"]),
            "columns = 'abc': should be a valid integer",
        ),
        (
            ("mislead-noise", "small", NOWHERE, ["options.radii=['a']"]),
            r"radii\[0\] = 'a': should be a valid number",
        ),
        (("mislead-noise", "small", NOWHERE, ["options.receivers=['digt']"]), "mean 'digit'"),
        (("sanity", "small", NOWHERE, ["options.sites=[10]"]), "10 is out of range"),
        (("sanity", "small", NOWHERE, ["options.sites=['layer1.2']"]), "mean 'layer1.1'"),
        (("sanity", "small", NOWHERE, ["options.sites=[2.5]"]), "2.5 is no site"),
        (("sanity", "small", NOWHERE, ["options.a.b=3"]), "no options.a.b; valid: donor"),
        (("sanity", "small", NOWHERE, ["options.donor=imagenet_0"]), "options.donor: no donor"),
        (("sanity", "small", NOWHERE, ["options.seeds=[true]"]), "true and false are for switches"),
        (("invariance", "small", NOWHERE, ["options.methods=['hnt']"]), "unknown method 'hnt'"),
        (("invariance", "small", NOWHERE, ["options.steps=-3"]), "greater than or equal to 1"),
        (("mislead-noise", "small", NOWHERE, ["options.radii=[]"]), "at least 1 item"),
        (("mislead-noise", "small", NOWHERE, ["options.lr=1e30"]), "less than or equal to"),
        (("mislead-autoencoder", "small", NOWHERE, ["size=16"]), "nothing that size=16 would"),
        (("mislead-autoencoder", "small", NOWHERE, ["options.data=['mnst']"]), "mean 'mnist'"),
        (("fig7", "small", NOWHERE, ["options.shortcuts=['x']"]), "unknown shortcut 'x'"),
        (("fig7", "small", NOWHERE, ["options.shortcuts=['none']"]), "shows nothing"),
        (("table1", "small", NOWHERE, ["options.attack=nonsense"]), "unknown attack 'nonsense'"),
        (("fig8", "small", NOWHERE, ["size=16"], "vgg16"), "--set size=N"),
        (("fig8", "small", NOWHERE, ["size=0"]), "size = 0: give the side"),
        (("fig8", "small", NOWHERE, ["size=big"]), "size = 'big': give the side"),
        (
            ("fig8", "small", NOWHERE, [], "vgg61"),
            r"unknown model 'vgg61'; did you mean 'vgg19'\?$",
        ),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(arguments, message):
    arguments = arguments if len(arguments) > 2 else (*arguments, NOWHERE)
    with pytest.raises(FulaError, match=message):
        resolve(*arguments)


def test_merging_replaces_values_and_joins_tables():
    found = merged({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}}, {"d": {"e": 2}})
    assert found == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}


@pytest.mark.parametrize("name", ["fig3", "fig6"])
def test_direct_matching_between_unlike_sites_is_refused_before_any_work(name):
    with pytest.raises(Unsuitable, match="sites of one form"):
        resolve(name, "smoke", NOWHERE, front="vit_tiny")
    alike = resolve(name, "smoke", NOWHERE, front="vit_tiny", end="vit_tiny")
    assert alike.sweeps and alike.notes == (
        "another architecture, fronts: vit_tiny, ends: vit_tiny",
    )


def test_sanity_between_unlike_networks_leaves_out_what_means_nothing_and_says_so():
    experiment = resolve("sanity", "smoke", NOWHERE, front="vit_tiny")
    parts = {sweep.name: sweep.spec for sweep in experiment.sweeps}
    assert parts["main"].grid.methods == ("hint", "slm", "tlm", "fula")
    assert {donor.model for donor in parts["identity"].donors.values()} == {"resnet18"}
    assert {donor.model for donor in parts["main"].donors.values()} == {"resnet18", "vit_tiny"}
    assert any("no dm" in note for note in experiment.notes) and len(experiment.notes) == 3


def test_all_goes_on_without_what_an_architecture_makes_meaningless(capsys):
    assert reproduce("all", "smoke", data=NOWHERE, dry_run=True, models=("vit_tiny", None)) == 0
    text = capsys.readouterr().out
    assert "fig3: left out, 'fig3' is about direct matching" in text and "fig10" in text
    with pytest.raises(FulaError, match="nosuch"):
        reproduce("all", "smoke", data=NOWHERE, dry_run=True, models=("nosuch", None))


@pytest.mark.parametrize("name", recipe_names())
def test_a_plot_and_claims_are_of_parts_that_there_are(name):
    """Else a report would lack its figure without a word."""
    recipe = load_recipe(name)
    parts = {part.name for part in recipe.sweeps}
    parts.add(driver_part(resolve(name, "smoke", NOWHERE)))
    selectors = [recipe.plot.where] if recipe.plot else []
    selectors += [table for claim in recipe.claims for table in tables_in(claim.args)]
    named = [
        n
        for t in selectors
        if "part" in t
        for n in ([t["part"]] if isinstance(t["part"], str) else t["part"])
    ]
    assert set(named) <= parts
