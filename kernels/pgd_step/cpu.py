"""`pgd_step` by the C++ library."""

from __future__ import annotations

from torch import Tensor

from ..shared.cpu import call, laid
from ..shared.layout import layout_of, like
from .arguments import PgdStepArguments


def forward(a: PgdStepArguments) -> Tensor:
    """The next x_adv."""
    out, layout = like(a.x_adv), layout_of(a.x_adv)
    images = (laid(t, layout) for t in (a.x_adv, a.grad, a.x_clean))
    call("pgd_step", *images, a.step, a.eps, a.norm, out)
    return out
