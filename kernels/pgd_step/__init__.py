"""`pgd_step`: one projected step of an attack, in one pass over the pixels."""

from __future__ import annotations

from torch import Tensor

from ..shared import backend
from . import operator, reference
from .arguments import PgdStepArguments, checked


def pgd_step(
    x_adv: Tensor, grad: Tensor, x_clean: Tensor, step: float, eps: float, norm: str = "linf"
) -> Tensor:
    """One projected ascent step in pixels: (N, ...) -> (N, ...), inside [0, 1], without gradient.

    linf: x + step * sign(grad), clipped to x_clean +- eps. l2: x + step * grad / ||grad|| per
    sample, its offset from x_clean shortened to eps (Madry et al. 2018). A zero gradient moves
    nothing. Raises `FulaError` for tensors that do not match, a step or eps that is negative or not
    finite, and another norm.
    """
    a = checked(PgdStepArguments(x_adv, grad, x_clean, step, eps, norm))
    chosen = backend.choose("pgd_step", x_adv)
    if chosen == "reference":
        return reference.forward(a)
    return operator.pgd_step(*a, chosen)
