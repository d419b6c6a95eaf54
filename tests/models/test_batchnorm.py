"""Batch-norm rules: which statistics a pass uses, and which it moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fula_fast.models import batchnorm


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4)
    )
    for norm in batchnorm.norms(module):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return batchnorm.frozen(module.double())


@pytest.fixture
def x():
    return torch.randn(6, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def buffers(module):
    return {name: value.clone() for name, value in module.named_buffers()}


def statistics(x):
    """Per-channel mean, biased and unbiased variance of (B, C, H, W)."""
    flat = x.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1, correction=0), flat.var(1)


def normalise(x, mean, var, norm):
    shape = (1, -1, 1, 1)
    scaled = (x - mean.view(shape)) / (var.view(shape) + norm.eps).sqrt()
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def test_running_uses_the_stored_statistics_and_moves_nothing(module, x):
    before = buffers(module)
    batchnorm.set_rule(module, "running")
    y = module[:2](x)
    norm = module[1]
    expected = normalise(module[0](x), norm.running_mean, norm.running_var, norm)
    torch.testing.assert_close(y, expected)
    assert all(torch.equal(before[n], b) for n, b in module.named_buffers())


def test_batch_uses_the_batchs_statistics_and_moves_nothing(module, x):
    before = buffers(module)
    batchnorm.set_rule(module, "batch")
    mean, var, _ = statistics(module[0](x))
    torch.testing.assert_close(module[:2](x), normalise(module[0](x), mean, var, module[1]))
    assert all(torch.equal(before[n], b) for n, b in module.named_buffers())


@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_moving_follows_the_momentum_formula(module, x, momentum):
    norm = module[1]
    norm.momentum = momentum
    before = buffers(module)
    batchnorm.set_rule(module, "moving")
    mean, var, unbiased = statistics(module[0](x))
    torch.testing.assert_close(module[:2](x), normalise(module[0](x), mean, var, norm))
    keep = 1 - momentum
    torch.testing.assert_close(norm.running_mean, keep * before["1.running_mean"] + momentum * mean)
    torch.testing.assert_close(
        norm.running_var, keep * before["1.running_var"] + momentum * unbiased
    )


def test_only_batch_norm_switches_mode(module, x):
    batchnorm.set_rule(module, "moving")
    assert not module[2].training  # the dropout
    assert torch.equal(module[2](x), x)


def test_a_rule_holds_for_its_block(module, x):
    batchnorm.set_rule(module, "moving")
    before = buffers(module)
    with batchnorm.rule(module, "batch"):
        module(x)
        with batchnorm.rule(module, "running"):
            module(x)
    assert all(torch.equal(before[n], b) for n, b in module.named_buffers())
    assert all(n.training and n.track_running_stats for n in batchnorm.norms(module))
    with pytest.raises(ZeroDivisionError), batchnorm.rule(module, "running"):
        raise ZeroDivisionError
    assert all(n.training for n in batchnorm.norms(module))


def test_no_rule_changes_the_state_dict(module):
    names = list(module.state_dict())
    for name in ("moving", "batch", "running"):
        batchnorm.set_rule(module, name)
        assert list(module.state_dict()) == names


def test_frozen(module):
    assert not any(p.requires_grad for p in module.parameters())
    assert not any(m.training for m in module.modules())
