"""`FULA_CONV=fused`: blocks whose norms live in their convolutions train as blocks do."""

from __future__ import annotations

import pytest
import torch

from fula_fast.engine.fused_blocks import FusedBlock, asked, using
from fula_fast.errors import FulaError
from fula_fast.models import build

from . import test_exactness as exact


def _waves(group, steps, **options):
    """The same training by plain blocks and by fused ones."""
    donors = exact.donor(0, **options), exact.donor(1, **options)
    found = []
    for fused in (False, True):
        with using(fused):
            found.append(exact.run_wave(group, *donors, steps=steps))
    return found


def _assert_same_state(plain, fused):
    expected = plain.state()
    for name, value in fused.state().items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-9, atol=1e-9, equal_nan=True, msg=lambda m, n=name: n + m
        )


def blocks(wave) -> int:
    """Fused blocks of a wave."""
    return sum(isinstance(m, FusedBlock) for n in wave.network._models() for m in n.modules())


@pytest.mark.parametrize("hook", ["post_relu", "pre_relu"])
def test_a_wave_of_fused_blocks_trains_as_one_of_plain_blocks(hook):
    plain, fused = _waves(exact.grid(), 4, hook=hook)
    assert (blocks(plain), blocks(fused)) == (0, 3 * 8)
    _assert_same_state(plain, fused)


@pytest.mark.parametrize("shared", [{"bn": "eval"}, {"target_bn": "eval"}, {"target_bn": "train"}])
def test_every_rule_of_the_norms(shared):
    _assert_same_state(*_waves(exact.grid(**shared), 2))


def test_a_cumulative_average_follows_the_statistics_of_the_convolution():
    donors = exact.donor(0), exact.donor(1)
    for model in donors:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
    with using(True):
        fused = exact.run_wave(exact.grid()[:3], *donors, steps=3)
    _assert_same_state(exact.run_wave(exact.grid()[:3], *donors, steps=3), fused)


def test_other_blocks_stay_as_they_are():
    stock = build("torchvision:resnet18", num_classes=5, input_shape=(3, 32, 32)).double().eval()
    with using(True):
        assert not blocks(exact.run_wave([exact.cell(0, 1, 1, "fula")], stock, stock, steps=0))


@pytest.mark.parametrize("value,fused", [(None, False), ("", False), ("fused", True)])
def test_the_environment_asks(monkeypatch, value, fused):
    monkeypatch.delenv("FULA_CONV", raising=False)
    if value is not None:
        monkeypatch.setenv("FULA_CONV", value)
    assert asked() == fused


def test_another_value_is_refused_in_a_line(monkeypatch):
    monkeypatch.setenv("FULA_CONV", "cudnn")
    message = "FULA_CONV = 'cudnn' is unknown; set it to 'fused', or not at all"
    with pytest.raises(FulaError, match=message):
        exact.run_wave(exact.grid()[:1], exact.donor(0), exact.donor(1), steps=0)
