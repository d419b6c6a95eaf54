"""`FULA_CONV=fused`: blocks whose norms live in their convolutions train as blocks do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fula_fast.engine.fused_blocks import FusedBlock, asked, using
from fula_fast.engine.wave import Wave
from fula_fast.errors import FulaError
from fula_fast.kernels import backend
from fula_fast.models import build

from . import test_exactness as exact

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
    with using(True), pytest.warns(UserWarning, match="FULA_CONV = 'fused' changes nothing"):
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


def _gradients(dtype: torch.dtype, fused: bool, name: str) -> dict[str, torch.Tensor]:
    """The flat buffer and running statistics after a step of plain gradient descent."""
    group = [exact.cell(0, 5, 5, "fula", optimiser="sgd", lr=1.0)]
    group.append(exact.cell(1, 6, 6, "tlm", optimiser="sgd", lr=1.0))
    donors = exact.donor(0), exact.donor(1)
    with using(fused), backend.using(name):
        start = exact.stitches(group, *donors)
        wave = Wave(group, *donors, start, 1, dtype=dtype)
        x, y = next(exact.batches(1))
        wave.step(x, y, 0)
        assert not fused or blocks(wave) == 3 * 8
    return {name: value.double() for name, value in wave.state().items()}


@pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
def test_a_step_by_triton_kernels_in_the_interpreter():
    want = _gradients(torch.float64, False, "reference")
    plain = _gradients(torch.float32, False, "reference")
    fused = _gradients(torch.float32, True, "triton")
    moved = 0
    for name, value in want.items():
        if value.isnan().any() or "epoch" in name:
            continue
        allowed = 4 * (plain[name] - value).abs().max() + 1e-5 * value.abs().max()
        assert (fused[name] - value).abs().max() <= allowed, name
        moved += 1
    assert moved > 50


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is that process")
def test_a_step_by_triton_kernels():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "in_the_interpreter"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
