"""PGD against torchattacks, its bounds, and what a graph capture may rely on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fula_fast.attacks.pgd import PGD, pgd, pgd_from
from fula_fast.attacks.start_noise import start_noise
from fula_fast.errors import FulaError
from fula_fast.study.protocol import Attack

from .conftest import no_cuda, small_batch, small_net


@pytest.fixture
def torchattacks():
    """The reference package; the test skips where it is not installed."""
    return pytest.importorskip("torchattacks")


@pytest.mark.parametrize("targeted", [False, True])
def test_linf_equals_torchattacks(torchattacks, targeted):
    net = small_net()
    x, labels = small_batch(net, 16)
    theirs = torchattacks.PGD(net, eps=0.03, alpha=0.008, steps=10, random_start=False)
    if targeted:
        theirs.set_mode_targeted_by_label(quiet=True)
    attack = Attack(eps=0.03, step=0.008, steps=10)
    assert torch.equal(pgd(net, x, labels, attack, targeted=targeted), theirs(x, labels))


def test_l2_equals_torchattacks(torchattacks):
    net = small_net()
    x, labels = small_batch(net, 16)
    theirs = torchattacks.PGDL2(net, eps=0.5, alpha=0.1, steps=10, random_start=False)
    ours = pgd(net, x, labels, Attack(norm="l2", eps=0.5, step=0.1, steps=10))
    torch.testing.assert_close(ours, theirs(x, labels), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_equals_torchattacks_on_the_robust_network(torchattacks, robust_net, cifar):
    x, labels = cifar[0][:8], cifar[1][:8]
    theirs = torchattacks.PGD(robust_net, steps=5, random_start=False)(x, labels)
    assert torch.equal(pgd(robust_net, x, labels, Attack(steps=5)), theirs)


@pytest.mark.parametrize("norm, size", [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_stays_in_the_ball_and_the_pixel_range(norm, size, dtype, keep):
    net = small_net().to(dtype)
    x = torch.rand(9, 3, 8, 8, dtype=dtype).round(decimals=1)  # zeros and ones among them
    labels = torch.arange(9) % 6
    noise = start_noise(norm, range(9), (3, 8, 8), seed=3)
    attack = Attack(norm=norm, eps=size, step=size / 3, steps=7, random_start=True)
    adv = pgd(net, x, labels, attack, noise=noise, keep=keep)
    assert adv.dtype == dtype and adv.min() >= 0 and adv.max() <= 1
    offset = (adv - x).double().flatten(1)
    reach = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert reach.max() <= size + 1e-6 and reach.min() > 0


def test_best_iterate_has_the_highest_loss_of_all():
    net = small_net()
    x, labels = small_batch(net, 10)
    attack = Attack(eps=0.05, step=0.04, steps=6)  # steps so large that the loss falls at times
    looks = []

    def watched(z):
        looks.append(z.detach().clone())
        return net(z)

    best = pgd(watched, x, labels, attack, keep="best")
    losses = torch.stack([_losses(net, look, labels) for look in looks])
    assert torch.equal(_losses(net, best, labels), losses.amax(0))
    assert not torch.equal(best, pgd(net, x, labels, attack))


def _losses(net, x, labels):
    with torch.no_grad():
        return nn.functional.cross_entropy(net(x), labels, reduction="none")


def test_random_start_is_the_only_difference_it_makes():
    net = small_net()
    x, labels = small_batch(net, 4)
    noise = start_noise("linf", [5, 6, 7, 8], (3, 8, 8), seed=0)
    started = Attack(eps=0.03, step=0.01, steps=0, random_start=True)
    assert torch.equal(pgd(net, x, labels, started, noise=noise), (x + 0.03 * noise).clamp(0, 1))
    unstarted = Attack(eps=0.03, step=0.01, steps=0)
    assert torch.equal(pgd(net, x, labels, unstarted), x)


def test_lanes_in_one_batch_equal_lanes_alone():
    """(L*B, ...): two lanes with different weights, their losses summed (float64)."""
    nets = [small_net(seed=s).double() for s in (0, 1)]
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    labels = torch.arange(5)
    attack = Attack(eps=0.05, step=0.01, steps=8)

    def both(z):
        return torch.cat([net(part) for net, part in zip(nets, z.chunk(2), strict=True)])

    together = pgd(both, x.repeat(2, 1, 1, 1), labels.repeat(2), attack)
    for net, part in zip(nets, together.chunk(2), strict=True):
        assert torch.equal(part, pgd(net, x, labels, attack))


def test_a_gradient_function_serves_as_well():
    x = torch.full((2, 1, 2, 2), 0.5)
    towards = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1).expand_as(x)
    adv = pgd_from(lambda z: (towards, z.sum((1, 2, 3))), x, Attack(eps=0.1, step=0.03, steps=2))
    torch.testing.assert_close(adv, 0.5 + 0.06 * towards)


def test_modes_of_the_model_are_put_back():
    net = small_net(dropout=nn.Dropout(0.5))
    x, labels = small_batch(net, 4)
    expected = pgd(net, x, labels, Attack(steps=3))
    net.train()
    net[1].eval()
    statistics = net[4].running_mean.clone()
    assert torch.equal(pgd(net, x, labels, Attack(steps=3)), expected)
    assert net[6].training and not net[1].training
    assert torch.equal(net[4].running_mean, statistics)


def test_a_model_returning_nan_leaves_the_image_where_it_was():
    x = torch.rand(3, 3, 8, 8)
    adv = pgd(lambda z: z.flatten(1)[:, :6] * torch.nan, x, torch.zeros(3).long(), Attack(steps=4))
    assert torch.equal(adv, x)


def test_no_gradient_function_hides_behind_no_grad():
    net = small_net()
    x, labels = small_batch(net, 4)
    attack = Attack(steps=2)
    with torch.no_grad():
        inside = pgd(net, x, labels, attack)
    assert torch.equal(inside, pgd(net, x, labels, attack))


def test_an_own_loop_reports_what_it_ran():
    net = small_net()
    x, labels = small_batch(net, 4)
    attack = Attack(steps=3)
    runner = PGD(net, attack)
    assert torch.equal(runner(x, labels), pgd(net, x, labels, attack))
    assert runner.mode == "eager" and runner.replays == 0
    with pytest.raises(FulaError, match="CUDA device"):
        PGD(net, attack, mode="captured")(x, labels)


@pytest.mark.slow
def test_compiled_equals_eager():
    net = small_net()
    x, labels = small_batch(net, 4)
    attack = Attack(steps=3)
    runner = PGD(net, attack, mode="compiled")
    torch.testing.assert_close(runner(x, labels), pgd(net, x, labels, attack), rtol=0, atol=1e-6)
    assert runner.mode == "compiled"


WRONG_LABELS = [
    (lambda y: y * 0 + 7, "label 7 of image 0 is out of range: the model has 6 classes, 0 to 5"),
    (lambda y: y * 0 - 100, "label -100 of image 0 is out of range"),
    (lambda y: y[:1], "labels have shape"),
    (lambda y: y.float(), "must be class indices"),
]


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("wrong, message", WRONG_LABELS)
def test_wrong_labels_leave_the_device_alive(wrong, message):
    net = small_net().cuda()
    x, labels = (t.cuda() for t in small_batch(small_net(), 2))
    runner = PGD(net, Attack(steps=2))
    expected = runner(x, labels)
    with pytest.raises(FulaError, match=message):
        runner(x, wrong(labels))
    assert torch.equal(runner(x, labels), expected) and runner.mode == "captured"


def test_labels_are_looked_at_before_the_loop():
    """Not by the loop, which a graph may hold; after the first call with no forward pass."""
    net, calls = small_net(), []
    x, labels = small_batch(net, 2)

    def counted(z):
        calls.append(len(z))
        return net(z)

    runner = PGD(counted, Attack(steps=3))
    for _ in range(2):
        with pytest.raises(FulaError, match="label 9 of image 0"):
            runner(x, labels * 0 + 9)
    assert calls == [2]
    runner(x, labels)
    assert calls == [2] * 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, x, y: pgd(f, x.bfloat16(), y, Attack()), "bfloat16"),
        (lambda f, x, y: pgd(f, x, y, Attack(), keep="first"), "keep = 'first'"),
        (lambda f, x, y: pgd(f, x, y, Attack(random_start=True)), "start noise"),
        (lambda f, x, y: pgd(f, x, y, Attack(), noise=x), "start noise"),
        (lambda f, x, y: PGD(f, Attack(), mode="fast"), "unknown mode 'fast'"),
        *(
            (lambda f, x, y, attack=attack, wrong=wrong: attack(f, x, wrong(y)), message)
            for attack in (lambda *a: pgd(*a, Attack()), lambda f, *a: PGD(f, Attack())(*a))
            for wrong, message in WRONG_LABELS
        ),
        *(
            (lambda f, x, y, attack=attack: attack(lambda z: f(z.detach()), x, y), "no gradient")
            for attack in (lambda *a: pgd(*a, Attack()), lambda f, *a: PGD(f, Attack())(*a))
        ),
    ],
)
def test_mistakes_are_refused(call, message):
    net = small_net()
    x, labels = small_batch(net, 2)
    with pytest.raises(FulaError, match=message):
        call(net, x, labels)
