"""The records of attacks: names, prices, and attacks added from outside."""

from __future__ import annotations

import pytest
import torch

from fula_fast.attacks import AttackStage, NamedAttack, attacks, register, robust_evaluate
from fula_fast.attacks.names import CE, DLR, NONE, TARGETED, gradients, parse, valid_names
from fula_fast.attacks.pgd import pgd
from fula_fast.attacks.settings import Attack
from fula_fast.errors import FulaError

from .conftest import small_batch, small_net


@pytest.fixture
def free(monkeypatch):
    """What a test registers is gone after it."""
    from fula_fast.attacks import names

    monkeypatch.setattr(names, "_ATTACKS", dict(names._ATTACKS))


@pytest.mark.parametrize(
    "name, price",
    [
        (NONE, 0),
        ("pgd-7", 7),
        ("apgd20", 2 * 20),
        ("rand", 2 * 100),
        ("autoattack-standard", 10 * 100),  # APGD-CE, and nine targets
        ("apgd-t", 9 * 100),
    ],
)
def test_prices_are_stages_times_iterations(name, price):
    assert gradients(name) == price


def test_least_classes_are_those_of_the_losses():
    assert [parse(n).least_classes for n in ("pgd-3", "apgd-ce", "apgd20", "standard")] == [
        1, 1, 3, 4
    ]  # fmt: skip
    parse("apgd-t").check_classes(4, "the model")
    with pytest.raises(FulaError, match="needs at least four classes .* but end 'b' has 3"):
        parse("apgd-t").check_classes(3, "end 'b'")


def test_every_valid_name_is_one():
    assert [parse(name).name for name in valid_names()] == list(valid_names())
    assert all(a.reads and a.careful for a in attacks())


def test_a_missing_package_is_named_before_anything_is_loaded():
    other = NamedAttack("toy", "", "", steps=1, package="no_such_package_here")
    with pytest.raises(FulaError, match="needs the package no_such_package_here"):
        other.check_installed()


@pytest.mark.parametrize(
    "attack",
    [
        NamedAttack("apgd-ce", "another", "", steps=3),
        NamedAttack("pgd-7", "", "", steps=7),
        NamedAttack(NONE, "", "", steps=1),
        NamedAttack("idle", "", ""),
    ],
)
def test_a_name_is_given_once_and_to_what_does_something(free, attack):
    with pytest.raises(FulaError, match=f"attack '{attack.name}'"):
        register(attack)


def test_stages_of_ones_own_are_an_attack(free):
    register(NamedAttack("short", "", "", steps=5, stages=(AttackStage(CE), AttackStage(DLR))))
    net = small_net()
    x, labels = small_batch(net, 20)
    (result,) = robust_evaluate(net, x, labels, "short", eps=0.1)
    assert result.attack == "short" and result.settings["steps"] == 5
    assert AttackStage(TARGETED, 2) not in parse("short").stages


def _one_step(logits, x, labels, options):
    """The signed gradient step to the edge of the ball (Goodfellow et al. 2015)."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(logits(z), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, z)
    return (x + options.eps * grad.sign()).clamp(0, 1)


def test_a_search_of_ones_own_is_an_attack(free):
    """The one step is PGD's with one step of size eps, which is its own implementation."""
    register(NamedAttack("fgsm", "", "", search=_one_step, search_gradients=1))
    net = small_net()
    x, labels = small_batch(net, 40)
    (result,) = robust_evaluate(net, x, labels, "fgsm", eps=0.1)
    moved = pgd(net, x, labels, Attack(eps=0.1, step=0.1, steps=1))
    right = net(x).argmax(1) == labels
    assert torch.equal(result.robust, right & (net(moved).argmax(1) == labels))
    assert gradients("fgsm") == 1 and not torch.equal(result.robust, result.correct)


@pytest.mark.parametrize(
    "search, message",
    [
        (lambda logits, x, labels, options: (x + 2 * options.eps).clamp(0, 1), "left the ball"),
        (lambda logits, x, labels, options: x - options.eps, "left the ball"),
        (lambda logits, x, labels, options: x * float("nan"), "left the ball"),
        (lambda logits, x, labels, options: x[:1], "one image for each"),
    ],
)
def test_a_search_that_leaves_the_ball_is_refused(free, search, message):
    register(NamedAttack("wild", "", "", search=search))
    net = small_net()
    x, labels = small_batch(net, 5)
    with pytest.raises(FulaError, match=message):
        robust_evaluate(net, x, labels, "wild", eps=0.1)


@pytest.mark.parametrize("option", [{"steps": 3}, {"random_start": True}, {"restarts": 2}])
def test_a_search_takes_no_options_of_pgd(free, option):
    register(NamedAttack("fgsm", "", "", search=_one_step))
    net = small_net()
    x, labels = small_batch(net, 5)
    with pytest.raises(FulaError, match="leave steps, random_start and restarts out"):
        robust_evaluate(net, x, labels, "fgsm", **option)
