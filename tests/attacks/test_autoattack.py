"""AutoAttack's flags against the reference package, and savings that must not change them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from fula_fast.attacks import RobustResult, Savings, robust_evaluate
from fula_fast.attacks.names import parse
from fula_fast.attacks.packed import Single
from fula_fast.attacks.pgd import pgd
from fula_fast.attacks.start_noise import start_noise
from fula_fast.bench.suites.agreement import ALL_OFF, SEED, reference, reference_starts
from fula_fast.errors import FulaError
from fula_fast.study.protocol import Attack

from .conftest import small_batch, small_net

pyautoattack = pytest.importorskip("pyautoattack")

EPS = {"linf": 0.02, "l2": 0.3}


def ours(net, x, labels, attack, norm="linf", eps=0.02, **options) -> RobustResult:
    options.setdefault("starts", reference_starts(x.shape[1:], norm))
    (result,) = robust_evaluate(
        net, x, labels, attack, norm=norm, eps=eps, keep_images=True, **options
    )
    return result


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "attack, parts",
    [("autoattack-rand", ["apgd-ce", "apgd-dlr"]), ("autoattack-standard", ["apgd-ce", "apgd-t"])],
)
def test_with_all_savings_off_every_pixel_equals_the_reference(norm, attack, parts):
    net = small_net()
    x, labels = small_batch(net, 24)
    short = {"steps": 16, "eot": 3 if "rand" in attack else 1, "batch_size": 10}
    found, robust = reference(net, x, labels, parts, norm, EPS[norm], classes=6, **short)
    result = ours(net, x, labels, attack, norm, EPS[norm], savings=ALL_OFF, **short)
    assert torch.equal(result.robust, robust)
    assert torch.equal(result.adversarial, found)
    assert 0 < robust.sum() < result.correct.sum(), "the images should not all share one fate"


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_no_saving_changes_a_flag(norm):
    net = small_net()
    x, labels = small_batch(net, 30)

    def attacked(savings):
        options = {"batch_size": 12, "steps": 20, "eot": 5, "starts": None}
        return ours(net, x, labels, "autoattack-rand", norm, EPS[norm], savings=savings, **options)

    without = attacked(ALL_OFF)
    assert 0 < without.robust.sum() < without.correct.sum()
    for saving in fields(Savings):
        saved = attacked(replace(ALL_OFF, **{saving.name: True}))
        assert torch.equal(saved.robust, without.robust), saving.name
        fewer = saving.name in ("single_sample", "compaction")
        assert (saved.gradients < without.gradients) == fewer
    together = attacked(Savings())
    assert torch.equal(together.robust, without.robust)
    assert together.gradients < without.gradients / 5


def test_counts_what_it_does():
    """Savings off: steps + 1 looks of 20 samples per stage and image, and two more to ask for
    randomness; nothing at all for images that are wrong from the start."""
    net = small_net()
    x, labels = small_batch(net, 10)
    assert (parse("autoattack-rand").steps, parse("autoattack-rand").eot) == (100, 20)
    result = ours(net, x, labels, "autoattack-rand", eps=1e-4, savings=ALL_OFF, steps=10)
    assert result.correct.sum() == 8 and torch.equal(result.robust, result.correct)
    assert result.gradients == 8 * (2 * 20 * 11 + 2) and result.verified == 0
    saved = ours(net, x, labels, "autoattack-rand", eps=1e-4, steps=10)
    assert saved.gradients == 8 * (2 * 11 + 2)
    assert saved.settings["eot_taken"] == 1 and saved.deterministic


def test_every_fooled_image_was_verified():
    net = small_net()
    x, labels = small_batch(net, 20)
    result = ours(net, x, labels, "apgd-ce", eps=0.05)
    fooled = result.correct & ~result.robust
    assert result.verified == fooled.sum() > 0
    with torch.no_grad():
        logits = net(result.adversarial)
    torch.testing.assert_close(result.logits, logits)
    assert torch.equal(result.predictions, logits.argmax(1))
    assert torch.equal(result.predictions == labels, result.robust)
    assert torch.equal(result.adversarial[~fooled], x[~fooled])


def test_a_witness_sees_the_same_images():
    nets = [small_net(seed=s) for s in (0, 1)]
    witness = small_net(seed=2)
    x, labels = small_batch(nets[0], 20)
    results = robust_evaluate(
        nets, x, labels, "apgd20", eps=0.03, witness=witness, keep_images=True
    )
    for result in results:
        with torch.no_grad():
            torch.testing.assert_close(result.witness_logits, witness(result.adversarial))
    assert 0 < results[0].robust.sum() < results[0].correct.sum()
    (without,) = robust_evaluate(nets[0], x, labels, "apgd20", eps=0.03)
    assert without.witness_logits is None and without.adversarial is None
    assert torch.equal(without.robust, results[0].robust)


def test_restarts_equal_the_reference():
    net = small_net()
    x, labels = small_batch(net, 24)
    runner = pyautoattack.AutoAttack(net, norm="Linf", eps=0.02, seed=SEED, version="standard")
    runner.attacks_to_run = ["apgd-ce"]
    runner.apgd.n_restarts = 3
    found, _ = runner.run_standard_evaluation(x, labels)

    def starts(stage, lane, images):
        if stage == 0:
            torch.manual_seed(SEED)
        return 2 * torch.rand(len(images), *x.shape[1:]) - 1

    result = ours(net, x, labels, "apgd-ce", savings=ALL_OFF, restarts=3, starts=starts)
    assert torch.equal(result.adversarial, found)


def test_apgd20_is_twenty_steps_from_a_small_one():
    recipe = parse("apgd20")
    assert (recipe.steps, recipe.eot, recipe.first_step) == (20, 1, 2 / 255)
    assert [stage.loss for stage in recipe.stages] == [0, 1]
    net = small_net()
    x, labels = small_batch(net, 20)
    small = ours(net, x, labels, "apgd20", starts=None)
    assert 0 < small.robust.sum() < small.correct.sum()
    assert small.settings["steps"] == 20 and small.settings["eot"] == 1


def test_pgd_by_its_number_of_steps():
    net = small_net()
    x, labels = small_batch(net, 20)
    from torchattacks import PGD

    theirs = PGD(net, eps=0.02, alpha=0.005, steps=7, random_start=False)(x, labels)
    result = ours(net, x, labels, "pgd-7", step=0.005, batch_size=6, savings=ALL_OFF)
    with torch.no_grad():
        robust = result.correct & (net(theirs).argmax(1) == labels)
    assert torch.equal(result.robust, robust) and 0 < robust.sum() < result.correct.sum()
    fooled = result.correct & ~robust
    torch.testing.assert_close(result.adversarial[fooled], theirs[fooled], rtol=0, atol=1e-6)
    assert result.gradients == 7 * result.correct.sum() and result.verified == result.correct.sum()


@pytest.mark.parametrize("attack", ["autoattack-rand", "pgd-5"])
def test_lanes_packed_together_equal_models_alone(attack):
    nets = [small_net(seed=s).double() for s in (0, 1, 2)]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(15, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = nets[0](x).argmax(1)
    options = {"attack": attack, "eps": 0.02, "batch_size": 12, "keep_images": True}
    options |= {"steps": 20} if attack != "pgd-5" else {}
    together = robust_evaluate(nets, x, labels, **options)
    for net, packed in zip(nets, together, strict=True):
        (alone,) = robust_evaluate(net, x, labels, **options)
        assert torch.equal(packed.correct, alone.correct)
        assert torch.equal(packed.robust, alone.robust)
        assert packed.gradients == alone.gradients and packed.verified == alone.verified
        torch.testing.assert_close(packed.adversarial, alone.adversarial, rtol=0, atol=1e-9)
    assert len({int(r.correct.sum()) for r in together}) > 1


@pytest.mark.slow
def test_bf16_search_is_confirmed_in_fp32_and_redone_for_survivors():
    net = small_net()
    x, labels = small_batch(net, 30)
    exact = ours(net, x, labels, "autoattack-rand", starts=None)
    narrow = ours(net, x, labels, "autoattack-rand", starts=None, precision="bf16")
    fast = ours(net, x, labels, "autoattack-rand", starts=None, precision="fast")
    assert not (narrow.robust & ~exact.robust).any(), "survivors face the fp32 attack too"
    for result in (narrow, fast):
        with torch.no_grad():
            right = net(result.adversarial).argmax(1) == labels
        assert torch.equal(right, result.robust)
    assert (fast.robust != exact.robust).sum() <= 2
    assert fast.gradients < narrow.gradients


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fast"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_adversarial_images_stay_in_ball_and_pixel_range(precision, norm, dtype):
    net = small_net()
    x = (torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 255).round()
    x[:5] = x[:5] // 128 * 255  # many pixels at the range's ends
    x = x.byte() if dtype == torch.uint8 else (x / 255).to(dtype)
    clean = x.double() / (255 if dtype == torch.uint8 else 1)
    with torch.no_grad():
        labels = net(clean.float()).argmax(1)
    eps = 16 / 255 if norm == "linf" else 2.0
    result = ours(net, x, labels, "apgd-ce", norm, eps, precision=precision, steps=8, starts=None)
    assert (~result.robust).any()
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    offset = (result.adversarial.double() - clean).flatten(1)
    reach = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert reach.max() <= eps + 1e-6


@pytest.mark.slow
def test_full_hands_over_to_the_reference_package():
    net = small_net()
    x, labels = small_batch(net, 2)
    standard = ours(net, x, labels, "autoattack-standard", eps=0.012, starts=None, steps=10)
    assert standard.robust.any()
    full = ours(net, x, labels, "autoattack-full", eps=0.012, starts=None, steps=10)
    assert not (full.robust & ~standard.robust).any()
    assert (full.adversarial - x).abs().max() <= 0.012 + 1e-6


# unusual models


class Noisy(nn.Module):
    """Dropout that no mode switches off."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(nn.functional.dropout(x, 0.05, training=True))


