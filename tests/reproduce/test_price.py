"""Prices: hand-counted multiply-adds, and nothing counted twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from fula_fast.donors.obtain import obtain_donor, open_source
from fula_fast.reproduce import price as pricing
from fula_fast.reproduce import resolve
from fula_fast.reproduce.drivers import donor_table, ranks
from fula_fast.reproduce.runner import driver_of
from fula_fast.study.donor_spec import DonorSpec
from fula_fast.study.facts import DonorFacts
from fula_fast.study.resources import Resources

NOWHERE = Path("no-such-folder")
FACTS = DonorFacts("d", (3, 8, 8), 10, ("1",), ((4, 8, 8),), (100,), (0,), 20)


def test_a_donors_training_is_three_passes_per_image_and_epoch():
    plain = DonorSpec(model="resnet18", epochs=5)
    assert pricing.donor_flops(plain, FACTS, 1000) == 3 * 120 * 1000 * 5
    robust = DonorSpec(model="resnet18", epochs=5, adversarial={"steps": 10, "alpha": 0.5})
    assert pricing.donor_flops(robust, FACTS, 1000) == (3 + 10) * 120 * 1000 * 5
    assert pricing.donor_flops(DonorSpec(model="resnet18", untrained=True), FACTS, 1000) == 0


def test_donors_are_priced_once_and_shared_sweeps_not_again():
    trained: set[str] = set()
    first = pricing.price(resolve("fig8", "paper", NOWHERE), trained)
    assert first.donors == ("imagenet_0", "cifar10_0", "cifar10_1")
    second = pricing.price(resolve("fig10", "paper", NOWHERE), trained)
    assert (second.donors, second.donor_work) == ((), 0)
    assert second.cells == 3 * 81 * 4 * 3  # pairs, sites, methods, seeds
    again = pricing.price(resolve("fig29", "paper", NOWHERE), trained, shared=True)
    assert (again.cells, again.work) == (0, 0)


def test_what_is_missing_is_priced_all_the_same():
    found = pricing.price(resolve("mislead-modalities", "paper", NOWHERE), set())
    assert found.work > 1e12 and len(found.missing) == 3
    assert found.donors == ("images", "audio", "stylised")
    assert found.cells == 9 * 6 * 3  # pairs, sites, seeds


def test_donors_trained_before_cost_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FULA_CACHE", str(tmp_path))
    experiment = resolve("fig9", "smoke", NOWHERE)
    first = pricing.price(experiment, set(), cached=pricing.in_cache)
    assert (len(first.donors), first.cached) == (3, 0) and first.donor_work > 0
    donor = experiment.sweeps[0].spec.donors["cifar10_1"]
    made = obtain_donor(donor, open_source(donor.data), cache_dir=tmp_path / "donors")
    assert made.trained
    again = pricing.price(experiment, set(), cached=pricing.in_cache)
    assert "cifar10_1" not in again.donors and (len(again.donors), again.cached) == (2, 1)
    assert 0 < again.donor_work < first.donor_work


def test_only_receivers_of_noise_are_trained():
    assert pricing.price(resolve("mislead-noise", "smoke", NOWHERE), set()).donors == ("digit",)


def test_the_table_adds_up_and_tells_its_rate(monkeypatch):
    monkeypatch.setattr(pricing, "speed", lambda device, precision: 1e9)
    prices = [
        pricing.Price("one", "Fig. 1", 10, 60e9, 0, (), ()),
        pricing.Price("two", "Fig. 2", 5, 0, 3600e9, ("d",), ("cifar10: none",)),
    ]
    *lines, note = pricing.table_of(prices, Resources("cpu", "fp32", 1)).splitlines()
    assert [line.split()[0] for line in lines] == ["experiment", "one", "two", "total"]
    assert "1:00" in lines[1] and "1:00:00" in lines[2] and "cifar10: none" in lines[2]
    assert " 15 " in lines[3] and "1:01:00" in lines[3]
    assert "1 GFLOP/s" in note


def test_steps_cost_time_of_their_own_on_a_cpu(monkeypatch):
    monkeypatch.setattr(pricing, "speed", lambda device, precision: 1e9)
    small = pricing.price(resolve("mislead-noise", "smoke", NOWHERE), set())
    assert small.steps == 2 * 2 * 10  # sites, radii, 320 images in batches of 32
    line = pricing.table_of(
        [pricing.Price("one", "", 1, 0, 0, (), (), steps=4000)], Resources("cpu", "fp32", 1)
    ).splitlines()[1]
    assert "1:00" in line
    swept = pricing.price(resolve("fig9", "smoke", NOWHERE), set())
    assert swept.steps > 0


def test_the_probe_measures_something():
    assert pricing.speed("cpu", "fp32") > 1e6


def test_attacks_cost_passes_over_the_attacked_images():
    sets = [[], ["evaluation.robust=pgd-10", "evaluation.robust_images=20"]]
    sweeps = [
        resolve("fig9", "smoke", NOWHERE, ["grid.sites=[9]", "grid.subset=['all']", *s]).sweeps[0]
        for s in sets
    ]
    without, attacked = (pricing._evaluation(sweep, sweep.plan().cells) for sweep in sweeps)
    assert attacked / without == pytest.approx((100 + 3 * 10 * 20) / 100)


@pytest.mark.parametrize(
    "attack, steps",
    [("none", 0), ("pgd-7", 7), ("apgd20", 40), ("autoattack-rand", 200), ("apgd-t", 900)],
)
def test_table_1_is_priced_by_its_attack(attack, steps):
    experiment = resolve("table1", "paper", NOWHERE, [f"options.attack={attack}"])
    first, *_ = donor_table.tasks(experiment)
    per_image = first.flops / experiment.options["images"]
    assert per_image == pytest.approx(3 * steps * 1.11e9, rel=0.02)  # ResNet-18's at 32x32


def test_shared_sweeps_are_named_in_the_table(monkeypatch):
    monkeypatch.setattr(pricing, "speed", lambda device, precision: 1e9)
    found = pricing.price(resolve("fig15", "smoke", NOWHERE), set(), shared=True)
    assert "as fig4" in pricing.table_of([found], Resources("cpu", "fp32", 1))


def test_what_cells_decide_is_not_kept():
    tasks = ranks.tasks(resolve("mislead-colour", "smoke", NOWHERE))
    assert [task.key for task in tasks if not task.kept] == ["stitches"]
    assert all(task.flops > 0 for task in tasks if task.kept)


def test_a_limit_of_images_is_priced():
    """The driver's tasks, too: half the images cost half, whichever of the limits says so."""
    whole, half = (
        resolve("information", "small", NOWHERE, [f"data.train_images={n}", "options.images=2560"])
        for n in (2560, 1280)
    )
    assert [e.sweeps[0].data.train_images for e in (whole, half)] == [2560, 1280]
    third = resolve("information", "small", NOWHERE, ["options.images=1280"])
    costs = [sum(t.flops for t in driver_of(e).tasks(e)) for e in (whole, half, third)]
    assert costs[1:] == pytest.approx([costs[0] / 2] * 2)
