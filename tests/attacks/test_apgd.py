"""APGD against the reference package, iterate for iterate."""

from __future__ import annotations

import pytest
import torch

from fula_fast.attacks.apgd import APGDConfig, apgd, interval_table, windows
from fula_fast.attacks.names import CE, DLR, TARGETED
from fula_fast.errors import FulaError

from .conftest import small_batch, small_net

autopgd_base = pytest.importorskip("pyautoattack.autopgd_base")

REFERENCE_NORM = {"linf": "Linf", "l2": "L2"}
SEED = 7


class Recorder:
    """A model that remembers every batch it was shown."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __call__(self, x):
        self.seen.append(x.detach().clone())
        return self.model(x)


def reference_run(net, x, labels, config, loss, targets=None, **options):
    recorder = Recorder(net)
    common = dict(
        n_iter=config.steps, norm=REFERENCE_NORM[config.norm], eps=config.eps, seed=SEED,
        eot_iter=config.eot, rho=config.rho, device="cpu", **options,
    )  # fmt: skip
    if loss == TARGETED:
        attack = autopgd_base.APGDAttack_targeted(recorder, **common)
        attack.y_target = targets
    else:
        attack = autopgd_base.APGDAttack(recorder, loss={CE: "ce", DLR: "dlr"}[loss], **common)
    attack.init_hyperparam(x)
    torch.manual_seed(SEED)
    best, robust, best_loss, found = attack.attack_single_run(x, labels)
    return recorder.seen, best, robust, best_loss, found


def reference_noise(x, norm):
    torch.manual_seed(SEED)
    return 2 * torch.rand(x.shape) - 1 if norm == "linf" else torch.randn(x.shape)


def compare(net, x, labels, config, loss, targets=None):
    seen, best, robust, best_loss, found = reference_run(net, x, labels, config, loss, targets)
    looks = []
    ours = apgd(
        net, x, labels, config,
        noise=reference_noise(x, config.norm), loss=loss, targets=targets, on_look=looks.append,
    )  # fmt: skip
    assert len(seen) == config.eot * len(looks) == config.eot * (config.steps + 1)
    for theirs, mine in zip(seen[:: config.eot], looks, strict=True):
        assert torch.equal(theirs, mine)
    assert torch.equal(ours.best, best) and torch.equal(ours.best_loss, best_loss)
    assert torch.equal(ours.robust, robust.bool())
    assert torch.equal(ours.found[~ours.robust], found[~robust.bool()])
    return ours


@pytest.mark.parametrize("norm, eps", [("linf", 0.03), ("l2", 0.4)])
@pytest.mark.parametrize("loss", [CE, DLR, TARGETED])
@pytest.mark.parametrize("steps", [1, 13, 100])
def test_every_iterate_equals_the_reference(norm, eps, loss, steps):
    net = small_net()
    x, labels = small_batch(net, 12)
    targets = net(x).sort(1)[1][:, -2]
    ours = compare(net, x, labels, APGDConfig(norm, eps, steps), loss, targets)
    if steps == 100:
        assert 0 < ours.robust.sum() < len(x), "the images should not all share one fate"


def test_expectation_over_transformations_equals_the_reference():
    net = small_net()
    x, labels = small_batch(net, 6)
    compare(net, x, labels, APGDConfig("linf", 0.03, 20, eot=3), CE)


def test_rho_and_first_step():
    net = small_net()
    x, labels = small_batch(net, 8)
    compare(net, x, labels, APGDConfig("linf", 0.03, 40, rho=0.5), CE)
    config = APGDConfig("linf", 0.03, 1, first_step=0.001)
    looks = []
    noise = torch.zeros_like(x)
    apgd(net, x, labels, config, noise=noise, on_look=looks.append)
    assert (looks[1] - x).abs().max() == pytest.approx(0.001, rel=1e-4)


def test_intervals_of_the_published_schedule():
    """22% of 100 steps, then 3 fewer each time, never under 6: 22, 41, 57, 70, 80, 87, 93, 99."""
    ends = {i + 1: w for i, w in enumerate(windows(100)) if w}
    assert ends == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert interval_table(APGDConfig(steps=100), torch.zeros(1)).tolist() == windows(100)


def test_images_do_not_mix():
    """An image's points do not depend on its companions (float64: no rounding by batch size)."""
    net = small_net().double()
    x, labels = small_batch(net.float(), 5)
    net, x = net.double(), x.double()
    noise = reference_noise(x, "l2")
    config = APGDConfig("l2", 0.4, 30)
    together = apgd(net, x, labels, config, noise=noise)
    for i in range(5):
        alone = apgd(net, x[i : i + 1], labels[i : i + 1], config, noise=noise[i : i + 1])
        torch.testing.assert_close(alone.best[0], together.best[i], rtol=0, atol=1e-9)


def test_keep_first_reports_the_first_adversarial_image():
    net = small_net()
    x, labels = small_batch(net, 10)
    looks = []
    ours = apgd(
        net, x, labels, APGDConfig("linf", 0.05, 30),
        noise=reference_noise(x, "linf"), keep_first=True, on_look=looks.append,
    )  # fmt: skip
    for i in (~ours.robust).nonzero()[:, 0].tolist():
        first = next(p[i] for p in looks if net(p)[i].argmax() != labels[i])
        assert torch.equal(ours.found[i], first)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "l1"}, "norm = 'l1'"),
        ({"eps": -0.1}, "eps = -0.1"),
        ({"eps": float("nan")}, "eps = nan"),
        ({"steps": 0}, "steps = 0"),
        ({"eot": 0}, "eot = 0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(FulaError, match=message):
        APGDConfig(**options)
