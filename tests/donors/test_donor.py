"""Donors: recipes, training, the find-or-train cache, and what users do wrong."""

import json
import logging
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch.nn.functional import cross_entropy

from fula_fast.donors.donor import (
    donor_at_hand,
    donor_from_checkpoint,
    donor_path,
    donor_recipe,
    ensure_donor,
    evaluate,
    fresh_model,
    recipe_hash,
    recipe_of,
    train_donor,
)
from fula_fast.donors.obtain import obtain_donor
from fula_fast.donors.training import RECIPES, DonorTraining, permuted
from fula_fast.errors import FulaError
from fula_fast.models import build, content_hash, load_checkpoint, save_checkpoint
from fula_fast.pipelines import (
    Augmentation,
    ImageSet,
    Input,
    Normalisation,
    Shortcut,
    Source,
    open_stream,
)
from fula_fast.study.donor_spec import DonorSpec
from fula_fast.study.protocol import Attack

SHAPE = (3, 8, 8)
TINY = {"num_classes": 3, "input_shape": SHAPE, "options": {"width": 4}}
FAST = {"epochs": 2, "batch_size": 16, "pad": 1, "flip": False}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tiny networks gain nothing from threads."""


def _images(count, seed):
    """Three classes told apart by the bright third of the image, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 120, (count, 8, 8, 3))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 120
    return ImageSet(images.astype(np.uint8), labels.astype(np.int64), ("a", "b", "c"))


@pytest.fixture(scope="module")
def source():
    return Source("stripes", _images(96, 0), _images(50, 1))


HOW = {"attack", "stream", "device", "precision", "progress"}


def train(model, source, **given):
    how = {key: given.pop(key) for key in HOW & given.keys()}
    return train_donor(model, source, DonorTraining(**given), **how)


def recipe_for(source, options, adversarial=None, **given):
    training = DonorTraining(**given)
    return donor_recipe(
        source, model="resnet18", options=options, training=training, adversarial=adversarial
    )


def _tiny(seed=0, **options):
    return fresh_model("resnet18", seed=seed, **{**TINY, **options})


def test_training_learns_and_reports(source):
    reports = []
    model = _tiny()
    metrics = train(model, source, **{**FAST, "epochs": 5, "pad": 0}, progress=reports.append)
    assert [r.epoch for r in reports] == [1, 2, 3, 4, 5] and reports[0].epochs == 5
    assert reports[-1].loss < reports[0].loss
    assert (metrics.train_loss, metrics.train_accuracy) == reports[-1][2:4]
    assert metrics.test_accuracy > 0.8 and metrics.epochs == 5 and metrics.seconds > 0
    assert not model.training and model.stages[0].conv1.weight.is_contiguous()


def test_metrics_are_those_of_the_returned_model(source):
    model = _tiny()
    metrics = train(model, source, **FAST)
    x = torch.from_numpy(source.test.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(source.test.labels)
    with torch.no_grad():
        logits = model(x)
    assert metrics.test_accuracy == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item()
    )
    assert metrics.test_loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)


def test_one_step_by_hand(source):
    """SGD with Nesterov momentum and decay, against torch's own functional pieces."""
    model, twin = _tiny().double(), _tiny().double()
    small = replace(source, train=_images(16, 2))
    # one step of one epoch: the one-cycle rate halfway, (1 - 0.5) / 0.8 of its peak
    rate, decay = RECIPES["fast"].lr * 0.5 / 0.8, RECIPES["fast"].weight_decay
    stream = open_stream(
        small.train, batch_size=16, seed=5, augmentation=Augmentation(1, False), dtype=torch.float64
    )
    (batch,) = stream.epoch(0)
    loss = cross_entropy(twin.train()(batch.images), batch.labels)
    names, weights = zip(*twin.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, weights)
    expected = {}
    for name, weight, grad in zip(names, weights, grads, strict=True):
        grad = grad + decay * weight
        expected[name] = weight - rate * (grad + 0.9 * grad)  # momentum buffer = first gradient
    train(model.float(), small, **{**FAST, "epochs": 1}, seed=5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name, epochs, step, expected",
    [
        ("paper", 200, 0, 0.1),
        ("paper", 200, 66 * 10 + 9, 0.1),
        ("paper", 200, 67 * 10, 0.01),
        ("paper", 200, 134 * 10, 0.001),
        ("fast", 10, 0, 0.1 * 0.005 / 0.2),
        ("fast", 10, 99, 0.1 * 0.005 / 0.8),
    ],
)
def test_schedules(name, epochs, step, expected):
    recipe = replace(RECIPES[name], epochs=epochs)
    assert recipe.rate(step, steps_per_epoch=10) == pytest.approx(expected)


