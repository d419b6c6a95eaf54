"""`hint_terms` by the C++ library."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..shared.cpu import as_sums, call, laid, sums
from ..shared.layout import layout_of, like
from .arguments import HintTermsArguments


def forward(a: HintTermsArguments) -> list[Tensor]:
    """dist2 (L_i, B) of every depth."""
    dist2 = [sums(x, len(x) // max(len(t), 1), len(t)) for x, t in a.pairs()]
    call("hint_terms_forward", *_laid(a), dist2)
    return dist2


def backward(a: HintTermsArguments, ddist2: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the activations, each of its shape; ddist2: (lanes, B) each."""
    grads = [like(x) for x in a.activations]
    shares = [as_sums(d, x) for d, x in zip(ddist2, a.activations, strict=True)]
    call("hint_terms_backward", *_laid(a), shares, grads)
    return grads


def _laid(a: HintTermsArguments) -> tuple[list[Tensor], list[Tensor]]:
    """Both in the layout of the activations' `like`."""
    layouts = [layout_of(x) for x in a.activations]

    def whole(side: Sequence[Tensor]) -> list[Tensor]:
        return [laid(t, layout) for t, layout in zip(side, layouts, strict=True)]

    return whole(a.activations), whole(a.targets)
