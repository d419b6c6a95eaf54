"""Do two models answer alike? Disagreement and Jensen-Shannon divergence of their outputs.

The agreements themselves are in `agreement`; here they take `Outputs`, so that all measures of
outputs are called alike. Leading dimensions of logits and rightness are orders of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FulaError
from . import agreement
from .pair import as_rows
from .registry import Measure, Needs


@dataclass(frozen=True, eq=False)
class Outputs:
    """One model's logits (..., n, C) and, per sample, whether it is right (..., n)."""

    logits: Tensor
    right: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Outputs:
        """Of logits (n, C) of samples with these labels (n,). Raises `FulaError` for no sample."""
        if not len(logits):
            raise FulaError("0 samples: outputs are compared on at least 1; give more images")
        return cls(as_rows(logits), agreement.right(logits, labels))

    def ordered(self, order: Tensor) -> Outputs:
        """The samples taken in `order` (..., n)."""
        return Outputs(self.logits[order], self.right[order])


class OutputTable:
    """Measures of outputs of so many `lanes` and their end donor over a test set, whose logits are
    kept.

    `chosen`: those of outputs count, but for the agreements that every tested model has.
    """

    def __init__(self, lanes: int, chosen: Sequence[Measure]) -> None:
        self._lanes = lanes
        self._chosen = [
            m for m in chosen if m.needs is Needs.OUTPUTS and m.name not in agreement.COLUMNS
        ]
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, logits: Tensor, end_logits: Tensor, labels: Tensor) -> None:
        """One batch: the lanes' logits (L, B, C), the end donor's (B, C), labels (B,)."""
        if self._chosen:
            self._kept.append((logits, end_logits, labels))

    def columns(self) -> list[dict[str, float | None]]:
        """By lane, and by measure; None where one of the lane's logits is not finite."""
        if not self._chosen:
            return [{} for _ in range(self._lanes)]
        lanes, end_logits, labels = zip(*self._kept, strict=True)
        labels = torch.cat(labels)
        end = Outputs.of(torch.cat(end_logits), labels)
        finite = ((x, bool(x.isfinite().all())) for x in torch.cat(lanes, 1))
        sides = [Outputs.of(x, labels) if good else None for x, good in finite]
        return [
            {m.name: None if own is None else float(m.load()(own, end)) for m in self._chosen}
            for own in sides
        ]


def disagreement(a: Outputs, b: Outputs) -> Tensor:
    """Share of samples whose largest logit is of another class, in [0, 1] (Madani et al. 2004)."""
    return (a.logits.argmax(-1) != b.logits.argmax(-1)).double().mean(-1)


def jensen_shannon(a: Outputs, b: Outputs) -> Tensor:
    """Mean over samples of JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, in bits, in [0, 1].

    p, q: softmax of the logits (Lin 1991). Symmetric; invariant to a shift of a sample's logits.
    """
    p, q = a.logits.softmax(-1), b.logits.softmax(-1)
    entropies = [torch.special.entr(d).sum(-1) for d in ((p + q) / 2, p, q)]
    found = entropies[0] - (entropies[1] + entropies[2]) / 2
    return (found / math.log(2)).clamp(0, 1).mean(-1)


def same_answer(a: Outputs, b: Outputs) -> Tensor:
    """Share of samples with the same top-1 class, in [0, 1]: 1 - `disagreement`."""
    return 1 - disagreement(a, b)


def soft_agreement(a: Outputs, b: Outputs) -> Tensor:
    """`agreement.soft_agreement`: mean of sum p q / max(sum p^2, sum q^2), in [0, 1]."""
    return agreement.soft_agreement(a.logits, b.logits).clamp(max=1)


def hard_agreement(a: Outputs, b: Outputs) -> Tensor:
    """`agreement.hard_agreement`: share on which both are right or both are wrong, in [0, 1]."""
    return agreement.hard_agreement(a.right, b.right)


def error_consistency(a: Outputs, b: Outputs) -> Tensor:
    """Cohen's kappa of being right (Geirhos et al. 2020), in [-1, 1].

    0 where chance alone explains full agreement (both always right, or both always wrong), which
    leaves kappa undefined: nothing beyond chance is shown, and a permutation test needs a number.
    """
    return agreement.error_consistency(a.right, b.right).nan_to_num(nan=0.0)
