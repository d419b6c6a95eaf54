"""Functional latent alignment: the terms from the stitch's site to the last one (FuLA preprint)."""

from __future__ import annotations

from .registry import Mark, Method
from .weightings import term_weights

FULA = Method(
    "fula",
    "FuLA",
    "trained on the mean of term(l) from its site to the last one before the classifier",
    "can the end's inner workings be driven by the front?",
    "where it falls below `hint`, later layers disagree about what the site's activations mean",
    mark=Mark("#009E73", "D", "-"),
    terms=term_weights,
    weighted=True,
)
