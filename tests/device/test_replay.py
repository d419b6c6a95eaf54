"""Captured loops report what they run, and leave state where it was."""

from __future__ import annotations

import sys

import pytest
import torch

from fula_fast.attacks import PGD, Replay, autoattack, robust_evaluate
from fula_fast.attacks.apgd import APGDConfig
from fula_fast.attacks.fold import fold
from fula_fast.attacks.names import CE, DLR, TARGETED
from fula_fast.attacks.options import check_mode
from fula_fast.attacks.packed import Single
from fula_fast.attacks.pgd import pgd
from fula_fast.attacks.slots import Slots
from fula_fast.device.graphs import CaptureRefused, Rerun
from fula_fast.device.precision import arithmetic
from fula_fast.device.replay import recorder_on
from fula_fast.errors import FulaError
from fula_fast.study.protocol import Attack

from ..attacks.conftest import no_cuda, small_batch, small_net

CUDA = torch.device("cuda")


def test_runs_eagerly_on_the_cpu_and_says_so():
    replay = Replay(lambda x: 2 * x, recorder_on(torch.device("cpu")))
    assert torch.equal(replay(torch.ones(3)), 2 * torch.ones(3))
    assert replay.mode == "eager" and replay.replays == 0


def test_unknown_modes_are_refused():
    with pytest.raises(FulaError, match="did you mean 'captured'"):
        check_mode("capture")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_cuda])])
def test_state_survives_warm_up_and_capture(device):
    total = torch.zeros((), device=device)

    def add(x):
        total.add_(x.sum())
        return total * 2

    recorder = recorder_on(torch.device(device)) or Rerun()
    replay = Replay(add, recorder, state=lambda: [total])
    outputs = [replay(torch.ones(4, device=device)) for _ in range(3)]
    assert [output.item() for output in outputs] == [8, 16, 24]  # each call's own
    assert replay.mode == "captured" and replay.replays == 3
    replay(torch.ones(5, device=device))
    assert total.item() == 17


def test_a_recorders_refusal_is_a_warning():
    class Refusing:
        def record(self, step, snapshot):
            raise CaptureRefused("not permitted")

    replay = Replay(lambda x: 2 * x, Refusing())
    with pytest.warns(UserWarning, match="capture refused, running eagerly: not permitted"):
        assert replay(torch.ones(1)).item() == 2
    assert replay.mode == "eager"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_recorded_pgd_equals_the_eager_one(monkeypatch, norm, keep):
    monkeypatch.setattr(sys.modules["fula_fast.attacks.pgd"], "recorder_on", lambda _: Rerun())
    net = small_net()
    attack = Attack(norm=norm, eps=0.05, step=0.02, steps=4)
    runner = PGD(net, attack, keep=keep)
    for count in (16, 5, 16):
        x, labels = small_batch(net, count, seed=count)
        assert torch.equal(runner(x, labels), pgd(net, x, labels, attack, keep=keep))
    assert runner.mode == "captured" and runner.replays == 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_pgd_loop_has_no_host_contact(without_host_contact, norm):
    net = fold(small_net(), (3, 8, 8))
    x, labels = small_batch(small_net(), 8)
    attack = Attack(norm=norm, eps=0.05, step=0.02, steps=3, random_start=True)
    noise = torch.rand_like(x) - 0.5
    with without_host_contact():
        pgd(net, x, labels, attack, noise=noise, keep="best")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eot", [1, 2])
def test_an_apgd_iteration_has_no_host_contact(without_host_contact, norm, eot):
    x, _ = small_batch(small_net(), 1)
    slots = Slots(
        6, Single(small_net()), APGDConfig(norm, 0.05, 5, eot=eot), [CE, DLR, TARGETED], x,
        keep_first=True, recorder=None,
    )  # fmt: skip
    with without_host_contact():
        slots.iterate()


@pytest.mark.gpu
@no_cuda
def test_a_refused_capture_warns_and_runs_eagerly():
    replay = Replay(lambda x: x * x.sum().item(), recorder_on(CUDA))
    x = torch.ones(3, device="cuda")
    with pytest.warns(UserWarning, match="capture refused"):
        result = replay(x)
    assert torch.equal(result, 3 * x) and replay.mode == "eager"


