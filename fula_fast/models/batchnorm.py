"""Batch-norm rules: which statistics a pass uses, and which it moves.

Only batch norm switches mode while a stitch trains; dropout and everything else stay in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import FulaError
from . import Staged
from .staged import Norm2d

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, Norm2d)
Rule = Literal["moving", "batch", "running"]


def norms(module: nn.Module) -> list[_BatchNorm]:
    """All batch-norm layers of a module."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def has_activation(norm: nn.Module) -> bool:
    """Whether a batch norm is timm's with dropout and an activation behind it
    (`BatchNormAct2d`)."""
    kind = type(norm)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")


def check_norms(model: Staged, role: str) -> None:
    """Raise `FulaError` for a batch norm that may do more than normalise: lanes replace it."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not (
            type(module) in _PLAIN or has_activation(module)
        ):
            raise FulaError(
                f"layer '{name}' of {role} '{model.name}' is a {type(module).__name__}, which "
                "stitching does not know; use a torch.nn.BatchNorm of 1 to 3 dimensions instead"
            )


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