def test_the_same_arguments_give_the_same_weights(source):
    hashes = []
    for seed, data_seed in ((0, 0), (0, 0), (0, 1), (1, 0)):
        model = _tiny(seed)
        train(model, source, **FAST, seed=data_seed)
        hashes.append(content_hash(model))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_fresh_models_leave_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = _tiny(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert content_hash(first) == content_hash(
        build("resnet18", num_classes=3, input_shape=SHAPE, width=4)
    )


def test_bf16_rounds_but_computes_the_same(source):
    """Two epochs at a rate too small to move: the loss of the same network in both precisions."""
    losses = [
        train(_tiny(), source, **FAST, lr=1e-6, precision=precision).train_loss
        for precision in ("fp32", "bf16")
    ]
    assert 0 < abs(losses[0] - losses[1]) < 0.01 * losses[0]


def test_the_attack_gets_the_share_of_each_batch_in_eval_mode(source):
    calls = []

    def attack(model, images, labels, index, epoch):
        assert not any(module.training for module in model.modules())
        assert torch.equal(labels, torch.from_numpy(source.train.labels)[index])
        calls.append((len(images), epoch))
        return 1 - images

    model, plain = _tiny(), _tiny()
    train(model, source, **FAST, alpha=0.3, attack=attack)
    train(plain, source, **FAST)
    assert calls == [(4, epoch) for epoch in (0, 1) for _ in range(6)]
    assert content_hash(model) != content_hash(plain)


def test_the_attacked_images_replace_the_first_of_a_batch(source):
    seen = []
    model = _tiny()
    model.stages[0].register_forward_pre_hook(lambda m, args: seen.append((m.training, *args)))
    train(
        model,
        source,
        **{**FAST, "epochs": 1},
        alpha=0.5,
        attack=lambda model, images, *rest: torch.full_like(images, 0.5),
    )
    for training, images in seen:
        assert torch.all(images[:8] == 0.5).item() == training
        if training:
            assert images[8:].var(dim=0).min() > 0


def test_adversarial_recipe_runs_pgd(source, tmp_path):
    attack = Attack(steps=2, eps=16 / 255, random_start=True)
    recipe = recipe_for(source, {"width": 4}, adversarial=attack, alpha=0.5, **FAST)
    first = ensure_donor(recipe, source, cache_dir=tmp_path / "a")
    again = ensure_donor(recipe, source, cache_dir=tmp_path / "b")
    assert first.content_hash == again.content_hash and again.trained
    plain = recipe_for(source, {"width": 4}, **FAST)
    assert ensure_donor(plain, source, cache_dir=tmp_path).content_hash != first.content_hash


def test_labels_are_permuted_not_redrawn(source):
    mixed = permuted(source.train, 3)
    assert np.array_equal(np.sort(mixed.labels), np.sort(source.train.labels))
    assert (mixed.labels != source.train.labels).any()
    assert mixed.images is source.train.images
    assert not np.array_equal(mixed.labels, permuted(source.train, 4).labels)
    clear, control = _tiny(), _tiny()
    train(clear, source, **FAST)
    train(control, source, **FAST, permute_labels=True)
    assert content_hash(clear) != content_hash(control)


def test_shortcut_and_normalisation_reach_the_images(source):
    seen = []
    model = _tiny()
    model.stages[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    train(
        model,
        source,
        **{**FAST, "epochs": 1},
        shortcut=Shortcut("pixel", "class"),
        given=Input(None, Normalisation((0.5,) * 3, (0.5,) * 3)),
    )
    assert min(x.min() for x in seen) == -1 and max(x.max() for x in seen) == 1


def test_zero_epochs_only_evaluates(source):
    model = _tiny()
    before = content_hash(model)
    metrics = train(model, source, epochs=0)
    assert content_hash(model) == before
    assert (metrics.train_accuracy, metrics.epochs) == (None, 0)
    assert metrics.test_accuracy == evaluate(model, source.test).accuracy


def _recipe(source, **changes):
    return recipe_for(source, {"width": 4}, **{**FAST, **changes})


def test_a_donor_is_trained_once(source, tmp_path):
    recipe = _recipe(source)
    first = ensure_donor(recipe, source, cache_dir=tmp_path)
    again = ensure_donor(json.loads(json.dumps(recipe)), source, cache_dir=tmp_path)
    assert first.trained and not again.trained
    assert again.metrics == first.metrics and again.content_hash == first.content_hash
    assert first.path == donor_path(tmp_path, recipe) and first.path.exists()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(first.staged(x), again.staged(x))
    other = ensure_donor(recipe, source, cache_dir=tmp_path, hook="pre_relu")
    assert not other.trained and other.staged.hook == "pre_relu"


def test_a_donor_that_another_process_trains_is_waited_for(source, tmp_path, caplog):
    recipe = _recipe(source, epochs=1)
    made = ensure_donor(recipe, source, cache_dir=tmp_path / "other").path
    path = donor_path(tmp_path, recipe)
    waiting, found = threading.Event(), []
    handler = logging.Handler()
    handler.emit = lambda record: waiting.set()
    logging.getLogger("fula_fast.donors.donor").addHandler(handler)
    try:
        with FileLock(path.with_suffix(".lock")), caplog.at_level(logging.WARNING):
            thread = threading.Thread(
                target=lambda: found.append(ensure_donor(recipe, source, cache_dir=tmp_path))
            )
            thread.start()
            assert waiting.wait(30)
            path.write_bytes(made.read_bytes())
    finally:
        logging.getLogger("fula_fast.donors.donor").removeHandler(handler)
    thread.join(30)
    assert [donor.trained for donor in found] == [False]
    assert "another process trains" in caplog.text


def test_a_folder_that_cannot_be_written_is_named_before_training(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("fula_fast.donors.donor.train_donor", None)
    with pytest.raises(FulaError, match="cannot write '.*file"):
        ensure_donor(_recipe(source), source, cache_dir=tmp_path / "file")


def test_recipes_hash_by_what_decides_the_weights(source):
    same = [
        _recipe(source),
        _recipe(source, lr=RECIPES["fast"].lr),
        recipe_for(source, {"width": 4, "stem": "lowres"}, **FAST),
    ]
    assert len({recipe_hash(recipe) for recipe in same}) == 1
    other_data = replace(source, train=_images(96, 9))
    others = [
        _recipe(source, seed=1),
        _recipe(source, epochs=3),
        _recipe(source, permute_labels=True),
        _recipe(source, shortcut=Shortcut("pixel", "class")),
        _recipe(source, given=Input(None, Normalisation((0.5,) * 3, (0.5,) * 3))),
        _recipe(source, adversarial=Attack(), alpha=0.5),
        _recipe(other_data),
    ]
    assert len({recipe_hash(recipe) for recipe in [same[0], *others]}) == 8


def test_a_recipe_from_the_specs_table(source):
    tables = pytest.importorskip("fula_fast.study.donor_spec")
    donor = tables.DonorSpec(
        model="resnet18",
        width=4,
        epochs=2,
        batch_size=16,
        crop_padding=1,
        flip=False,
        adversarial={"steps": 3, "alpha": 0.25},
        shortcut="pixel+class",
    )
    expected = _recipe(
        source, adversarial=Attack(steps=3), alpha=0.25, shortcut=Shortcut("pixel", "class")
    )
    assert recipe_of(donor, source) == expected
    control = tables.DonorSpec(model="resnet18", untrained=True)
    assert recipe_of(control, source)["epochs"] == 0


def test_a_damaged_donor_is_named_or_trained_again(source, tmp_path, caplog):
    recipe = _recipe(source, epochs=1)
    first = ensure_donor(recipe, source, cache_dir=tmp_path)
    first.path.write_bytes(first.path.read_bytes()[:-100])
    with pytest.raises(FulaError, match=f"{first.path.name}' is damaged: it is truncated"):
        ensure_donor(recipe, source, cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        again = ensure_donor(recipe, source, cache_dir=tmp_path, replace_damaged=True)
    assert again.trained and again.content_hash == first.content_hash
    assert caplog.text.count("training this donor again") == 1


def test_a_donor_below_its_accuracy_is_refused_but_kept(source, tmp_path):
    tables = {"data": {"source": "digits"}, "width": 4, "epochs": 0, "min_accuracy": 0.99}
    spec = DonorSpec(name="a", model="resnet18", **tables)
    for _ in range(2):
        with pytest.raises(FulaError, match=r"below min_accuracy = 0\.99; train longer"):
            obtain_donor(spec, source, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_the_users_own_checkpoint(source, tmp_path):
    trained = ensure_donor(_recipe(source), source, cache_dir=tmp_path)
    donor = donor_from_checkpoint(trained.path, source, hook="pre_relu")
    assert donor.content_hash == trained.content_hash and donor.staged.hook == "pre_relu"
    assert donor.metrics.test_accuracy == pytest.approx(trained.metrics.test_accuracy)
    torch.save(trained.staged.state(), tmp_path / "plain.pt")
    plain = donor_from_checkpoint(
        tmp_path / "plain.pt", source, model="resnet18", options={"width": 4}
    )
    assert plain.content_hash == trained.content_hash


def test_a_checkpoint_of_other_classes_is_refused(source, tmp_path):
    trained = ensure_donor(_recipe(source, epochs=0), source, cache_dir=tmp_path)
    labels = ("a", "b", "c", "d")
    four = Source("four", *(replace(s, classes=labels) for s in (source.train, source.test)))
    with pytest.raises(FulaError, match="3 classes, but 'four' has 4; use a donor with") as caught:
        donor_from_checkpoint(trained.path, four)
    assert trained.path.name in str(caught.value)
    with pytest.raises(FulaError, match="have 3 classes .* has 4; set num_classes = 3"):
        donor_from_checkpoint(trained.path, four, model="resnet18", options={"width": 4})
    with pytest.raises(FulaError, match="has 3 classes, but 'four' has 4"):
        train(load_checkpoint(trained.path), four)


def test_a_checkpoint_with_labels_in_another_order_is_refused(source, tmp_path):
    """The same names under other labels would give a plausible, wrong accuracy."""

    def named(classes):
        return Source("data", *(replace(s, classes=classes) for s in (source.train, source.test)))

    trained = ensure_donor(_recipe(source, epochs=0), source, cache_dir=tmp_path)
    assert trained.staged.classes == ("a", "b", "c")
    turned = named(("c", "a", "b"))
    with pytest.raises(
        FulaError, match="class 'c' has label 2 in 'resnet18' and 0 in 'data'"
    ) as told:
        donor_from_checkpoint(trained.path, turned)
    assert trained.path.name in str(told.value) and "['a', 'b', 'c']" in str(told.value)
    again = load_checkpoint(trained.path)
    train(again, turned, epochs=0)  # which says anew what its labels mean
    assert again.classes == turned.classes
    # other names say nothing, nor does a file without names
    assert donor_from_checkpoint(trained.path, named(("x", "y", "z"))).staged.classes
    torch.save(trained.staged.state(), tmp_path / "plain.pt")
    donor_from_checkpoint(tmp_path / "plain.pt", turned, model="resnet18", options={"width": 4})
    assert load_checkpoint(tmp_path / "plain.pt", into=again).classes == turned.classes


@pytest.mark.parametrize(
    "change, message",
    [
        ({"recipe": "quick"}, "unknown recipe 'quick'"),
        ({"lr": 1e9}, r"diverged: loss is (nan|inf) at epoch 1, step \d+; lower lr"),
        ({"precision": "fp16"}, "precision 'fp16'"),
        ({"alpha": 0.5}, "needs an attack"),
        ({"alpha": 1.5}, r"must lie in \[0, 1\]"),
        ({"batch_size": 97}, "batch size 97"),
        ({"stream": "fast"}, "unknown stream 'fast'"),
    ],
)
def test_mistakes_are_explained(source, change, message):
    with pytest.raises(FulaError, match=message):
        train(_tiny(), source, **{**FAST, **change})


def test_adversarial_training_refuses_normalised_images(source):
    with pytest.raises(FulaError, match="attacks pixels in"):
        train(
            _tiny(),
            source,
            alpha=0.5,
            attack=lambda *a: a[1],
            given=Input(None, Normalisation((0.5,) * 3, (0.5,) * 3)),
        )


def test_images_of_another_size_are_refused(source):
    with pytest.raises(FulaError, match=r"takes images 3×16×16, but 'stripes' has 3×8×8"):
        train(_tiny(input_shape=(3, 16, 16)), source)


@pytest.mark.slow
def test_fast_recipe_reaches_the_quickstarts_accuracy(tmp_path):
    from fula_fast.pipelines import load_source

    digits = load_source("digits", size=16, channels=3)
    for seed in (0, 1):
        recipe = recipe_for(digits, {"width": 8}, seed=seed, pad=1, flip=False)
        donor = ensure_donor(recipe, digits, cache_dir=tmp_path)
        assert donor.metrics.test_accuracy >= 0.97


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("way", ["checkpoint", "module", "evaluate"])
def test_a_donor_without_finite_logits_is_refused(source, tmp_path, value, way):
    """`argmax` of NaN is class 0: such a donor would pass as one that knows a class."""
    model = _tiny()
    with torch.no_grad():
        model.state()["fc.bias"][:] = value
    path = tmp_path / "broken.safetensors"
    save_checkpoint(model, path)
    ways = {
        "checkpoint": lambda: donor_from_checkpoint(path, source),
        "module": lambda: donor_at_hand(model, source, path),
        "evaluate": lambda: evaluate(model, source.test),
    }
    with pytest.raises(FulaError, match=r"no finite logits on 50 of 50 .*'fc.bias' is not finite"):
        ways[way]()
