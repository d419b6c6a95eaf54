"""`hint_terms`: squared distances of any number of activations to their targets, in one launch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..shared import backend
from . import operator, reference
from .arguments import HintTermsArguments, checked


def hint_terms(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """Distances of any number of depths, all of one dtype and device.

        dist2_i[l, b] = sum over a sample of (a_i - t_i)**2

    activations[i]: (L_i*B, ...), targets[i]: (B, ...), shared by that depth's lanes -> (L_i, B).
    Raises `FulaError` for activations and targets that do not fit together.
    """
    a = checked(HintTermsArguments(activations, targets))
    if not a.activations:
        return []
    chosen = backend.choose("hint_terms", a.activations[0])
    if chosen == "reference":
        return reference.forward(a)
    return operator.hint_terms(*a, chosen)
