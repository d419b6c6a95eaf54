"""Hint: the normalised distance at the stitch's own site."""

from __future__ import annotations

from .registry import Mark, Method
from .weightings import own_site

HINT = Method(
    "hint",
    "Hint",
    "trained on term(j), its own site alone",
    "the same, from all images",
    "an error that later layers amplify counts no more than one that they ignore",
    mark=Mark("#0072B2", "o", (0, (5, 1.5))),
    terms=own_site,
)