@pytest.mark.gpu
@no_cuda
def test_a_failing_model_is_not_a_refused_capture():
    replay = Replay(lambda x: x @ torch.ones(7, device="cuda"), recorder_on(CUDA))
    with pytest.raises(RuntimeError, match="size"):
        replay(torch.ones(3, 4, device="cuda"))


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("norm, eps", [("linf", 0.03), ("l2", 0.5)])
def test_a_captured_pgd_equals_the_eager_one_bit_for_bit(norm, eps):
    net = small_net()
    x, labels = small_batch(net, 16)
    net, x, labels = net.cuda(), x.cuda(), labels.cuda()
    attack = Attack(norm=norm, eps=eps, step=eps / 4, steps=10)
    runner = PGD(net, attack)
    with arithmetic("fp32"):
        for shift in (0, 1):
            y = (labels + shift) % 6
            assert torch.equal(runner(x, y), pgd(net, x, y, attack))
    assert runner.mode == "captured" and runner.replays == 2


def attacked(recorded: str, norm: str, device: str):
    net = small_net()
    x, labels = small_batch(net, 60)
    options = {"norm": norm, "eps": {"linf": 0.02, "l2": 0.3}[norm], "batch_size": 32}
    (result,) = robust_evaluate(
        net, x, labels, "autoattack-rand", mode=recorded, device=device, **options
    )
    return result


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_captured_autoattack_equals_the_eager_one(norm):
    captured, eager = (attacked(mode, norm, "cuda") for mode in ("auto", "eager"))
    assert captured.mode == "captured" and eager.mode == "eager"
    assert captured.settings["eot_taken"] == 1
    assert torch.equal(captured.robust, eager.robust)
    assert 0 < captured.robust.sum() < captured.correct.sum()


@pytest.mark.parametrize(
    "attack, options", [("apgd20", {"steps": 6}), ("pgd-4", {"batch_size": 4})]
)
def test_a_recorded_attack_on_several_models_equals_the_eager_one(monkeypatch, attack, options):
    """Each is a route of its own; batches are filled up to few sizes."""
    nets = [small_net(seed=seed).double() for seed in (0, 1, 2)]
    x, labels = small_batch(small_net(), 21)
    given = {"eps": 0.03, "step": 0.01, "batch_size": 16, "keep_images": True, **options}
    eager = robust_evaluate(nets, x.double(), labels, attack, mode="eager", **given)
    monkeypatch.setattr(autoattack, "recorder_on", lambda _: Rerun())
    recorded = robust_evaluate(nets, x.double(), labels, attack, **given)
    for ours, theirs in zip(recorded, eager, strict=True):
        assert (ours.mode, theirs.mode) == ("captured", "eager")
        assert torch.equal(ours.robust, theirs.robust)
        assert (ours.gradients, ours.verified) == (theirs.gradients, theirs.verified)
        torch.testing.assert_close(ours.adversarial, theirs.adversarial, rtol=0, atol=1e-9)
    assert 0 < eager[0].robust.sum() < eager[0].correct.sum()


@pytest.mark.parametrize("attack", ["apgd20", "pgd-4"])
def test_an_attack_makes_one_recorder(monkeypatch, attack):
    """Each holds a stream and a pool of memory."""
    made = []
    monkeypatch.setattr(autoattack, "recorder_on", lambda _: made.append(Rerun()) or made[-1])
    net = small_net()
    x, labels = small_batch(net, 9)
    robust_evaluate(net, x, labels, attack, steps=2, batch_size=2)
    assert len(made) == 1
    robust_evaluate(net, x, labels, attack, steps=2, batch_size=2, mode="eager")
    assert len(made) == 1


def test_a_loop_that_runs_seldom_is_not_recorded(monkeypatch):
    """A recording runs it more often by itself."""
    monkeypatch.setattr(autoattack, "recorder_on", lambda _: Rerun())
    net = small_net()
    x, labels = small_batch(net, 30)
    modes = [robust_evaluate(net, x, labels, "pgd-2", batch_size=size)[0].mode for size in (8, 4)]
    assert modes == ["eager", "captured"]  # of 24 rightly classified: 3 and 6 batches


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_recorded_autoattack_equals_the_eager_one(monkeypatch, norm):
    """All but the graph itself, on the CPU."""
    eager = attacked("eager", norm, "cpu")
    monkeypatch.setattr(autoattack, "recorder_on", lambda _: Rerun())
    recorded = attacked("auto", norm, "cpu")
    assert recorded.mode == "captured"
    assert torch.equal(recorded.robust, eager.robust)
    assert 0 < recorded.robust.sum() < recorded.correct.sum()
