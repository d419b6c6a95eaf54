"""Soft label matching: the end's own outputs (Csiszárik et al. 2021)."""

from __future__ import annotations

from .registry import Mark, Method

SLM = Method(
    "slm",
    "SLM",
    "trained on the end's outputs",
    "can the end's *decisions* be had from the front?",
    "task-driven: finds any route to the output",
    mark=Mark("#E69F00", "^", (0, (4, 1.2, 1, 1.2))),
    loss="fula_fast.methods.objectives:soft_label_losses",
    end_logits=True,
)
