"""Random crops of another size, and the recipe for ImageNet that trains on them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from fula_fast.donors.donor import ensure_donor, recipe_of
from fula_fast.donors.obtain import input_of, obtain_donor, open_source
from fula_fast.donors.training import RECIPES
from fula_fast.donors.training_run import TrainingRun
from fula_fast.donors.views import Views, crops
from fula_fast.pipelines import Input, Normalisation
from fula_fast.study.donor_spec import DonorSpec
from fula_fast.study.facts import DataFacts, donor_facts

pytest.importorskip("kornia")

CLASSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders of eight images of one colour for each class, 24x20 pixels."""
    root = tmp_path_factory.mktemp("classes")
    for split in ("train", "val"):
        for label in range(CLASSES):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(8):
                colour = [30 + 5 * number] * 3
                colour[label] += 150
                Image.new("RGB", (24, 20), tuple(colour)).save(
                    root / split / f"class{label}" / f"{number}.png"
                )
    return root


def spec(folder, **more):
    return DonorSpec(
        name="a", model="resnet18", width=4, recipe="imagenet", crop_padding=4, flip=True,
        data={"source": "imagefolder", "size": 20, "options": {"path": str(folder)}},
        input={"size": 16, "resize": 18, "mean": 0.4, "std": 0.25}, **more,
    )  # fmt: skip


def test_the_schedule_is_torchvisions():
    """references/classification: StepLR of 30 epochs, gamma 0.1, of SGD without Nesterov."""
    recipe, steps = RECIPES["imagenet"], 7
    weight = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(theirs, step_size=30, gamma=0.1)
    for epoch in range(90):
        for step in range(steps):
            wanted = theirs.param_groups[0]["lr"]
            assert recipe.rate(epoch * steps + step, steps) == pytest.approx(wanted, rel=1e-9)
        theirs.step()
        schedule.step()
    assert (recipe.epochs, recipe.batch_size) == (90, 256)


def test_a_training_on_class_folders_reads_back_its_schedule(folder, tmp_path, monkeypatch):
    seen, update = [], TrainingRun.update

    def spied(self, loss, rate):
        update(self, loss, rate)
        (group,) = self.optimiser.param_groups
        seen.append({k: group[k] for k in ("lr", "momentum", "nesterov", "weight_decay")})

    monkeypatch.setattr(TrainingRun, "update", spied)
    donor = spec(folder, epochs=6, batch_size=8)
    source = open_source(donor.images)
    found = obtain_donor(donor, source, cache_dir=tmp_path)
    rest = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}
    rates = [lr for lr in (0.1, 0.01, 0.001) for _ in range(2 * 3)]
    assert [s["lr"] for s in seen] == pytest.approx(rates)
    assert all({k: s[k] for k in rest} == rest for s in seen)
    assert found.staged.input_shape == (3, 16, 16) and found.metrics.test_accuracy > 0.6
    assert found.recipe["smallest_crop"] == 0.08 and found.recipe["nesterov"] is False


def test_the_same_seed_gives_the_same_weights(folder, tmp_path):
    def trained(place, **more):
        donor = spec(folder, epochs=1, batch_size=8, **more)
        source = open_source(donor.images)
        recipe = recipe_of(donor, source, input_of(donor, source))
        return ensure_donor(recipe, source, cache_dir=tmp_path / place).content_hash

    assert trained("a") == trained("b") != trained("c", seed=1)


def test_older_recipes_keep_their_donors_names(folder):
    """What only this recipe sets is in no other one's key."""
    donor = spec(folder)
    source = open_source(donor.images)
    plain = recipe_of(donor.model_copy(update={"recipe": "paper"}), source)
    assert not {"nesterov", "smallest_crop"} & set(plain)


@pytest.mark.parametrize("classes", [100, 1000])
def test_a_resnet50_of_imagenets_size(classes):
    """224 pixels out of images kept at 256, for either number of classes."""
    donor = DonorSpec(
        name="a", model="resnet50", stem="stock", recipe="imagenet",
        input={"size": 224, "resize": 256, "mean": [0.485, 0.456, 0.406],
               "std": [0.229, 0.224, 0.225]},
    )  # fmt: skip
    facts = donor_facts(donor, DataFacts((3, 256, 256), classes, 1_281_167), "post_relu")
    assert facts.input_shape == (3, 224, 224) and facts.classes == classes
    assert facts.weights == 25_557_032 - (1000 - classes) * 2049  # torchvision's count


def ramps(side: int) -> torch.Tensor:
    """(1, 3, side, side): a pixel's column and row, from 0 to 1."""
    at = (torch.arange(side) + 0.5) / side
    return torch.stack(
        [at.expand(side, side), at[:, None].expand(side, side), 0 * at + at[:, None]]
    )[None]


def test_crops_are_of_the_shares_that_they_should_be_of():
    """Where a crop lies is read off an image of coordinates."""
    side, out, count = 96, 16, 400
    view = Views(nn.Sequential(*crops((3, out, out), smallest=0.08, flip=True)), Input(), 0)
    found = view(ramps(side).expand(count, -1, -1, -1).contiguous())
    assert found.shape == (count, 3, out, out)
    slope = (out - 1) / out  # between the centres of the first and last pixel
    width = (found[:, 0, 8, -1] - found[:, 0, 8, 0]) / slope
    height = (found[:, 1, -1, 8] - found[:, 1, 0, 8]) / slope
    area, ratio = width.abs() * height, width.abs() / height
    assert 0.05 < float(area.min()) < 0.16 and 0.85 < float(area.max()) < 1.1
    assert 0.6 < float(ratio.min()) < 0.85 and 1.2 < float(ratio.max()) < 1.6
    assert abs(float(area.mean()) - 0.54) < 0.06  # uniform in [0.08, 1]
    assert 0.4 < float((width < 0).double().mean()) < 0.6


def test_views_are_normalised_and_no_two_calls_alike():
    given = Input(None, Normalisation((0.5,) * 3, (0.25,) * 3))
    view = Views(nn.Sequential(*crops((3, 8, 8), smallest=0.08, flip=False)), given, 1)
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    first, second = view(x), view(x)
    assert not torch.equal(first, second) and first.min() < -1 and first.max() > 1
    again = Views(nn.Sequential(*crops((3, 8, 8), smallest=0.08, flip=False)), given, 1)
    assert torch.equal(again(x), first) and torch.equal(again(x), second)


@pytest.mark.parametrize("more", [{"shortcut": "pixel+class"}, {"adversarial": True}])
def test_what_crops_would_spoil_is_refused(folder, more):
    with pytest.raises(ValueError, match="it takes neither shortcut nor adversarial"):
        spec(folder, **more)
