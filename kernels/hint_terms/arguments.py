"""What `hint_terms` is called with, and what it cannot mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..shared import checks

NOUN = "hint_terms"


class HintTermsArguments(NamedTuple):
    """The arguments of `hint_terms`: activations (L_i*B, ...), targets (B, ...), a pair a depth."""

    activations: Sequence[Tensor]
    targets: Sequence[Tensor]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(activation, target) of every depth."""
        return list(zip(self.activations, self.targets, strict=True))


def checked(a: HintTermsArguments) -> HintTermsArguments:
    """`a` as lists, its targets without gradient. Raises `FulaError` for what does not fit."""
    for name, given in (("activations", a.activations), ("targets", a.targets)):
        if not isinstance(given, Sequence):
            rule = "must be a sequence of tensors, one a depth"
            checks.fail(NOUN, name, checks.short(given), rule)
        checks.tensors(NOUN, {f"{name}[{i}]": x for i, x in enumerate(given)})
    if len(a.activations) != len(a.targets):
        rule = f"must be that of activations, {len(a.activations)}"
        checks.fail(NOUN, "len(targets)", len(a.targets), rule)
    for i, (activation, target) in enumerate(zip(a.activations, a.targets, strict=True)):
        checks.floating(NOUN, f"activations[{i}]", activation)
        checks.like(NOUN, f"activations[{i}]", activation, "activations[0]", a.activations[0])
        _depth(i, activation, target)
    return HintTermsArguments(list(a.activations), [target.detach() for target in a.targets])


def _depth(i: int, activation: Tensor, target: Tensor) -> None:
    checks.like(NOUN, f"targets[{i}]", target, f"activations[{i}]", activation)
    if not target.dim() or target.shape[1:] != activation.shape[1:]:
        rule = f"must be (B, ...) with {tuple(activation.shape[1:])} after B"
        checks.fail(NOUN, f"targets[{i}].shape", tuple(target.shape), rule)
    if len(activation) % len(target) if len(target) else len(activation):
        rule = f"must be a multiple of the target's batch, {len(target)}"
        checks.fail(NOUN, f"len(activations[{i}])", len(activation), rule)
