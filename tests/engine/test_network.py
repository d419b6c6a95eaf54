"""The two donors of a wave as lanes travel through them."""

from __future__ import annotations

import torch

from fula_fast.engine.network import _LaidBack


def test_the_heads_gradient_comes_in_the_layout_of_its_input():
    """That of a mean over positions has channels first."""
    x = torch.randn(4, 3, 2, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    seen = []
    y = _LaidBack.apply(x * 1)
    y.grad_fn.next_functions[0][0].register_prehook(lambda g: seen.append(g[0]))
    (gradient,) = torch.autograd.grad(y.mean((2, 3)).square().sum(), x)
    (expected,) = torch.autograd.grad((x * 1).mean((2, 3)).square().sum(), x)
    assert torch.equal(gradient, expected)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