def test_a_random_model_keeps_all_samples_and_the_callers_generator():
    net = Noisy()
    x, labels = small_batch(net.net, 4)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    result = ours(net, x, labels, "apgd-ce", eps=1e-4, starts=None, steps=9, eot=20)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not result.deterministic and result.settings["eot_taken"] == 20
    again = ours(net, x, labels, "apgd-ce", eps=1e-4, starts=None, steps=9, eot=20)
    assert torch.equal(again.adversarial, result.adversarial)
    assert result.gradients == result.correct.sum() * (20 * 10 + 2)


def test_dropout_off_in_eval_mode_is_deterministic_and_train_mode_is_left_alone():
    net = small_net(dropout=nn.Dropout(0.5))
    x, labels = small_batch(net, 10)
    expected = ours(net, x, labels, "autoattack-rand")
    net.train()
    statistics = net[1].running_mean.clone()
    result = ours(net, x, labels, "autoattack-rand")
    assert net.training and net[6].training and torch.equal(net[1].running_mean, statistics)
    assert result.deterministic and torch.equal(result.adversarial, expected.adversarial)


def test_a_model_returning_nan_is_never_right():
    x = torch.rand(4, 3, 8, 8)
    result = ours(
        lambda z: z.flatten(1)[:, :6] * torch.nan, x, torch.zeros(4).long(), "autoattack-rand"
    )
    assert result.clean_accuracy == result.robust_accuracy == 0
    assert (result.predictions == -1).all() and result.gradients == 0


