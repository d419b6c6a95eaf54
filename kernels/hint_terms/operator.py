"""`torch.ops.fula.hint_terms`, its fake, and its gradient, 2 * ddist2 * (activation - target)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.library import custom_op

from ..shared.backend import implementation
from ..shared.layout import like
from ..shared.operators import schema
from ..shared.sums import accumulator
from .arguments import NOUN, HintTermsArguments


@custom_op("fula::hint_terms", mutates_args=(), schema=schema("Tensor[]", HintTermsArguments))
def hint_terms(*flat: Any) -> list[Tensor]:
    """dist2 (L_i, B) of every depth."""
    *fields, backend = flat
    return implementation(NOUN, backend).forward(HintTermsArguments(*fields))


@hint_terms.register_fake
def _(*flat: Any) -> list[Tensor]:
    return [
        x.new_empty(x.shape[0] // max(t.shape[0], 1), t.shape[0], dtype=accumulator(x.dtype))
        for x, t in HintTermsArguments(*flat[:-1]).pairs()
    ]


@custom_op(
    "fula::hint_terms_backward",
    mutates_args=(),
    schema=schema("Tensor[]", HintTermsArguments, ddist2=Sequence[Tensor]),
)
def hint_terms_backward(*flat: Any) -> list[Tensor]:
    """Gradients of the activations."""
    *fields, ddist2, backend = flat
    return implementation(NOUN, backend).backward(HintTermsArguments(*fields), ddist2)


@hint_terms_backward.register_fake
def _(activations: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return [like(x) for x in activations]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    activations, targets, ctx.backend = inputs
    ctx.count = len(activations)
    ctx.save_for_backward(*activations, *targets)


def _gradient(ctx: Any, ddist2: Sequence[Tensor]) -> tuple:
    saved = ctx.saved_tensors
    a = HintTermsArguments(saved[: ctx.count], saved[ctx.count :])
    return hint_terms_backward(*a, list(ddist2), ctx.backend), [None] * ctx.count, None


hint_terms.register_autograd(_gradient, setup_context=_save)
