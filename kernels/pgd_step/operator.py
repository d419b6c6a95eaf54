"""`torch.ops.fula.pgd_step` and its fake; it has no gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import custom_op

from ..shared.backend import implementation
from ..shared.layout import like
from ..shared.operators import schema
from .arguments import NOUN, PgdStepArguments


@custom_op("fula::pgd_step", mutates_args=(), schema=schema("Tensor", PgdStepArguments))
def pgd_step(*flat: Any) -> Tensor:
    """The next x_adv."""
    *fields, backend = flat
    return implementation(NOUN, backend).forward(PgdStepArguments(*fields))


@pgd_step.register_fake
def _(x_adv: Tensor, *rest: Any) -> Tensor:
    return like(x_adv)