def test_an_image_that_makes_the_model_return_nan_is_adversarial():
    net = small_net()
    x, labels = small_batch(net, 4)

    def brittle(z):
        moved = (z - x[0]).abs().amax((1, 2, 3)) > 1e-3
        return torch.where(moved[:, None], torch.nan, net(z))

    result = ours(brittle, x[:1], labels[:1], "apgd-ce")
    assert result.correct.all() and not result.robust.any() and result.predictions.tolist() == [-1]
    assert result.adversarial.isfinite().all()


@pytest.mark.parametrize("classes, attack", [(1, "autoattack-rand"), (2, "apgd20"), (3, "apgd-t")])
def test_too_few_classes_for_the_loss(classes, attack):
    net = small_net(classes)
    x = torch.rand(3, 3, 8, 8)
    with pytest.raises(FulaError, match=f"the model has {classes}"):
        ours(net, x, torch.zeros(3).long(), attack)


@pytest.mark.filterwarnings("ignore:.*gradient of exactly")  # one class has none
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("attack", ["apgd-ce", "pgd-3"])
def test_few_classes_suffice_for_cross_entropy(classes, attack):
    net = small_net(classes)
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = net(x).argmax(1)
    result = ours(net, x, labels, attack, eps=0.3, step=0.1)
    assert result.correct.all()
    assert result.robust.all() == (classes == 1)


