"""Captured loops report what they run, and leave state where it was."""

from __future__ import annotations

import pytest
import torch

from fula_fast.attacks import Replay
from fula_fast.attacks.capture import check_mode
from fula_fast.errors import FulaError

from .conftest import no_cuda


def test_runs_eagerly_on_the_cpu_and_says_so():
    replay = Replay(lambda x: 2 * x, captured=True)
    assert torch.equal(replay(torch.ones(3)), 2 * torch.ones(3))
    assert replay.mode == "eager" and replay.replays == 0


def test_unknown_modes_are_refused():
    with pytest.raises(FulaError, match="did you mean 'captured'"):
        check_mode("capture")


@pytest.mark.gpu
@no_cuda
def test_state_survives_warm_up_and_capture():
    total = torch.zeros((), device="cuda")

    def add(x):
        total.add_(x.sum())
        return total * 2

    replay = Replay(add, captured=True, state=lambda: [total])
    for call in (1, 2, 3):
        assert replay(torch.ones(4, device="cuda")).item() == 8 * call
    assert replay.mode == "captured" and replay.replays == 3
    replay(torch.ones(5, device="cuda"))
    assert total.item() == 17


@pytest.mark.gpu
@no_cuda
def test_a_refused_capture_warns_and_runs_eagerly():
    replay = Replay(lambda x: x * x.sum().item(), captured=True)
    x = torch.ones(3, device="cuda")
    with pytest.warns(UserWarning, match="capture refused"):
        result = replay(x)
    assert torch.equal(result, 3 * x) and replay.mode == "eager"


@pytest.mark.gpu
@no_cuda
def test_a_failing_model_is_not_a_refused_capture():
    replay = Replay(lambda x: x @ torch.ones(7, device="cuda"), captured=True)
    with pytest.raises(RuntimeError, match="size"):
        replay(torch.ones(3, 4, device="cuda"))
