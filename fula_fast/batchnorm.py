"""Batch-norm rules: which statistics a pass uses, and which it moves.

Only batch norm switches mode while a stitch trains; dropout and everything else stay in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Rule = Literal["moving", "batch", "running"]


def norms(module: nn.Module) -> list[_BatchNorm]:
    """All batch-norm layers of a module."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def set_rule(module: nn.Module, rule: Rule) -> None:
    """Put every batch norm of `module` under one rule.

    `moving`: batch statistics, and the running ones follow; `batch`: batch statistics, nothing
    moves; `running`: the running statistics (eval mode).
    """
    for norm in norms(module):
        norm.training = rule != "running"
        # In training mode PyTorch then neither reads nor writes the running statistics.
        norm.track_running_stats = rule != "batch"


@contextmanager
def rule(module: nn.Module, name: Rule) -> Iterator[nn.Module]:
    """`set_rule` for the length of a block; the earlier rules come back."""
    before = [(n, n.training, n.track_running_stats) for n in norms(module)]
    set_rule(module, name)
    try:
        yield module
    finally:
        for norm, training, tracking in before:
            norm.training, norm.track_running_stats = training, tracking


def frozen(module: nn.Module) -> nn.Module:
    """The module in eval mode with no trainable weight (in place)."""
    return module.eval().requires_grad_(False)
