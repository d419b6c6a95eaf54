"""Task loss matching: the labels (Bansal et al. 2021; Csiszárik et al. 2021)."""

from __future__ import annotations

from .registry import Mark, Method

TLM = Method(
    "tlm",
    "TLM",
    "trained on the labels",
    "can the *task* be solved this way?",
    "the same, and may beat both donors",
    mark=Mark("#D55E00", "v", (0, (3, 1, 1, 1, 1, 1))),
    loss="fula_fast.methods.objectives:label_losses",
    labels=True,
)
