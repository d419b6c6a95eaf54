"""Eval-mode batch norm folded into the convolution before it: the same function, fewer passes.

In eval mode batch norm is a fixed scale and shift per channel, s = w / sqrt(var + eps) and
t = b - mean * s. Behind a convolution, s goes into its kernel and t into its bias; anywhere else a
plain scale and shift remains. The arithmetic is done in float64, and the folded model is compared
with the original there before it is handed out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FulaError, not_none
from ..models.copies import private_copy
from ..models.staged import Norm2d
from .start_noise import reproducible

_NORMS = (nn.BatchNorm2d, Norm2d)  # exact types: a subclass may do more
_TOLERANCE = 1e-9


class ScaleShift(nn.Module):
    """relu?(x * scale + shift + residual), (B, C, H, W): what is left of a batch norm that stands
    alone."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        return _joined(torch.addcmul(self.shift, x, self.scale), residual, relu)


class Folded(nn.Module):
    """relu?(x + residual), (B, C, H, W): what is left of a batch norm whose convolution took it
    over."""

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        return _joined(x, residual, relu)


def _joined(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = x if residual is None else x + residual
    return y.relu() if relu else y


def fold(model: nn.Module, input_shape: Sequence[int] | None = None) -> nn.Module:
    """A frozen eval-mode deep copy of `model` without batch norms.

    input_shape: (C, H, W) of an image; a `Staged` model knows its own. Norms that keep no running
    statistics, and subclasses of PyTorch's, stay as they are. Raises `FulaError` where the folded
    copy computes something else: a convolution whose output is used beside its batch norm.
    """
    given: Any = input_shape or model.input_shape
    shape = tuple(given)
    kept = next(model.parameters())
    work = private_copy(model).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(2, *shape, dtype=torch.float64, generator=generator).to(kept.device)
    with torch.no_grad():
        expected, pairs = _watched(work, probe)
        for norm, conv in pairs.items():
            _replace(work, norm, conv)
        error = (_seeded(work, probe) - expected).abs().max() / expected.abs().max()
    if error > _TOLERANCE:
        raise FulaError(
            f"folding batch norm changes the model's output by {error:.1e} (relative): a "
            "convolution's output is used beside its batch norm; attack it with fold=False"
        )
    return work.to(kept.dtype).requires_grad_(False)


def _seeded(model: nn.Module, x: Tensor) -> Tensor:
    """model(x), with the same random numbers every time where the model draws some."""
    with reproducible(0):
        return model(x)


def _watched(model: nn.Module, probe: Tensor) -> tuple[Tensor, dict[str, str | None]]:
    """The model's output; and per batch norm, by name, the convolution whose untouched output it
    reads, if there is one."""
    made: dict[int, tuple[str, int, Tensor]] = {}
    pairs: dict[str, str | None] = {}
    calls: dict[str, int] = {}

    def after_conv(name: str, out: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        made[id(out)] = (name, out._version, out)  # holding `out` keeps its id unique

    def before_norm(name: str, x: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        conv, version, _ = made.get(id(x), (None, x._version, x))
        pairs[name] = conv if version == x._version else None

    with _hooked(model, after_conv, before_norm):
        output = _seeded(model, probe)
    once = {name for name, count in calls.items() if count == 1}
    return output, {
        norm: conv if norm in once and conv in once else None for norm, conv in pairs.items()
    }


class _hooked:
    """While open, calls `after_conv(name, output)` and `before_norm(name, input)`."""

    def __init__(self, model: nn.Module, after_conv, before_norm) -> None:
        self._handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                hook = module.register_forward_hook(
                    lambda _, args, out, name=name: after_conv(name, out)
                )
            elif type(module) in _NORMS and module.running_mean is not None:
                hook = module.register_forward_pre_hook(
                    lambda _, args, name=name: before_norm(name, args[0])
                )
            else:
                continue
            self._handles.append(hook)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def scale_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Eval-mode batch norm as y = scale * x + shift, each (C,)."""
    scale = (not_none(norm.running_var) + norm.eps).rsqrt()
    shift = -not_none(norm.running_mean) * scale
    if norm.affine:
        return scale * norm.weight, shift * norm.weight + norm.bias
    return scale, shift


def _replace(model: nn.Module, norm_name: str, conv_name: str | None) -> None:
    norm: Any = model.get_submodule(norm_name)
    scale, shift = scale_shift(norm)
    if conv_name is None:
        model.set_submodule(norm_name, ScaleShift(scale, shift))
        return
    conv: Any = model.get_submodule(conv_name)
    bias = shift if conv.bias is None else conv.bias * scale + shift
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    conv.bias = nn.Parameter(bias)
    model.set_submodule(norm_name, Folded())
