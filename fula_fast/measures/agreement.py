"""Agreement of stitched models with their end donor, and R^2 per site, for all lanes at once.

Lanes are leading dimensions: logits are (..., N, C), rightness (..., N). A stream adds batches and
gives what the pure function would give on all samples together.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = ("accuracy", "agreement_top1", "agreement_right_wrong", "agreement_soft", "kappa")
"""Columns of every tested model; all but `accuracy` are measures of the registry."""


def answered(logits: Tensor) -> Tensor:
    """Whether each image got an answer, that is, its largest logit is a finite number:
    (..., N, C) -> (..., N) bool. A NaN is no class; -inf beside finite logits is a masked one."""
    return torch.isfinite(logits.amax(-1))


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit is the label's, and finite: (..., N, C), (N,) -> (..., N) bool."""
    return (logits.argmax(-1) == labels) & answered(logits)


def soft_overlap(logits: Tensor, end_logits: Tensor) -> Tensor:
    """sum_c p q / max(sum_c p^2, sum_c q^2) per sample: 1 only for p = q. (..., N, C) -> (..., N).

    p, q: softmax of the two models' logits, in float64.
    """
    p, q = logits.double().softmax(-1), end_logits.double().softmax(-1)
    return (p * q).sum(-1) / torch.maximum(p.square().sum(-1), q.square().sum(-1))


def hard_agreement(a_right: Tensor, b_right: Tensor) -> Tensor:
    """Share of samples on which both are right or both are wrong: (..., N) bool -> (...)."""
    return (a_right == b_right).double().mean(-1)


def soft_agreement(logits: Tensor, end_logits: Tensor) -> Tensor:
    """Mean of `soft_overlap` over the samples: (..., n, C) twice to (...)."""
    return soft_overlap(logits, end_logits).mean(-1)


def error_consistency(a_right: Tensor, b_right: Tensor) -> Tensor:
    """Cohen's kappa of being right (Geirhos et al. 2020): (..., N) bool -> (...).

    NaN, as 0/0, where chance alone explains full agreement (both always right, or both always
    wrong); 0 where one is always right or always wrong and the other is not.
    """
    a, b = a_right.double().mean(-1), b_right.double().mean(-1)
    return kappa(hard_agreement(a_right, b_right), a, b)


def kappa(observed: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Agreement (...) beyond that of independent models with accuracies a and b, (...) each; NaN
    where those agree fully."""
    chance = a * b + (1 - a) * (1 - b)
    return (observed - chance) / (1 - chance)


class Agreement:
    """Accuracy and agreement with the end donor, gathered over batches.

    `lanes`: shape of the leading dimensions, () for a single model.
    """

    def __init__(self, lanes: tuple[int, ...] = (), device: torch.device | str = "cpu") -> None:
        def zeros(shape: tuple[int, ...]) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._count = 0
        self._right, self._same, self._overlap = zeros(lanes), zeros(lanes), zeros(lanes)
        self._answers = zeros(lanes)
        self._end_right, self._silent, self._end_silent = zeros(()), zeros(lanes), zeros(())

    def add(self, logits: Tensor, end_logits: Tensor, labels: Tensor) -> None:
        """One batch: the lanes' logits (*lanes, B, C), the end donor's (B, C), labels (B,)."""
        mine, theirs = right(logits, labels), right(end_logits, labels)
        self._count += len(labels)
        self._right += mine.double().sum(-1)
        self._same += (mine == theirs).double().sum(-1)
        self._answers += (logits.argmax(-1) == end_logits.argmax(-1)).double().sum(-1)
        self._overlap += soft_overlap(logits, end_logits).sum(-1)
        self._end_right += theirs.double().sum(-1)
        self._silent += (~answered(logits)).double().sum(-1)
        self._end_silent += (~answered(end_logits)).double().sum(-1)

    def result(self) -> dict[str, Tensor]:
        """The columns `COLUMNS` of each lane, float64.

        Beside them `unanswered` and `end_unanswered`: images without an answer (`answered`) by the
        lane and by the end donor. Where either is not 0, the others say nothing.
        """
        accuracy, hard = self._right / self._count, self._same / self._count
        return {
            "accuracy": accuracy,
            "agreement_top1": self._answers / self._count,
            "agreement_right_wrong": hard,
            "agreement_soft": self._overlap / self._count,
            "kappa": kappa(hard, accuracy, self._end_right / self._count),
            "unanswered": self._silent,
            "end_unanswered": self._end_silent.expand(self._silent.shape),
        }


def residual_squares(activation: Tensor, target: Tensor, lanes: int = 1) -> Tensor:
    """Sum of (h - g)^2 per lane: (L*B, ...), (B, ...) -> (L,), float64."""
    difference = activation.unflatten(0, (lanes, -1)).double() - target.double()
    return difference.square().flatten(1).sum(1)


def r_squared(activation: Tensor, target: Tensor) -> Tensor:
    """1 - mean (h - g)^2 / mean (g - m)^2 of two (B, ...), with m the one mean of all of g's
    entries."""
    fit = SiteFit(1, target.device)
    fit.add(residual_squares(activation, target), target)
    return fit.result()[0]


class SiteFit:
    """R^2 of all lanes at one site, gathered over batches; the target's sums are shared."""

    def __init__(self, lanes: int, device: torch.device | str = "cpu") -> None:
        self._residual = torch.zeros(lanes, dtype=torch.float64, device=device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # of g and g^2
        self._count = 0

    def add(self, residual: Tensor, target: Tensor) -> None:
        """One batch: each lane's sum of (h - g)^2 (L,) (`residual_squares`), and g itself."""
        g = target.double()
        self._residual += residual
        self._sums += torch.stack((g.sum(), g.square().sum()))
        self._count += g.numel()

    def result(self) -> Tensor:
        """R^2 per lane, (L,) float64; -inf or NaN where the target is constant."""
        total, squares = self._sums
        return 1 - self._residual / (squares - total.square() / self._count)