@pytest.mark.slow
def test_four_classes_have_three_targets():
    net = small_net(4)
    x, labels = small_batch(net, 5)
    found, _ = reference(net, x, labels, ["apgd-t"], "linf", 0.02, classes=4)
    result = ours(net, x, labels, "apgd-t", savings=ALL_OFF)
    assert torch.equal(result.adversarial, found)


def test_images_of_one_class_only():
    net = small_net()
    x, labels = small_batch(net, 40)
    chosen = labels == labels.mode().values
    _, robust = reference(net, x[chosen], labels[chosen], ["apgd-ce", "apgd-dlr"], "linf", 0.02)
    result = ours(net, x[chosen], labels[chosen], "autoattack-rand")
    assert torch.equal(result.robust, robust) and chosen.sum() > 3


@pytest.mark.parametrize("attack", ["autoattack-rand", "pgd-3", "autoattack-full"])
def test_eps_zero_changes_nothing(attack):
    net = small_net()
    x, labels = small_batch(net, 10)
    result = ours(net, x, labels, attack, eps=0)
    assert torch.equal(result.robust, result.correct) and torch.equal(result.adversarial, x)
    assert result.gradients == 0 and result.mode == "none" and result.deterministic is None


X = torch.zeros(2, 3, 8, 8)
Y = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    "x, labels, attack, options, message",
    [
        (X, Y + 6, "pgd-1", {}, "label 6 of image 0 is out of range: the model has 6 classes"),
        (X, Y - 1, "pgd-1", {}, "label -1 of image 0"),
        (X, Y.float(), "pgd-1", {}, "class indices"),
        (X, Y[:1], "pgd-1", {}, "labels have shape"),
        (X[:0], Y[:0], "pgd-1", {}, "no image"),
        (X + 1.5, Y, "pgd-1", {}, "pixels range from 1.5 to 1.5"),
        (X - 0.5, Y, "pgd-1", {}, "pixels range from -0.5"),
        (X * torch.nan, Y, "pgd-1", {}, "pixels range"),
        (X.long(), Y, "pgd-1", {}, "images are torch.int64"),
        (X, Y, "autoatack-rand", {}, "did you mean 'autoattack-rand'"),
        (X, Y, "pgd-0", {}, "at least one step"),
        (X, Y, "pgd-1", {"esp": 1}, "unknown attack option 'esp'; did you mean 'eps'"),
        (X, Y, "pgd-1", {"norm": "l1"}, "norm = 'l1'"),
        (X, Y, "pgd-1", {"eps": -1.0}, "eps = -1.0"),
        (X, Y, "pgd-1", {"batch_size": 0}, "batch_size = 0"),
        (X, Y, "pgd-1", {"eps": "8/255"}, "eps = '8/255' must be a finite number"),
        (X, Y, "pgd-1", {"eot": 2}, "takes no EOT samples"),
        (X, Y, "pgd-1", {"restarts": 2}, "set random_start = true"),
        (X, Y, "apgd20", {"random_start": True}, "always starts at random"),
        (X, Y, "pgd-1", {"steps": 2.5}, "steps = 2.5 must be a whole number"),
        (X, Y, "pgd-1", {"compactoin": False}, "did you mean 'compaction'"),
        (X, Y, "pgd-1", {"precision": "fp16"}, "unknown precision 'fp16'"),
        (X, Y, "pgd-1", {"mode": "graph"}, "unknown mode 'graph'"),
        (X, Y, "pgd-1", {"mode": 3}, "unknown mode '3'"),
        (X, Y, "pgd-1", {"compaction": "off"}, "compaction = 'off' must be true or false"),
        (X, Y, "pgd-1", {"fold": 1}, "fold = 1 must be true or false"),
        (X, Y, "pgd-1", {"random_start": "off"}, "random_start = 'off' must be true or false"),
        (X, Y, "pgd-1", {"keep_images": None}, "keep_images = None must be true or false"),
        (X, Y, "pgd-1", {"savings": 1}, "savings = 1 must be a Savings"),
        (X, Y, "pgd-1", {"starts": 3}, "starts = 3 must be a function"),
        (X, Y, "pgd-1", {"seed": "abc"}, "seed = 'abc' must be a whole number >= 0"),
        (X, Y, "pgd-1", {"seed": -1}, "seed = -1 must be a whole number >= 0"),
        (X, Y, "pgd-1", {"seed": 2**63}, "must lie in"),
        (X, Y, "pgd-1", {"eps": float("nan")}, "eps = nan must be a finite number"),
        (X, Y, "pgd-1", {"mode": "captured"}, "needs models on a CUDA device"),
    ],
)
def test_mistakes_are_refused(x, labels, attack, options, message):
    with pytest.raises(FulaError, match=message):
        robust_evaluate(small_net(), x, labels, attack, **options)


