"""The public operators: check the arguments, then the backend that `backend` chooses.

Formulas, shapes and units stand in `reference`, whose functions have the same signatures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops, reference
from .shared import backend, checks


def lane_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    lanes: int,
    training: bool,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`reference.lane_norm`. Raises `FulaError` for arguments that do not fit together."""
    checks.lane_norm(
        x, weight, bias, running_mean, running_var, lanes, training, eps, residual, target
    )
    if backend.choose("lane_norm", x) == "reference":
        return reference.lane_norm(
            x, weight, bias, running_mean, running_var,
            lanes=lanes, training=training, eps=eps, residual=residual, relu=relu, target=target,
        )  # fmt: skip
    aimed = None if target is None else target.detach()
    y, mean, var, dist2 = ops.lane_norm(
        x, weight, bias, running_mean, running_var, residual, aimed, lanes, training, eps, relu
    )
    if not training:
        mean, var = (s.to(reference.accumulator(x.dtype)) for s in (running_mean, running_var))
    return y, mean.detach(), var.detach(), None if target is None else dist2


def stitch_hint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None = None,
    target_index: Sequence[int] | None = None,
    write: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """`reference.stitch_hint`; indices are host numbers: a sequence, or a tensor on the CPU.

    Raises `FulaError` for arguments that do not fit together, or an index out of range.
    """
    checks.stitch_hint(x, weight, bias, target, write)
    lanes = len(weight)
    x_index = checks.lane_index("stitch_hint", "x_index", x_index, len(x), lanes)
    aims: list[int] = []
    if target is not None:
        target = target.detach()
        aims = checks.lane_index("stitch_hint", "target_index", target_index, len(target), lanes)
    if backend.choose("stitch_hint", x) == "reference":
        return reference.stitch_hint(x, weight, bias, x_index, target, aims, write)
    y, dist2 = ops.stitch_hint(x, weight, bias, x_index, target, aims, write)
    return y if write else None, None if target is None else dist2


def hint_terms(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """`reference.hint_terms`; all of one dtype and device.

    Raises `FulaError` for activations and targets that do not fit together.
    """
    checks.hint_terms(activations, targets)
    if not activations or backend.choose("hint_terms", activations[0]) == "reference":
        return reference.hint_terms(activations, targets)
    return ops.hint_terms(list(activations), [target.detach() for target in targets])


def pgd_step(
    x_adv: Tensor, grad: Tensor, x_clean: Tensor, step: float, eps: float, norm: str = "linf"
) -> Tensor:
    """`reference.pgd_step`, without gradient.

    Raises `FulaError` for tensors that do not match, or a step or eps that is negative or not
    finite.
    """
    checks.pgd_step(x_adv, grad, x_clean, step, eps, norm)
    tensors = (x_adv.detach(), grad.detach(), x_clean.detach())
    if backend.choose("pgd_step", x_adv) == "reference":
        return reference.pgd_step(*tensors, step, eps, norm)
    return ops.pgd_step(*tensors, step, eps, norm)


def augment(
    images: Tensor,
    index: Tensor,
    dy: Tensor,
    dx: Tensor,
    flip: Tensor,
    pad: int,
    markers: Tensor | None = None,
    marker_index: Tensor | None = None,
    marker_y: Tensor | None = None,
    marker_x: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`reference.augment`.

    Raises `FulaError` for tensors that do not fit together. The values of `index`, the offsets and
    the marker numbers live on the device and are trusted.
    """
    by_sample = {"dy": dy, "dx": dx}
    if markers is not None:
        by_sample |= {"marker_index": marker_index, "marker_y": marker_y, "marker_x": marker_x}
    checks.augment(images, index, by_sample, flip, pad, markers, dtype)
    serve = reference if backend.choose("augment", images) == "reference" else ops
    return serve.augment(
        images, index, dy, dx, flip, pad, markers, marker_index, marker_y, marker_x, dtype
    )


def gram(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.gram`. Raises `FulaError` for tensors that are not (rows, c1) and (rows, c2)."""
    checks.gram(x, y)
    if backend.choose("gram", x) == "reference":
        return reference.gram(x, y)
    from . import core

    return core.gram(x.detach(), y.detach())
