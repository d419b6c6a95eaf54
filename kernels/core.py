"""The C++ side of the registered operators: `fula_fast.kernels._core` on tensors of the CPU.

Same signatures as in `plain`. The library writes into tensors allocated here, wants all activations
of a call in one of two layouts (contiguous, channels-last) and weights and statistics contiguous in
the dtype of sums; what comes otherwise is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _core
from .reference import accumulator
from .shared.layout import fronts_like, laid_out, layout_of, like, stitched


def serves(noun: str) -> bool:
    """Whether this build of the library has `noun`."""
    return hasattr(_core, noun) or hasattr(_core, f"{noun}_forward")


def _sums(x: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=accumulator(x.dtype))


def _as_sums(t: Tensor | None, x: Tensor) -> Tensor | None:
    """`t` contiguous, in the dtype of x's sums."""
    return None if t is None else t.detach().to(accumulator(x.dtype)).contiguous()


def _as(t: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    return laid_out(None if t is None else t.detach(), layout)


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
    y, layout = like(x), layout_of(x)
    mean, var = _as_sums(running_mean, x), _as_sums(running_var, x)
    if training:
        mean, var = (_sums(x, lanes, x.shape[1]) for _ in range(2))
    dist2 = None if target is None else _sums(x, lanes, len(target))
    _core.lane_norm_forward(
        _as(x, layout), _as_sums(weight, x), _as_sums(bias, x), mean, var, _as(residual, layout),
        _as(target, layout), lanes, training, eps, relu, y, dist2,
    )  # fmt: skip
    return y, mean, var, dist2


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
    layout = layout_of(x)
    dx, dresidual = like(x), None if residual is None else like(x)
    dweight, dbias = (_sums(x, lanes, x.shape[1]) if affine else None for _ in range(2))
    _core.lane_norm_backward(
        _as(dy, layout), _as_sums(ddist2, x), _as(x, layout),
        *(_as_sums(t, x) for t in (weight, bias, mean, var)), _as(residual, layout),
        None if ddist2 is None else _as(target, layout), lanes, training, eps, relu,
        dx, dresidual, dweight, dbias,
    )  # fmt: skip
    return dx, dresidual, torch.stack([dbias, dweight], 1) if affine else None


def _features_second(x: Tensor | None) -> Tensor | None:
    """Tokens (..., T, C) as (..., C, T), vectors and maps as they are: features behind the batch."""
    if x is None:
        return None
    x = x.detach()
    if x.dim() == 4:
        return x.contiguous().transpose(2, 3)
    if x.dim() == 5:
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, x.shape[:2])
    return x.contiguous()


def _stitched_view(x: Tensor, y: Tensor | None) -> Tensor | None:
    """y as the library sees it, features behind the batch."""
    return None if y is None else _features_second(y.unsqueeze(0)).squeeze(0)


def _numbers(index: Sequence[int]) -> Tensor:
    return torch.tensor(index, dtype=torch.int64)


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
    lanes, channels, _ = weight.shape
    y = stitched(x, lanes * x.shape[1], channels) if write else None
    dist2 = None if target is None else _sums(x, lanes, x.shape[1])
    _core.stitch_hint_forward(
        _features_second(x), _as_sums(weight, x), _as_sums(bias, x), _numbers(x_index),
        _features_second(target), None if target is None else _numbers(target_index),
        _stitched_view(x, y), dist2,
    )  # fmt: skip
    return y, dist2


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
    dw, db = _sums(x, *weight.shape), _sums(x, *bias.shape)
    dx = fronts_like(x) if need_dx else None
    aimed = None if ddist2 is None else _features_second(target)
    _core.stitch_hint_backward(
        _stitched_view(x, dy), _as_sums(ddist2, x), _features_second(x), _as_sums(weight, x),
        _as_sums(bias, x), _numbers(x_index), aimed,
        None if aimed is None else _numbers(target_index), None, dw, db, _features_second(dx),
    )  # fmt: skip
    return dw.to(weight.dtype), db.to(bias.dtype), dx


def hint_terms(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """dist2 (L_i, B) of every depth."""
    dist2 = [
        _sums(a, len(a) // max(len(t), 1), len(t))
        for a, t in zip(activations, targets, strict=True)
    ]
    _core.hint_terms_forward(*_pairs(activations, targets), dist2)
    return dist2


def hint_terms_backward(
    ddist2: Sequence[Tensor], activations: Sequence[Tensor], targets: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of the activations."""
    grads = [like(a) for a in activations]
    shares = [_as_sums(d, a) for d, a in zip(ddist2, activations, strict=True)]
    _core.hint_terms_backward(*_pairs(activations, targets), shares, grads)
    return grads


def _pairs(
    activations: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Both in the layout of the activations' `like`."""
    layouts = [layout_of(a) for a in activations]
    return tuple(
        [_as(t, layout) for t, layout in zip(side, layouts, strict=True)]
        for side in (activations, targets)
    )


def pgd_step(
    x_adv: Tensor, grad: Tensor, x_clean: Tensor, step: float, eps: float, norm: str
) -> Tensor:
    """The next x_adv."""
    out, layout = like(x_adv), layout_of(x_adv)
    _core.pgd_step(*(_as(t, layout) for t in (x_adv, grad, x_clean)), step, eps, norm, out)
    return out


def augment(
    images: Tensor,
    index: Tensor,
    dy: Tensor,
    dx: Tensor,
    flip: Tensor,
    pad: int,
    markers: Tensor | None,
    marker_index: Tensor | None,
    marker_y: Tensor | None,
    marker_x: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(B, C, H, W) of `dtype`, channels-last."""
    _, height, width, channels = images.shape
    out = images.new_empty(len(index), height, width, channels, dtype=dtype).permute(0, 3, 1, 2)
    draws = (index, dy, dx, flip)
    tables = (markers, marker_index, marker_y, marker_x)
    _core.augment(
        images.contiguous(), *(t.contiguous() for t in draws), pad,
        *(None if t is None else t.contiguous() for t in tables), out,
    )  # fmt: skip
    return out


def gram(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(XᵀX, Xᵀy) of X = [x, 1], float64."""
    size = x.shape[1] + 1
    xtx = torch.empty(size, size, dtype=torch.float64)
    xty = torch.empty(size, y.shape[1], dtype=torch.float64)
    _core.gram(x, y.to(x.dtype), False, xtx, xty)
    return xtx, xty