@pytest.mark.parametrize("short", ["rand", "standard", "full"])
def test_short_names_of_autoattack(short):
    assert parse(short).name == f"autoattack-{short}"


def test_pgd_restarts_from_keyed_starts():
    net = small_net()
    x, labels = small_batch(net, 20)
    options = {"eps": 0.02, "step": 0.005, "steps": 3, "starts": None, "random_start": True}
    once = ours(net, x, labels, "pgd-3", **options)
    thrice = ours(net, x, labels, "pgd-3", restarts=3, **options)
    attack = Attack(eps=0.02, step=0.005, steps=3, random_start=True)
    standing = once.correct.clone()
    for restart in range(3):
        noise = start_noise("linf", range(20), (3, 8, 8), seed=0, stream=restart)
        with torch.no_grad():
            standing &= net(pgd(net, x, labels, attack, noise=noise)).argmax(1) == labels
        if restart == 0:
            assert torch.equal(once.robust, standing)
    assert torch.equal(thrice.robust, standing) and 0 < standing.sum() <= once.robust.sum()
    assert thrice.gradients > once.gradients


class Bare(nn.Module):
    """Logits cut off from the image."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x.detach())


def test_a_model_without_a_gradient_is_refused_rather_than_called_robust():
    net = Bare()
    with pytest.raises(FulaError, match="carry no gradient"):
        ours(net, X, net(X).argmax(1), "apgd-ce")


def test_a_packed_model_is_not_compiled_behind_its_back():
    with pytest.raises(FulaError, match="attacked as it is"):
        robust_evaluate(Single(small_net()), X, Y, "pgd-1", compile=True)


def test_no_model_and_functions_in_bf16_are_refused():
    with pytest.raises(FulaError, match="no model"):
        robust_evaluate([], X, Y, "pgd-1")
    net = small_net()
    with pytest.raises(FulaError, match="needs a module"):
        robust_evaluate(lambda z: net(z), X, net(X).argmax(1), "pgd-1", precision="fast")


@pytest.mark.slow
def test_compiled_equals_eager():
    """More batch sizes than dynamo would take by itself."""
    net = small_net()
    x, labels = small_batch(net, 80)
    options = {"starts": None, "batch_size": 64, "steps": 12}
    eager = ours(net, x, labels, "apgd-ce", packing=False, **options)
    compiled = ours(net, x, labels, "apgd-ce", packing=False, mode="compiled", **options)
    assert compiled.mode == "compiled" and torch.equal(compiled.robust, eager.robust)
    assert 0 < eager.robust.sum() < eager.correct.sum()
