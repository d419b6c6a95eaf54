"""The Triton side of the registered operators: one function per operator, the same signatures as
in `plain`. Index lists become device tensors once, outside any capture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, wraps

import torch
from torch import Tensor

from ...errors import FulaError
from ..augment import triton as _augment
from ..hint_terms import triton as _hint_terms
from ..lane_norm import triton as _norm
from ..pgd_step import triton as _pgd_step
from ..stitch_hint import triton as _stitch


def _on_device(launcher):
    """Launch on the device of the tensors, not on the current one."""

    @wraps(launcher)
    def launch(*args):
        tensors = (a[0] if isinstance(a, list | tuple) and a else a for a in args)
        first = next(a for a in tensors if isinstance(a, Tensor))
        with torch.cuda.device_of(first):
            return launcher(*args)

    return launch


@cache
def _index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """`numbers` on the device, int32. Never dropped: captured graphs keep reading it."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise FulaError(
            f"lane index {list(numbers)} is new inside a CUDA graph capture; run the step once "
            "before capturing it"
        )
    return torch.tensor(numbers, dtype=torch.int32, device=device)


@_on_device
def lane_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    target: Tensor | None,
    lanes: int,
    training: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(y, mean, var, dist2 or None)."""
    if training:
        mean, var = _norm.batch_statistics(x, lanes)
    else:
        mean, var = running_mean, running_var
    y, dist2 = _norm.lane_norm(
        x, _as_norm(weight, bias, mean, var, eps, relu), residual, target, lanes
    )
    return y, mean, var, dist2


def _as_norm(
    weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, relu: bool
) -> _norm.Norm:
    return _norm.Norm(*(t.contiguous() for t in (weight, bias, mean, var)), eps, relu)


@_on_device
def lane_norm_backward(
    dy: Tensor | None,
    ddist2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    target: Tensor | None,
    lanes: int,
    training: bool,
    eps: float,
    relu: bool,
    affine: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dresidual or None, sums (L, 2, C) of d and d * xhat if `affine`)."""
    norm = _as_norm(weight, bias, mean, var, eps, relu)
    ddist2 = None if ddist2 is None else ddist2.contiguous()
    return _norm.lane_norm_backward(dy, ddist2, x, norm, residual, target, lanes, training, affine)


@_on_device
def stitch_hint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None,
    target_index: Sequence[int],
    write: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(y or None, dist2 or None)."""
    indices = (_index(tuple(i), x.device) for i in (x_index, target_index))
    fronts, aims = indices
    return _stitch.stitch_hint(x, weight, bias, fronts, target, aims, write)


@_on_device
def stitch_hint_backward(
    dy: Tensor | None,
    ddist2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None,
    target_index: Sequence[int],
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dweight, dbias, dx or None)."""
    fronts, aims = (_index(tuple(i), x.device) for i in (x_index, target_index))
    order = None
    if need_dx:
        order = tuple(_index(part, x.device) for part in _by_front(tuple(x_index), len(x)))
    return _stitch.stitch_hint_backward(dy, ddist2, x, weight, bias, fronts, target, aims, order)


@cache
def _by_front(x_index: tuple[int, ...], fronts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(lanes sorted by front, where each front's lanes start, and the end)."""
    order = sorted(range(len(x_index)), key=lambda lane: x_index[lane])
    starts = [sum(i < front for i in x_index) for front in range(fronts + 1)]
    return tuple(order), tuple(starts)


hint_terms = _on_device(_hint_terms.hint_terms)
hint_terms_backward = _on_device(_hint_terms.hint_terms_backward)
pgd_step = _on_device(_pgd_step.pgd_step)
augment = _on_device(_augment.augment)
