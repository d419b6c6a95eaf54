"""What `pgd_step` is called with, and what it cannot mean."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..shared import checks

NOUN = "pgd_step"


class PgdStepArguments(NamedTuple):
    """The arguments of `pgd_step`, in the order of its operator; the tensors are (N, ...)."""

    x_adv: Tensor
    grad: Tensor
    x_clean: Tensor
    step: float
    eps: float
    norm: str


def checked(a: PgdStepArguments) -> PgdStepArguments:
    """`a` without gradient. Raises `FulaError` for what does not fit together."""
    x_adv, grad, x_clean, step, eps, norm = a
    checks.tensors(NOUN, {"x_adv": x_adv, "grad": grad, "x_clean": x_clean})
    checks.floating(NOUN, "x_adv", x_adv)
    for name, tensor in (("grad", grad), ("x_clean", x_clean)):
        checks.like(NOUN, name, tensor, "x_adv", x_adv)
        checks.shape(NOUN, name, tensor, x_adv.shape, meaning="that of x_adv")
    if not x_adv.dim():
        checks.fail(NOUN, "x_adv.shape", (), "must be (N, ...)")
    checks.number(NOUN, "step", step)
    checks.number(NOUN, "eps", eps)
    if norm not in ("linf", "l2"):
        checks.fail(NOUN, "norm", f"'{norm}'", "must be 'linf' or 'l2'")
    return PgdStepArguments(x_adv.detach(), grad.detach(), x_clean.detach(), step, eps, norm)
